"""Measures a pair: `python tests/measure_pair.py FOLDER` (with target/ and draft/) prints one JSON line per row of the
README's table. Acceptance only; a target of 260K parameters says nothing about speed."""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging


sys.path.insert(0, str(Path(__file__).parent))
from test_stories import OPENINGS

import hf_eagle3


TREES = {
    "59 nodes, 8 levels, top-k 10": ("static", {"num_draft_tokens": 59, "tree_depth": 8, "tree_top_k": 10}),
    "24 nodes, 6 levels, top-k 6": ("static", {"num_draft_tokens": 24, "tree_depth": 6, "tree_top_k": 6}),
    "chain of 5": ("chain", {"tree_depth": 5}),
}
SAMPLING = {"T=0": {"do_sample": False}} | {
    f"T={t}": {"do_sample": True, "temperature": t, "top_k": 0} for t in (0.7, 1.0)
}


def main(folder: str) -> None:
    logging.disable_progress_bar()
    target = AutoModelForCausalLM.from_pretrained(f"{folder}/target", dtype=torch.float32).eval()
    draft = hf_eagle3.Eagle3DraftModel.from_pretrained(f"{folder}/draft", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(f"{folder}/target")
    for name, (mode, sizes) in TREES.items():
        for setting, options in SAMPLING.items():
            for shared_noise in (True, False) if options["do_sample"] else (True,):
                view = draft.with_tree(mode, shared_noise=shared_noise, **sizes)
                identical = 0
                with hf_eagle3.record() as stats:
                    for seed, opening in enumerate(OPENINGS):
                        inputs = tokenizer(opening, return_tensors="pt")
                        texts = []
                        for assistant in ({}, {"assistant_model": view}):
                            torch.manual_seed(seed)
                            texts.append(target.generate(**inputs, max_new_tokens=128, **options, **assistant))
                        identical += torch.equal(*texts)
                row = {"tree": name, "temperature": setting, "shared_noise": shared_noise and options["do_sample"]}
                row |= {
                    "acceptance_length": round(stats.acceptance_length, 3),
                    "identical": f"{identical}/{len(OPENINGS)}",
                }
                sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
