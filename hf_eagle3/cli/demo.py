"""`hf-eagle3 demo`: a shipped pair generates the same text with and without its draft, on a CPU."""

import argparse
import os
import sys

import torch

from .. import metrics
from ..benchmarks.timing import timed
from ..generation.stats import record
from ..model_loading import load_pair, usable_device
from ..pairs import shipped_pair
from .inputs import encode, with_tree
from .origins import FAINT, LEGEND, PLAIN, TokenRecorder


def run(arguments: argparse.Namespace) -> int:
    pair, device = shipped_pair(arguments.pair), usable_device(arguments.device)
    if pair.note:
        print(pair.note)
    # float32: in half precision near-ties depend on the size of a pass, and the texts could differ.
    target, draft, tokenizer = load_pair(str(pair.target), str(pair.draft), dtype="float32", device=device)
    draft = with_tree(draft, arguments)
    colored = arguments.color == "always" or (
        arguments.color == "auto" and sys.stdout.isatty() and "NO_COLOR" not in os.environ
    )
    prompts = arguments.prompt or [row["prompt"] for row in pair.prompts[: arguments.num_prompts]]
    options = {"max_new_tokens": arguments.max_new_tokens, "do_sample": arguments.temperature > 0}
    if options["do_sample"]:
        options |= {"temperature": arguments.temperature, "top_k": 0}

    sizes = draft.tree_config
    print(
        f"Target: {pair.title}, {target.num_parameters() / 1e6:.1f}M parameters in {target.config.num_hidden_layers} "
        f"layers. Draft: {draft.num_parameters() / 1e6:.1f}M in one layer. Tree: {sizes.tree_mode}, "
        f"at most {sizes.num_draft_tokens} nodes, {sizes.tree_depth} levels."
    )
    if colored:
        print(LEGEND)
    warm = encode(tokenizer, "Hello", False, target.device)
    for extra in ({}, {"assistant_model": draft}):
        target.generate(**warm, max_new_tokens=8, **extra)
    total_plain = total_fast = 0.0
    num_tokens, identical = 0, True
    with record() as stats:
        for prompt in prompts:
            inputs = encode(tokenizer, prompt, False, target.device)
            plain, plain_seconds = timed(target, inputs, arguments.seed, **options)
            recorder = TokenRecorder()
            fast, fast_seconds = timed(
                target, inputs, arguments.seed, **options, assistant_model=draft, streamer=recorder
            )
            total_plain, total_fast = total_plain + plain_seconds, total_fast + fast_seconds
            num_tokens += fast.shape[1]
            identical &= torch.equal(plain, fast)
            print(f"\n{FAINT}> {prompt}{PLAIN}" if colored else f"\n> {prompt}")
            print(recorder.text(tokenizer, colored))
    rows = [
        ("plain", f"{num_tokens / total_plain:.0f} tokens/s"),
        ("with the draft", f"{num_tokens / total_fast:.0f} tokens/s"),
        ("speedup", f"{metrics.speedup(total_plain, total_fast):.2f}x on this machine"),
        ("acceptance length (tau)", f"{stats.acceptance_length:.2f} tokens per pass of the target"),
        ("identical", "yes, token for token" if identical else "NO"),
    ]
    print("\n" + "\n".join(f"{name:<24} {value}" for name, value in rows))
    return 0 if identical else 1
