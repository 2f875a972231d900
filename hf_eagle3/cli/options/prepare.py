"""Options of `hf-eagle3 prepare`."""

import argparse

from .shared import (
    add_device_arguments,
    add_template_argument,
    check_sources,
    natural,
    positive,
    probability,
    refuse,
    refuse_unused_sampling,
    temperature,
)


HELP = "prepare training data: regenerate answers, choose the draft vocabulary, precompute features"
# Options that apply only to in-process generation or only to an endpoint, with their defaults.
IN_PROCESS = {"--batch-size": 32, "--prompt-tokens": 32}
BY_ENDPOINT = {"--concurrency": 16, "--retries": 5, "--timeout": 600}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    tasks = parser.add_subparsers(dest="task", required=True, metavar="task", help="what to prepare:")
    _add_regenerate(tasks)
    _add_vocabulary(tasks)
    _add_features(tasks)


def _add_regenerate(tasks) -> None:
    regenerate = tasks.add_parser(
        "regenerate", help="let the target answer the prompts (writes JSON lines; resumable)", allow_abbrev=False
    )
    add_data_arguments(regenerate)
    regenerate.add_argument(
        "--output", required=True, help="JSON-lines file; conversations that it already contains are skipped"
    )
    regenerate.add_argument(
        "--target", required=True, help="target model, or the name of the model served at --endpoint"
    )
    regenerate.add_argument("--endpoint", help="OpenAI-compatible base URL, e.g. http://localhost:8000/v1")
    regenerate.add_argument("--draft", help="draft of the target, for faster in-process generation")
    size = IN_PROCESS["--batch-size"]
    concurrency, retries, timeout = BY_ENDPOINT.values()
    regenerate.add_argument(
        "--batch-size", type=positive, default=size, help=f"conversations per batch (default: {size})"
    )
    regenerate.add_argument(
        "--concurrency", type=positive, default=concurrency, help=f"concurrent requests (default: {concurrency})"
    )
    regenerate.add_argument(
        "--retries", type=natural, default=retries, help=f"retries of a failed request (default: {retries})"
    )
    regenerate.add_argument(
        "--timeout",
        type=positive,
        default=timeout,
        help=f"seconds without an answer after which a request has failed (default: {timeout})",
    )
    regenerate.add_argument(
        "--max-new-tokens", type=positive, default=512, help="per answer, within the target's context (default: 512)"
    )
    regenerate.add_argument(
        "--temperature",
        type=temperature,
        nargs="+",
        default=[1.0],
        help="0: greedy; batches, or conversations with --endpoint, cycle through several values (default: 1)",
    )
    regenerate.add_argument(
        "--prompt-tokens",
        type=positive,
        default=IN_PROCESS["--prompt-tokens"],
        help="tokens of a plain text to continue from (default: 32)",
    )
    regenerate.add_argument("--top-p", type=probability, default=1.0, help="(default: 1)")
    regenerate.add_argument("--seed", type=natural, default=0, help="(default: 0)")
    add_device_arguments(regenerate, "the target")


def _add_vocabulary(tasks) -> None:
    vocabulary = tasks.add_parser(
        "vocabulary",
        help="count tokens and show the coverage of draft vocabularies",
        allow_abbrev=False,
    )
    add_data_arguments(vocabulary)
    vocabulary.add_argument("--target", required=True, help="target model (its tokenizer and configuration are read)")
    vocabulary.add_argument("--output", required=True, help="JSON file for `train --vocabulary`")
    vocabulary.add_argument(
        "--max-length", type=positive, default=2048, help="maximum tokens per sample (default: 2048)"
    )


def _add_features(tasks) -> None:
    features = tasks.add_parser(
        "features", help="precompute the target's hidden states (large; resumable)", allow_abbrev=False
    )
    add_data_arguments(features)
    features.add_argument("--target", required=True, help="target model")
    features.add_argument("--output", required=True, help="folder for `train --features`")
    features.add_argument("--draft", help="tap the layers of this draft (default: those of a new draft)")
    features.add_argument(
        "--max-length", type=positive, default=2048, help="maximum tokens per sample (default: 2048)"
    )
    features.add_argument(
        "--store-dtype", choices=("bfloat16", "float16"), default="bfloat16", help="(default: bfloat16)"
    )
    features.add_argument("--estimate", action="store_true", help="only print the size")
    add_device_arguments(features, "the target")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="preset, file, folder or Hub id")
    parser.add_argument("--split", help="default: train")
    parser.add_argument("--limit", type=positive, help="maximum number of samples")
    add_template_argument(parser)


def check(arguments: argparse.Namespace) -> None:
    """Raises ValueError for invalid combinations and options without effect, before anything is loaded."""
    if arguments.task != "regenerate":
        check_sources(arguments, "--target", "--draft")
        return
    if arguments.seed >= 2**32:
        raise ValueError(f"`--seed` is {arguments.seed}; use an integer below 2 ** 32.")
    refuse_unused_sampling(arguments)
    if arguments.endpoint:
        why = "with `--endpoint`, where the server runs the model; omit it."
        refuse(arguments, ("--draft", "--device", "--dtype", *IN_PROCESS), why, {"--dtype": "auto"} | IN_PROCESS)
    else:
        check_sources(arguments, "--target", "--draft")
        refuse(arguments, BY_ENDPOINT, "without `--endpoint`; omit it.", BY_ENDPOINT)
