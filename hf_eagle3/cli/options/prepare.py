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


HELP = "prepare training data: regenerate answers, choose the draft vocabulary, compute features beforehand"
# Options of `regenerate` that mean something in one of its two ways only, with their defaults.
IN_PROCESS = {"--batch-size": 32, "--prompt-tokens": 32}
BY_ENDPOINT = {"--concurrency": 16, "--retries": 5, "--timeout": 600}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    tasks = parser.add_subparsers(dest="task", required=True, metavar="task", help="what to prepare:")
    regenerate = tasks.add_parser(
        "regenerate", help="the target answers the prompts itself (JSON lines out; resumes)", allow_abbrev=False
    )
    add_data_arguments(regenerate)
    regenerate.add_argument("--output", required=True, help="JSON-lines file; what it has already is not done again")
    regenerate.add_argument("--target", required=True, help="target model, or the model's name at --endpoint")
    regenerate.add_argument("--endpoint", help="OpenAI-compatible address, e.g. http://localhost:8000/v1")
    regenerate.add_argument("--draft", help="a draft for the target, to be faster in-process")
    size = IN_PROCESS["--batch-size"]
    concurrency, retries, timeout = BY_ENDPOINT.values()
    regenerate.add_argument(
        "--batch-size", type=positive, default=size, help=f"conversations side by side (default: {size})"
    )
    regenerate.add_argument(
        "--concurrency", type=positive, default=concurrency, help=f"requests under way (default: {concurrency})"
    )
    regenerate.add_argument(
        "--retries", type=natural, default=retries, help=f"of a request that failed (default: {retries})"
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
        help="0 is greedy; several take turns, batch by batch, or by conversation with --endpoint (default: 1)",
    )
    regenerate.add_argument(
        "--prompt-tokens",
        type=positive,
        default=IN_PROCESS["--prompt-tokens"],
        help="of plain text that is to be continued (default: 32)",
    )
    regenerate.add_argument("--top-p", type=probability, default=1.0, help="(default: 1)")
    regenerate.add_argument("--seed", type=natural, default=0, help="(default: 0)")
    add_device_arguments(regenerate, "the target")
    vocabulary = tasks.add_parser(
        "vocabulary",
        help="count the tokens to be predicted and say what a draft vocabulary covers",
        allow_abbrev=False,
    )
    add_data_arguments(vocabulary)
    vocabulary.add_argument("--target", required=True, help="target model (its tokenizer and configuration are read)")
    vocabulary.add_argument("--output", required=True, help="JSON file for `train --vocabulary`")
    vocabulary.add_argument("--max-length", type=positive, default=2048, help="of a sample, in tokens (default: 2048)")
    features = tasks.add_parser(
        "features", help="compute the target's hidden states beforehand (large; resumes)", allow_abbrev=False
    )
    add_data_arguments(features)
    features.add_argument("--target", required=True, help="target model")
    features.add_argument("--output", required=True, help="folder for `train --features`")
    features.add_argument("--draft", help="tap the layers of this draft (default: those of a new one)")
    features.add_argument("--max-length", type=positive, default=2048, help="of a sample, in tokens (default: 2048)")
    features.add_argument(
        "--store-dtype", choices=("bfloat16", "float16"), default="bfloat16", help="(default: bfloat16)"
    )
    features.add_argument("--estimate", action="store_true", help="only say how large it would be")
    add_device_arguments(features, "the target")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="preset, file, folder or Hub id")
    parser.add_argument("--split", help="default: train")
    parser.add_argument("--limit", type=positive, help="only the first so many samples")
    add_template_argument(parser)


def check(arguments: argparse.Namespace) -> None:
    """Raises ValueError for what cannot be or would have no effect, before anything is loaded."""
    if arguments.task != "regenerate":
        check_sources(arguments, "--target", "--draft")
        return
    if arguments.seed >= 2**32:
        raise ValueError(f"`--seed` is {arguments.seed}; give a whole number below 2 ** 32.")
    refuse_unused_sampling(arguments)
    if arguments.endpoint:
        why = "with `--endpoint`, whose server runs the model; leave it out."
        refuse(arguments, ("--draft", "--device", "--dtype", *IN_PROCESS), why, {"--dtype": "auto"} | IN_PROCESS)
    else:
        check_sources(arguments, "--target", "--draft")
        refuse(arguments, BY_ENDPOINT, "without `--endpoint`; leave it out.", BY_ENDPOINT)
