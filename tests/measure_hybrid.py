"""A cycle of a hybrid target whose chain is cut short, relative to one accepted whole; acceptance is simulated.

    python tests/measure_hybrid.py [qwen3_next | bamba | lfm2]

24 layers with random weights, three of four with recurrent or convolution states, chains of 5, float32, one thread,
CPU time in turns: cycles that commit 6 tokens, and 3; the latter also with a second pass of the target, as before.
"""

import json
import sys
import time
from statistics import median

import torch
from transformers import AutoModelForCausalLM, BambaConfig, Lfm2Config, Qwen3NextConfig

from hf_eagle3.benchmarks.simulated import random_prompts, simulated_acceptance
from hf_eagle3.draft_init import new_draft
from hf_eagle3.generation.stats import record
from hf_eagle3.generation.verify.replay import StateReplay


SIZES = {
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 24,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "eos_token_id": None,
}
ATTENTION = list(range(3, 24, 4))
CONFIGS = {
    "qwen3_next": lambda: Qwen3NextConfig(
        **SIZES,
        head_dim=32,
        linear_num_value_heads=8,
        linear_num_key_heads=4,
        linear_key_head_dim=32,
        linear_value_head_dim=32,
        num_experts=0,
        mlp_only_layers=list(range(24)),
    ),
    "bamba": lambda: BambaConfig(
        **SIZES, attn_layer_indices=ATTENTION, mamba_n_heads=16, mamba_d_head=32, mamba_d_state=64, mamba_n_groups=1
    ),
    "lfm2": lambda: Lfm2Config(**SIZES, full_attn_idxs=ATTENTION),
}


def main(name: str, rounds: int = 3, new_tokens: int = 60) -> None:
    """Print one JSON object."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    target = AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
    draft = (
        new_draft(target, 512, torch.arange(1024, 0, -1), from_target=False).eval().with_tree("chain", tree_depth=5)
    )
    inputs, honest = random_prompts(target, 1, 32), StateReplay.covers
    options = {"do_sample": False, "assistant_model": draft}
    seconds = {"whole": [], "cut": [], "cut, second pass": []}
    for _ in range(rounds + 1):
        for case, times in seconds.items():
            StateReplay.covers = honest if case != "cut, second pass" else lambda self, length: False
            with simulated_acceptance(target, draft, 6.0 if case == "whole" else 3.0), record() as stats:
                begun = time.process_time()
                target.generate(**inputs, max_new_tokens=1, **options)
                prompt = time.process_time() - begun
                target.generate(**inputs, max_new_tokens=new_tokens, **options)
                times.append((time.process_time() - begun - 2 * prompt) / stats.num_iterations)
    StateReplay.covers = honest
    cycle = {case: median(times[1:]) for case, times in seconds.items()}
    report = {"target": name, "ms per cycle": {case: round(1000 * value, 1) for case, value in cycle.items()}}
    report["relative to whole"] = {case: round(value / cycle["whole"], 2) for case, value in cycle.items()}
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "qwen3_next")
