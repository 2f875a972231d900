"""What a cycle costs with block drafters of several sizes beside EAGLE-3's draft of the embedded pair, and what tau
they would need: `python tests/measure_block_cost.py [--rounds 3]` prints one JSON line per tree and draft.

CPU time of one thread at temperature 0, in turns. The block drafters are untrained, as costs do not depend on weights.
"""

import argparse
import json
import statistics
import sys
import time

import torch
from transformers.utils import logging

import hf_eagle3
from hf_eagle3 import embedded
from hf_eagle3.drafters.block.training import new_block_draft


TREES = {8: (4, 3), 16: (6, 4), 24: (6, 6), 59: (7, 10)}  # nodes: levels, top-k
BLOCKS = {"1 layer, block of 8": (1, 8), "2 layers, block of 8": (2, 8), "3 layers, block of 8": (3, 8)}
BLOCKS |= {"2 layers, block of 16": (2, 16)}
EAGLE3 = "EAGLE-3"
WANTED = 1.15  # times EAGLE-3's best speed


def cycle(target, inputs, draft, new_tokens: int) -> tuple[float, float, float]:
    """(CPU milliseconds of a cycle without the prompt, drafting's share of it, acceptance length)."""
    settings = {"do_sample": False, "eos_token_id": None, "assistant_model": draft}
    spent = []
    for count in (1, new_tokens):
        start = time.process_time()
        with hf_eagle3.record() as stats:
            target.generate(**inputs, max_new_tokens=count, **settings)
        spent.append(time.process_time() - start)
    seconds = {name: value for name, value in stats.phase_seconds.items() if name != "prefill"}
    share = (seconds["draft_forward"] + seconds["tree"]) / sum(seconds.values())
    return 1000 * (spent[1] - spent[0]) / stats.num_cycles, share, stats.acceptance_length


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cycles", type=int, default=12, help="about as many per measurement")
    given = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    target, eagle3, tokenizer = embedded.load_pair()
    drafts = {EAGLE3: eagle3}
    for name, (layers, size) in BLOCKS.items():
        sizes = {"num_hidden_layers": layers, "block_size": size, "is_causal": True, "intermediate_size": 512}
        drafts[name] = new_block_draft(target, **sizes).eval()
    messages = [{"role": "user", "content": embedded.prompts()[0]["prompt"]}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    found: dict[tuple[int, str], list] = {}
    for _ in range(given.rounds + 1):  # the first one warms up
        for nodes, (depth, top_k) in TREES.items():
            for name, draft in drafts.items():
                view = draft.with_tree("static", num_draft_tokens=nodes, tree_depth=depth, tree_top_k=top_k)
                new_tokens = given.cycles * (4 if name == EAGLE3 else 1)
                found.setdefault((nodes, name), []).append(cycle(target, inputs, view, new_tokens))
    medians = {key: [statistics.median(part) for part in zip(*rows[1:], strict=True)] for key, rows in found.items()}
    best = max(tau / cost for (_, name), (cost, _, tau) in medians.items() if name == EAGLE3)
    for (nodes, name), (cost, share, tau) in medians.items():
        row = {"nodes": nodes, "draft": name, "cycle_ms": round(cost, 2), "drafting_share": round(share, 3)}
        row |= {"tau": round(tau, 2)} if name == EAGLE3 else {"tau_needed": round(WANTED * best * cost, 2)}
        sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
