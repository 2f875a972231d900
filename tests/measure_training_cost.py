"""Cost of training-time test: `python tests/measure_training_cost.py` prints one JSON line per sequence length.

One forward and backward pass of the unrolled draft (512 wide, 8 heads, no losses) in three ways: 7 steps as here, 7
separate single steps, 7 steps under a dense mask over (1 + k) L keys. Each runs in a process of its own, the three in
turn, several times; CPU time is the least, memory the growth of the process's peak.
"""

import json
import resource
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

from hf_eagle3 import Eagle3Config, Eagle3DraftModel
from hf_eagle3.training import training_time_test as module
from hf_eagle3.training.training_time_test import training_time_test


STEPS, LENGTHS, ROUNDS = 7, (256, 512, 1024, 2048, 4096), 3
WAYS = ("seven steps", "seven single steps", "dense mask")


def dense_attention(query, keys, values, *_):
    """What training-time test is without care: one mask over all keys of all steps."""
    length = query.shape[2]
    seen = [torch.ones(length, length, dtype=torch.bool).tril()] + [torch.eye(length, dtype=torch.bool)] * (
        len(keys) - 1
    )
    mask = torch.cat(seen, dim=1)
    return F.scaled_dot_product_attention(query, torch.cat(keys, 2), torch.cat(values, 2), attn_mask=mask)


def measure(way: str, length: int) -> dict:
    torch.manual_seed(0)
    config = Eagle3Config(
        vocab_size=1000, hidden_size=512, intermediate_size=1024, num_attention_heads=8, target_layer_ids=[1, 2, 3]
    )
    draft = Eagle3DraftModel(config)
    embeds, features = torch.randn(1, length, 512), torch.randn(1, length, 1536)
    if way == "dense mask":
        module.training_time_test_attention = dense_attention

    def once() -> None:
        if way == "seven single steps":
            for _ in range(STEPS):
                training_time_test(draft, embeds, features, 1)[0].square().mean().backward()
        else:
            sum(x.square().mean() for x in training_time_test(draft, embeds, features, STEPS)).backward()

    training_time_test(draft, embeds[:, :64], features[:, :64], 1)[0].sum().backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    once()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    start = time.process_time()
    once()
    return {"seconds": time.process_time() - start, "peak_mib": peak / 1024}


def main() -> None:
    for length in LENGTHS:
        found: dict[str, list[dict]] = {way: [] for way in WAYS}
        for _ in range(ROUNDS):
            for way in WAYS:
                command = [sys.executable, __file__, way, str(length)]
                found[way].append(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
        seconds = {way: min(run["seconds"] for run in runs) for way, runs in found.items()}
        row = {"length": length}
        row |= {f"{way}, time": round(seconds[way] / seconds["seven steps"], 2) for way in WAYS[1:]}
        row |= {f"{way}, MiB": round(min(run["peak_mib"] for run in runs)) for way, runs in found.items()}
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    if len(sys.argv) == 3:
        sys.stdout.write(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
    else:
        main()
