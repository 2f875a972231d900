"""Options of `hf-eagle3 paper`."""

import argparse
from pathlib import Path

from .shared import PAIRS, add_device_arguments, check_sources, positive, temperature


HELP = "the paper's tables on a target: train all drafts on equal data, measure, write a page; resumable"
PIECES = ("table-1", "figure-7", "scaling", "table-3", "quality")
DRAFTS = ("medusa", "hydra", "eagle", "hass", "eagle3-top", "eagle3")
PAIRWISE = ("scaling", "table-3")  # compare EAGLE with EAGLE-3
EMBEDDED = PAIRS[0]
# For a test: everything runs, nothing is learnt.
QUICK = {"steps": 2, "batch_size": 2, "max_length": 64, "limit": 1, "max_new_tokens": 12, "texts": 4}
QUICK |= {"sample_tokens": 4, "repetitions": 1, "batch_sizes": [2], "learning_rate": 1e-3}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Drafts and measurements are kept in --output by name; the same command again trains and measures what is "
        "missing. Tables 1 and 2 come from the piece table-1, figures 1 and 4 from scaling."
    )
    parser.add_argument("--target", default=EMBEDDED, help="embedded, or a directory or Hub id (default: embedded)")
    parser.add_argument("--output", type=Path, required=True, help="folder for all results")
    parser.add_argument("--data", help="prompts, which the target answers first: preset, file, folder or Hub id")
    parser.add_argument("--answers", type=Path, help="its answers, if there are some already (instead of --data)")
    parser.add_argument("--tasks", nargs="+", help="prompts to measure on, .jsonl files (default: those of embedded)")
    parser.add_argument("--assistant", help="directory or Hub id of a small model, for standard speculative sampling")
    parser.add_argument("--pieces", nargs="+", choices=PIECES, default=list(PIECES), help="(default: all)")
    parser.add_argument(
        "--drafts", nargs="+", choices=DRAFTS, default=list(DRAFTS), help="trained and measured (default: all)"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: to see that everything runs")
    sizes = parser.add_argument_group("sizes")
    sizes.add_argument("--steps", type=positive, default=2000, help="optimiser steps of each draft (default: 2000)")
    sizes.add_argument("--batch-size", type=positive, default=8, help="samples per step (default: 8)")
    sizes.add_argument("--learning-rate", type=float, help="of all drafts (default: each paper's own)")
    sizes.add_argument("--max-length", type=positive, default=512, help="tokens of a training sequence (default: 512)")
    sizes.add_argument("--limit", type=positive, default=20, help="prompts per task (default: 20)")
    sizes.add_argument("--max-new-tokens", type=positive, default=128, help="per answer (default: 128)")
    sizes.add_argument("--temperatures", type=temperature, nargs="+", default=[0.0, 1.0], help="(default: 0 1)")
    sizes.add_argument("--repetitions", type=positive, default=1, help="rounds per call (default: 1)")
    sizes.add_argument("--batch-sizes", type=positive, nargs="+", default=[2, 4, 8, 16, 24, 32, 48, 56],
                       help="of table 3 (default: the paper's, 2 to 56)")  # fmt: skip
    sizes.add_argument("--texts", type=positive, default=128, help="per sample of the quality test (default: 128)")
    sizes.add_argument("--sample-tokens", type=positive, default=24, help="of each text (default: 24)")
    add_device_arguments(parser, "all models")


def check(arguments: argparse.Namespace) -> None:
    """Raises ValueError for missing sources; applies `--quick`."""
    if arguments.target != EMBEDDED:
        check_sources(arguments, "--target")
        if arguments.tasks is None:
            raise ValueError("`--tasks` is missing: the prompts to measure on, .jsonl files.")
    if (arguments.data is None) == (arguments.answers is None):
        raise ValueError("Give one of `--data`, prompts for the target to answer, and `--answers`, what it answered.")
    if arguments.answers is not None and not arguments.answers.is_file():
        raise ValueError(f"`--answers` {arguments.answers} is not a file.")
    if missing := {"eagle3", *({"eagle"} if set(arguments.pieces) & set(PAIRWISE) else ())} - set(arguments.drafts):
        raise ValueError(
            f"`--drafts` lacks {', '.join(sorted(missing))}, which `--pieces` {' '.join(arguments.pieces)} need."
        )
    if arguments.quick:
        vars(arguments).update(QUICK)
