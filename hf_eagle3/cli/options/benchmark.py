"""Options of `hf-eagle3 benchmark`."""

import argparse
from pathlib import Path

from ...benchmarks import methods, prompts
from .shared import (
    KNOWN_DRAFT,
    PAIRS,
    add_device_arguments,
    add_template_argument,
    check_sources,
    find_draft,
    natural,
    positive,
    refuse,
    refuse_unused_template,
    temperature,
)


HELP = "measure a draft against plain generate, prompt lookup and a small assistant: table, plots, JSON"
RANDOM = "random"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target",
        default=PAIRS[0],
        help="directory or Hub id of the target, or a pair that ships with the package: embedded, smollm2 (default: "
        "embedded)",
    )
    parser.add_argument(
        "--draft",
        help="directory or Hub id of its draft; random: untrained weights, to show the cost of speculation "
        f"({KNOWN_DRAFT})",
    )
    parser.add_argument(
        "--assistant", help="directory or Hub id of a small causal LM, for the methods assisted and small"
    )
    parser.add_argument(
        "--methods", nargs="+", metavar="METHOD", help=f"{methods.SYNTAX} (default: all supported ones)"
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help=f"{', '.join(prompts.HUB_SETS)} (from the Hub), .jsonl files, or embedded and smollm2, the prompts "
        "of a pair that ships with the package (default: those of that pair, else the five from the Hub)",
    )
    parser.add_argument("--limit", type=positive, default=80, help="prompts per task (default: 80)")
    parser.add_argument(
        "--temperatures", type=temperature, nargs="+", default=[0.0, 1.0], help="0: greedy (default: 0 1)"
    )
    parser.add_argument("--batch-sizes", type=positive, nargs="+", default=[1], help="(default: 1)")
    parser.add_argument("--seeds", type=natural, nargs="+", default=[0], help="(default: 0)")
    parser.add_argument("--repetitions", type=positive, default=3, help="rounds per call (default: 3)")
    parser.add_argument("--warm-up", type=natural, default=1, help="untimed calls of each method (default: 1)")
    parser.add_argument("--max-new-tokens", type=positive, default=128, help="(default: 128)")
    parser.add_argument("--ignore-eos", action="store_true", help="always generate --max-new-tokens")
    parser.add_argument("--raw", action="store_true", help="do not apply the tokenizer's chat template")
    add_template_argument(parser)
    parser.add_argument("--output-dir", type=Path, default=Path("benchmark"), help="(default: benchmark)")
    parser.add_argument("--no-plots", action="store_true", help="skip the plots, which need matplotlib")
    add_device_arguments(parser, "all models")
    parser.add_argument("--json", action="store_true", help="print one JSON line instead of tables")


def check(arguments: argparse.Namespace) -> None:
    """Raises ValueError for invalid combinations and options without effect, before anything is loaded."""
    check_sources(arguments, "--assistant")
    refuse_unused_template(arguments)
    if arguments.target not in PAIRS:
        check_sources(arguments, "--target")
    if arguments.draft not in (*PAIRS, RANDOM):
        check_sources(arguments, "--draft")
    asked = [name.removesuffix(methods.NO_SHARED_NOISE) for name in arguments.methods or ()]
    if asked and not any(name.startswith("assisted") or name == "small" for name in asked):
        refuse(arguments, ("--assistant",), "unless `--methods` includes assisted or small; add one.")
    if arguments.target not in PAIRS:
        find_draft(arguments)
