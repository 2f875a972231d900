"""Options of `hf-eagle3 push`."""

import argparse

from ...hub import formats
from .shared import check_sources


HELP = "upload a draft with a model card, for Transformers, vLLM and SGLang"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("draft", help="directory or Hub id of the draft, or of a LoRA adapter of one")
    parser.add_argument("repo_id", help="Hub repository: user/name")
    parser.add_argument("--dry-run", metavar="FOLDER", help="write the repository to this folder instead of uploading")
    parser.add_argument("--target", help="directory or Hub id of the target (default: the one named in the draft)")
    parser.add_argument("--target-name", help="Hub id of the target for the card if --target is a directory")
    parser.add_argument("--target-revision", help="branch, tag or commit of the target")
    parser.add_argument("--benchmark", help="JSON file of `hf-eagle3 benchmark` with figures for the card")
    parser.add_argument("--dataset", action="append", default=[], help="Hub id of a training dataset; repeatable")
    parser.add_argument("--license", help="licence of the draft as a Hub identifier, e.g. apache-2.0")
    parser.add_argument("--tag", action="append", default=[], help="additional tag; repeatable")
    parser.add_argument(
        "--to", choices=tuple(formats.READERS), default=formats.PLAIN, help="file format (default: plain)"
    )
    parser.add_argument(
        "--private",
        action=argparse.BooleanOptionalAction,
        help="visibility of a new repository (default: the setting of your account)",
    )
    parser.add_argument("--revision", help="branch to push to (default: main)")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--commit-message", help="default: Upload EAGLE-3 draft, or block drafter")
    parser.add_argument("--base", help="base draft of an adapter (default: the one named in the adapter)")


def check(arguments: argparse.Namespace) -> None:
    """Raises ValueError for invalid combinations and options without effect, before anything is loaded."""
    check_sources(arguments, "draft", "--target", "--base")
