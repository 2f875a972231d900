"""`hf-eagle3 demo`: a shipped pair generates the same text with and without its draft, on a CPU."""

import argparse
import json
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
from .tables import show_pairs


def run(arguments: argparse.Namespace) -> int:
    pair, device = shipped_pair(arguments.pair), usable_device(arguments.device)
    if pair.note:
        print(pair.note, file=sys.stderr if arguments.json else sys.stdout)
    # float32: in half precision near-ties depend on the size of a pass, and the texts could differ.
    target, draft, tokenizer = load_pair(str(pair.target), str(pair.draft), dtype="float32", device=device)
    draft = with_tree(draft, arguments)
    colored = arguments.color == "always" or (
        arguments.color == "auto" and sys.stdout.isatty() and "NO_COLOR" not in os.environ
    )
    if not arguments.json:
        introduce(pair, target, draft, colored)
    warm = encode(tokenizer, "Hello", False, target.device)
    for extra in ({}, {"assistant_model": draft}):
        target.generate(**warm, max_new_tokens=8, **extra)
    report = {"pair": pair.name, "plain_seconds": 0.0, "seconds": 0.0, "new_tokens": 0, "identical": True}
    with record() as stats:
        for prompt in arguments.prompt or [row["prompt"] for row in pair.prompts[: arguments.num_prompts]]:
            text = race(target, draft, tokenizer, prompt, arguments, colored, report)
            if not arguments.json:
                print(f"\n{FAINT}> {prompt}{PLAIN}" if colored else f"\n> {prompt}")
                print(text)
    report["speedup"] = metrics.speedup(report["plain_seconds"], report["seconds"])
    report["acceptance_length"] = stats.acceptance_length
    if arguments.json:
        print(json.dumps(report))
    else:
        print()
        show_pairs(figures(report))
    return 0 if report["identical"] else 1


def introduce(pair, target, draft, colored: bool) -> None:
    """Print what runs, and what the colours mean."""
    sizes = draft.tree_config
    print(
        f"Target: {pair.title}, {target.num_parameters() / 1e6:.1f}M parameters in {target.config.num_hidden_layers} "
        f"layers. Draft: {draft.num_parameters() / 1e6:.1f}M in one layer. Tree: {sizes.tree_mode}, "
        f"at most {sizes.num_draft_tokens} nodes, {sizes.tree_depth} levels."
    )
    if colored:
        print(LEGEND)


def race(target, draft, tokenizer, prompt: str, arguments: argparse.Namespace, colored: bool, report: dict) -> str:
    """Answer one prompt without and with the draft, add to `report`, and return the text by origin of its tokens."""
    options = {"max_new_tokens": arguments.max_new_tokens, "do_sample": arguments.temperature > 0}
    if options["do_sample"]:
        options |= {"temperature": arguments.temperature, "top_k": 0}
    inputs = encode(tokenizer, prompt, False, target.device)
    plain, plain_seconds = timed(target, inputs, arguments.seed, **options)
    recorder = TokenRecorder()
    fast, seconds = timed(target, inputs, arguments.seed, **options, assistant_model=draft, streamer=recorder)
    report["plain_seconds"] += plain_seconds
    report["seconds"] += seconds
    report["new_tokens"] += fast.shape[1]
    report["identical"] &= torch.equal(plain, fast)
    return recorder.text(tokenizer, colored)


def figures(report: dict) -> list[tuple[str, str]]:
    """Names and values at the end."""
    return [
        ("plain", f"{report['new_tokens'] / report['plain_seconds']:.0f} tokens/s"),
        ("with the draft", f"{report['new_tokens'] / report['seconds']:.0f} tokens/s"),
        ("speedup", f"{report['speedup']:.2f}x on this machine"),
        ("acceptance length (tau)", f"{report['acceptance_length']:.2f} tokens per pass of the target"),
        ("identical", "yes, token for token" if report["identical"] else "NO"),
    ]
