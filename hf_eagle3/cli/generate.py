"""`hf-eagle3 generate`: stream text generated with a draft, then print statistics.

`--show` colours the text by origin; `--compare` also runs plain `generate`; `--explain` shows the choices of the tree
mode "auto" and their costs.
"""

import argparse
import json
import sys
from collections import Counter

import torch
from transformers import TextStreamer

from .. import metrics
from ..benchmarks.timing import timed
from ..errors import UserError
from ..generation.auto.costs import relative_costs
from ..generation.stats import SpeculationStats, record
from ..model_loading import load_pair
from ..token_ids import common_prefix_length
from .inputs import encode, with_tree
from .origins import LEGEND, OriginStreamer


WARM_UP_TOKENS = 8
# Relative error, in multiples of eps, up to which a multi-token forward may differ from single steps.
NEAR_TIE = 8
NOTHING_TO_EXPLAIN = "`--explain` applies to the tree mode auto only. Add `--tree auto`."


def run(arguments: argparse.Namespace) -> int:
    target, draft, tokenizer = load_pair(
        arguments.target, arguments.draft, dtype=arguments.dtype, device=arguments.device
    )
    draft = with_tree(draft, arguments)
    if arguments.explain and draft.tree_config.tree_mode != "auto":
        raise UserError(NOTHING_TO_EXPLAIN)
    prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    inputs = encode(tokenizer, prompt, arguments.raw, target.device, arguments.chat_template_kwargs)
    options = {"max_new_tokens": arguments.max_new_tokens, "do_sample": arguments.temperature > 0}
    if options["do_sample"]:
        options |= {"temperature": arguments.temperature, "top_k": arguments.top_k, "top_p": arguments.top_p}

    target.generate(**inputs, **options | {"max_new_tokens": WARM_UP_TOKENS}, assistant_model=draft)
    streamer = None if arguments.json else TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    if arguments.show:
        print(LEGEND)
        streamer = OriginStreamer(tokenizer)
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
            # Per token, as the lengths may differ if the texts do.
            "speedup": metrics.speedup(plain_seconds / len(plain), seconds / len(tokens)),
            "identical": torch.equal(plain, tokens),
        }
        if not report["identical"]:
            report["first_difference"] = describe_difference(target, inputs, plain, tokens, options["do_sample"])
    print(json.dumps(report) if arguments.json else table(report))
    return 0


def describe(tokens: torch.Tensor, seconds: float, stats: SpeculationStats) -> dict:
    """Statistics of one run under their documented names."""
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
    """The choices of the mode auto, most frequent first, and the measured costs in plain steps."""
    if not stats.choices:
        raise UserError(NOTHING_TO_EXPLAIN)
    chosen = Counter((choice.levels, choice.nodes) for choice in stats.choices)
    return {
        "choices": [
            {"levels": levels, "nodes": nodes, "cycles": count} for (levels, nodes), count in chosen.most_common()
        ],
        "expected_acceptance_length": sum(choice.expected_tokens for choice in stats.choices) / len(stats.choices),
        "costs": costs,
    }


@torch.no_grad()
def describe_difference(target, inputs, plain: torch.Tensor, tokens: torch.Tensor, sampled: bool = False) -> dict:
    """The first difference of two texts, the target's logit gap there, and an explanation."""
    index = common_prefix_length(plain.tolist(), tokens.tolist())
    prefix = torch.cat((inputs["input_ids"][0], plain[:index]))[None]
    best = target(prefix).logits[0, -1].float().topk(2).values
    gap = float(best[0] - best[1])
    rounding = NEAR_TIE * torch.finfo(target.dtype).eps * float(best[0].abs())
    return {
        "position": index,
        "logit_gap": gap,
        "explanation": explanation(str(target.dtype).removeprefix("torch."), sampled, gap <= rounding),
    }


def explanation(dtype: str, sampled: bool, is_near_tie: bool) -> str:
    """Why a text may differ from plain generate's, or that it must not."""
    if dtype in ("float32", "float64"):
        return f"the text must be identical in {dtype}: please report this with the command"
    if sampled:
        return f"rounding in {dtype} changed a sample close to the boundary between two tokens; try --dtype float32"
    if is_near_tie:
        return f"a near-tie in {dtype}: multi-token passes round differently from single steps; try --dtype float32"
    return f"rounding in {dtype} does not explain this; check --dtype float32, and report it if that differs too"


def table(report: dict) -> str:
    """The report as text."""
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
        rows.insert(6, ("", where["explanation"]))
    if "choices" in report:
        rows += explained(report)
    width = max(len(name) for name, _ in rows)
    return "\n" + "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def explained(report: dict) -> list[tuple[str, str]]:
    """Lines of `--explain`."""
    rows = [("expected tau", f"{report['expected_acceptance_length']:.3f}")]
    for choice in report["choices"]:
        what = f"{choice['nodes']} nodes of {choice['levels']} levels" if choice["levels"] else "plain steps"
        rows.append((f"{choice['cycles']} cycles", what))
    for table in report["costs"]:
        rows.append(("costs, plain steps", f"{table['device']}, {table['dtype']}, batch size {table['rows']}"))
        rows.append(("  up to tokens", str(table["context"])))
        for name, what in (("verify", "verify n"), ("first", "draft level 1"), ("level", "expand n")):
            rows.append((f"  {what}", "  ".join(f"{n}:{cost:.2f}" for n, cost in table[name].items())))
    return rows
