"""What verification adds to the target's own pass: `python tests/measure_verification.py` prints one JSON line.

The pair that ships, float32, behind 150 tokens. Our pass over a tree in slots, under masks and with features captured,
beside a bare forward of as many tokens with an ordinary cache and no mask; CPU time of one thread, in turns. A pair of
another directory: `python tests/measure_verification.py TARGET DRAFT`.
"""

import json
import sys
import time
from contextlib import suppress
from statistics import median, quantiles
from unittest import mock

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from hf_eagle3 import Eagle3DraftModel, embedded
from hf_eagle3.generation.loop import Loop
from hf_eagle3.generation.tree.draft_tree import DraftTree, ancestor_mask


ROUNDS, WARM_UPS, PROMPT, SIZES, CHILDREN = 60, 5, 150, (1, 6, 17, 60), 3


class Measured(Exception):
    """Ends the call once the passes have been timed."""


def tree_of(tokens: torch.Tensor) -> DraftTree:
    """A tree of `tokens` (1, N + 1) whose nodes have three children each."""
    parents = [-1] + [(node - 1) // CHILDREN for node in range(1, tokens.shape[1])]
    depths = [0]
    for parent in parents[1:]:
        depths.append(depths[parent] + 1)
    parents = torch.tensor([parents])
    mask = ancestor_mask(parents, max(depths))
    return DraftTree(tokens, parents, torch.tensor([depths]), mask, torch.zeros(tokens.shape), max(depths))


def timed(ways: dict) -> dict[str, list[float]]:
    """Milliseconds of each way, in turns."""
    found = {way: [] for way in ways}
    for repetition in range(-WARM_UPS, ROUNDS):
        for way, run in ways.items():
            start = time.thread_time()
            run()
            if repetition >= 0:
                found[way].append(1000 * (time.thread_time() - start))
    return found


def measure(target, draft, ids: torch.Tensor, size: int) -> dict[str, float]:
    """Lower quartiles in milliseconds, and the median ratio of neighbours."""
    cache, nodes, found = DynamicCache(config=target.config), ids[:, :size], {}
    tree = tree_of(nodes)
    target(ids, past_key_values=cache)
    options = {"position_ids": torch.arange(PROMPT, PROMPT + size)[None], "logits_to_keep": size}

    def bare():
        target(nodes, past_key_values=cache, use_cache=True, **options)
        cache.crop(-size)

    def propose(loop):
        found.update(timed({"bare": bare, "ours": lambda: loop.call.passes.verify(tree)}))
        raise Measured

    fast = draft.with_tree("static", num_draft_tokens=max(1, size - 1), tree_depth=5, tree_top_k=10)
    with mock.patch.object(Loop, "propose", propose), suppress(Measured):
        target.generate(ids, assistant_model=fast, max_new_tokens=100, do_sample=False)
    ratio = median(ours / other for ours, other in zip(found["ours"], found["bare"], strict=True))
    return {way: round(quantiles(values, n=4)[0], 2) for way, values in found.items()} | {"ratio": round(ratio, 3)}


def main() -> None:
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        target = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
        draft = Eagle3DraftModel.from_pretrained(sys.argv[2], dtype=torch.float32).eval()
    else:
        target, draft, _ = embedded.load_pair()
    ids = torch.randint(3, target.config.vocab_size, (1, PROMPT), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = {size: measure(target, draft, ids, size) for size in SIZES}
    sys.stdout.write(json.dumps({"cpu_milliseconds_per_pass": found, "torch": torch.__version__}) + "\n")


if __name__ == "__main__":
    main()
