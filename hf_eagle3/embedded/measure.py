"""Figures of the embedded pair on its held-out prompts, one JSON line each.

`python -m hf_eagle3.embedded.measure [--target DIR --draft DIR] [--text DIR]`: tau of several trees, greedy and
sampled; the target's entropy; with --text, the number of memorised answers. Speed is measured by the benchmark.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from ..generation.stats import record
from ..modeling_eagle3 import Eagle3DraftModel
from . import DRAFT, TARGET, prompts
from .held_out import MemorisationCheck


TREES = {
    "chain of 3": ("chain", {"tree_depth": 3}),
    "chain of 5": ("chain", {"tree_depth": 5}),
    "8 nodes, 4 levels, top-k 3": ("static", {"num_draft_tokens": 8, "tree_depth": 4, "tree_top_k": 3}),
    "16 nodes, 6 levels, top-k 4": ("static", {"num_draft_tokens": 16, "tree_depth": 6, "tree_top_k": 4}),
    "24 nodes, 6 levels, top-k 6": ("static", {"num_draft_tokens": 24, "tree_depth": 6, "tree_top_k": 6}),
    "24 nodes, 8 levels, top-k 6": ("static", {"num_draft_tokens": 24, "tree_depth": 8, "tree_top_k": 6}),
    "59 nodes, 8 levels, top-k 10": ("static", {"num_draft_tokens": 59, "tree_depth": 8, "tree_top_k": 10}),
}


class Measurement:
    """A pair, its prompts and the number of new tokens per answer."""

    def __init__(self, target: str, draft: str, new_tokens: int, limit: int | None):
        self.target = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
        self.draft = Eagle3DraftModel.from_pretrained(draft, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(target)
        self.prompts = prompts()[:limit]
        self.new_tokens = new_tokens

    def generate(self, prompt: str, seed: int, temperature: float, **extra) -> tuple[torch.Tensor, int]:
        """(prompt and answer tokens, prompt length)."""
        messages = [{"role": "user", "content": prompt}]
        inputs = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        torch.manual_seed(seed)
        out = self.target.generate(**inputs, max_new_tokens=self.new_tokens, **sampling, **extra)[0]
        return out, inputs["input_ids"].shape[1]

    def acceptance(self, tree: str, temperature: float, shared_noise: bool) -> dict:
        """tau over all prompts and by domain."""
        mode, sizes = TREES[tree]
        view = self.draft.with_tree(mode, shared_noise=shared_noise, **sizes)
        domains: dict[str, list] = {}
        for seed, row in enumerate(self.prompts):
            with record() as stats:
                self.generate(row["prompt"], seed, temperature, assistant_model=view)
            for name in (row["domain"], "all"):
                domains.setdefault(name, []).append((stats.num_committed_tokens, stats.num_cycles))
        tau = {name: round(sum(c for c, _ in pairs) / sum(n for _, n in pairs), 3) for name, pairs in domains.items()}
        return {"tree": tree, "temperature": temperature, "shared_noise": shared_noise, "acceptance_length": tau}

    def entropy(self) -> dict:
        """Mean entropy of the target's distribution over its own answers at temperature 1, in nats."""
        total, count = 0.0, 0
        for seed, row in enumerate(self.prompts):
            ids, start = self.generate(row["prompt"], seed, 1.0)
            with torch.no_grad():
                log_p = self.target(ids[None]).logits[0, start - 1 : -1].log_softmax(-1)
            total -= float((log_p.exp() * log_p).sum())
            count += len(log_p)
        return {"entropy_nats_per_token": round(total / count, 3), "tokens": count}

    def memorisation(self, folder: Path) -> dict:
        """Number of greedy answers whose first 32 tokens occur in the training text."""
        is_memorised = MemorisationCheck(self.target, self.tokenizer, folder)
        memorised = sum(is_memorised(row["prompt"]) for row in self.prompts)
        return {"answers_beginning_with_training_text": memorised, "prompts": len(self.prompts)}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--target", default=str(TARGET))
    parser.add_argument("--draft", default=str(DRAFT))
    parser.add_argument("--text", type=Path, help="folder of the training text")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--limit", type=int, help="maximum number of prompts")
    parser.add_argument("--trees", nargs="*", default=list(TREES), help="names of `TREES` (default: all)")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    measurement = Measurement(arguments.target, arguments.draft, arguments.new_tokens, arguments.limit)

    def show(row: dict) -> None:
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()

    show(measurement.entropy())
    if arguments.text:
        show(measurement.memorisation(arguments.text))
    for tree in arguments.trees:
        for temperature, shared_noise in ((0.0, True), (1.0, True), (1.0, False)):
            show(measurement.acceptance(tree, temperature, shared_noise))


if __name__ == "__main__":
    main()
