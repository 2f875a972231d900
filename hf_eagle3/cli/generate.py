"""`hf-eagle3 generate`: stream a text with a draft, then say how it went; `--compare` runs plain generate beside it,
`--explain` tells what the tree mode "auto" chose and why."""

import argparse
import json
import sys
from collections import Counter

import torch
from transformers import TextStreamer

from .. import metrics
from ..benchmarks.timing import timed
from ..generation.costs import relative_costs
from ..generation.stats import SpeculationStats, record
from .loading import add_pair_arguments, add_template_argument, add_tree_arguments, encode, load_pair


HELP = "generate text with a draft; show tokens/s, acceptance and where time goes"
WARM_UP_TOKENS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_pair_arguments(parser)
    parser.add_argument("--prompt", required=True, help="the text, or - for standard input")
    parser.add_argument("--raw", action="store_true", help="do not wrap the prompt in the tokenizer's chat template")
    add_template_argument(parser)
    parser.add_argument("--max-new-tokens", type=int, default=128, help="(default: 128)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default: 0)")
    parser.add_argument("--top-k", type=int, default=0, help="0: off (default: 0)")
    parser.add_argument("--top-p", type=float, default=1.0, help="1: off (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    add_tree_arguments(parser)
    parser.add_argument(
        "--compare", action="store_true", help="also run plain generate: speedup, and whether tokens agree"
    )
    parser.add_argument(
        "--explain", action="store_true", help="also show what the tree mode auto chose, and the costs it chose by"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line at the end instead of the table")


def run(arguments: argparse.Namespace) -> int:
    target, draft, tokenizer = load_pair(arguments)
    prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    inputs = encode(tokenizer, prompt, arguments.raw, target.device, arguments.chat_template_kwargs)
    options = {"max_new_tokens": arguments.max_new_tokens, "do_sample": arguments.temperature > 0}
    if options["do_sample"]:
        options |= {"temperature": arguments.temperature, "top_k": arguments.top_k, "top_p": arguments.top_p}

    target.generate(**inputs, **options | {"max_new_tokens": WARM_UP_TOKENS}, assistant_model=draft)
    streamer = None if arguments.json else TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    with record() as stats:
        tokens, seconds = timed(target, inputs, arguments.seed, **options, assistant_model=draft, streamer=streamer)
    tokens = tokens[0]
    report = describe(tokens, seconds, stats)
    if arguments.explain:
        report |= explain(stats, relative_costs(target, draft.midlayer))
    if arguments.compare:
        target.generate(**inputs, **options | {"max_new_tokens": WARM_UP_TOKENS})
        plain, plain_seconds = timed(target, inputs, arguments.seed, **options)
        plain = plain[0]
        report |= {
            "plain_tokens_per_second": len(plain) / plain_seconds,
            # The same tokens, so tokens per second compare; where they differ, per token.
            "speedup": metrics.speedup(plain_seconds / len(plain), seconds / len(tokens)),
            "identical": torch.equal(plain, tokens),
        }
        if not report["identical"]:
            report["first_difference"] = first_difference(target, inputs, plain, tokens)
    print(json.dumps(report) if arguments.json else table(report))
    return 0


def describe(tokens: torch.Tensor, seconds: float, stats: SpeculationStats) -> dict:
    """The figures of one run, with the names of the documentation."""
    total = sum(stats.phase_seconds.values()) or 1.0
    return {
        "new_tokens": len(tokens),
        "tokens_per_second": len(tokens) / seconds,
        "acceptance_length": stats.acceptance_length,
        "num_cycles": stats.num_cycles,
        "accepted_histogram": stats.histogram,
        "phase_shares": {name: value / total for name, value in stats.phase_seconds.items()},
        "mode": stats.mode,
        "reason": stats.reason,
    }


def explain(stats: SpeculationStats, costs: list[dict]) -> dict:
    """What auto did, commonest first, and the costs in plain steps that it had measured."""
    if not stats.choices:
        raise ValueError("`--explain` tells about the tree mode auto; this run used another. Add `--tree auto`.")
    chosen = Counter((choice.levels, choice.nodes) for choice in stats.choices)
    return {
        "choices": [
            {"levels": levels, "nodes": nodes, "cycles": count} for (levels, nodes), count in chosen.most_common()
        ],
        "expected_acceptance_length": sum(choice.expected_tokens for choice in stats.choices) / len(stats.choices),
        "costs": costs,
    }


@torch.no_grad()
def first_difference(target, inputs, plain: torch.Tensor, tokens: torch.Tensor) -> dict:
    """
    Where two texts part and how close the target's choice was there. In bf16 a pass over N tokens rounds differently
    from a pass over one, so near-ties may flip.
    """
    shared = min(len(plain), len(tokens))
    differs = (plain[:shared] != tokens[:shared]).nonzero()
    index = int(differs[0]) if len(differs) else shared
    prefix = torch.cat((inputs["input_ids"][0], plain[:index]))[None]
    best = target(prefix).logits[0, -1].float().topk(2).values
    return {"position": index, "logit_gap": float(best[0] - best[1])}


def table(report: dict) -> str:
    """The report for people."""
    rows = [
        ("new tokens", str(report["new_tokens"])),
        ("tokens/s", f"{report['tokens_per_second']:.1f}"),
        ("acceptance length (tau)", f"{report['acceptance_length']:.3f} over {report['num_cycles']} cycles"),
        ("accepted per cycle", "  ".join(f"{n}:{count}" for n, count in enumerate(report["accepted_histogram"]))),
        ("phases", "  ".join(f"{name} {share:.0%}" for name, share in report["phase_shares"].items())),
        ("mode", f"{report['mode']} ({report['reason']})"),
    ]
    if "speedup" in report:
        rows.insert(2, ("plain tokens/s", f"{report['plain_tokens_per_second']:.1f}"))
        rows.insert(3, ("speedup", f"{report['speedup']:.2f}x"))
        rows.insert(4, ("identical tokens", "yes" if report["identical"] else "NO"))
    if "first_difference" in report:
        where = report["first_difference"]
        rows.insert(5, ("first difference", f"token {where['position']}, logit gap {where['logit_gap']:.4f}"))
    if "choices" in report:
        rows += explained(report)
    width = max(len(name) for name, _ in rows)
    return "\n" + "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def explained(report: dict) -> list[tuple[str, str]]:
    """The rows of `--explain`."""
    rows = [("expected tau", f"{report['expected_acceptance_length']:.3f}")]
    for choice in report["choices"]:
        what = f"{choice['nodes']} nodes of {choice['levels']} levels" if choice["levels"] else "plain steps"
        rows.append((f"{choice['cycles']} cycles", what))
    for table in report["costs"]:
        rows.append(("costs, plain steps", f"{table['device']}, {table['dtype']}, {table['rows']} rows"))
        rows.append(("  up to tokens", str(table["context"])))
        for name, what in (("verify", "verify n"), ("first", "draft level 1"), ("level", "expand n")):
            rows.append((f"  {what}", "  ".join(f"{n}:{cost:.2f}" for n, cost in table[name].items())))
    return rows
