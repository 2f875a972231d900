"""`hf-eagle3 convert`: convert a draft of any dialect, or a LoRA adapter of one, to another dialect."""

import argparse
import sys
from pathlib import Path

from .. import smollm2
from ..errors import UserError, explained
from ..hub.export import UNKNOWN_TARGET, ExportTarget, export
from ..model_loading import MODEL_REMEDY, load_shareable_draft, load_target, load_tokenizer, needs_extra
from ..modeling_eagle3 import Eagle3DraftModel
from .inputs import encode, new_folder


def run(arguments: argparse.Namespace) -> int:
    new_folder(arguments.output, "output")
    if arguments.verify:
        needs_extra("train", ("httpx",))
    draft = load_shareable_draft(
        arguments.source, arguments.base, revision=arguments.revision, subfolder=arguments.subfolder
    )
    if arguments.verify and not isinstance(draft, Eagle3DraftModel):
        raise UserError(f"`--verify` compares EAGLE-3 drafts, and this is a {type(draft).__name__}; omit it.")
    target = UNKNOWN_TARGET
    if arguments.target:
        with explained(f"`--target` {arguments.target} cannot be read", MODEL_REMEDY):
            target = ExportTarget.load(arguments.target, arguments.target_name, arguments.target_revision)
    found = export(
        draft, arguments.output, arguments.to, target, arguments.engine, arguments.allow, arguments.store_head
    )
    for finding in found:
        print(f"Note: {finding}")
    print(f"{arguments.to} draft written to {arguments.output}")
    if arguments.verify:
        print(verified(draft, arguments))
    return 0


def verified(draft: Eagle3DraftModel, arguments: argparse.Namespace) -> str:
    """How vLLM serves what was written, in one line; ValueError if it does so differently."""
    from ..engines.verify import verify_vllm  # needs httpx

    target = load_target(arguments.target, dtype="float32")
    tokenizer = load_tokenizer(arguments.target)
    prompts = [encode(tokenizer, row["prompt"], False, "cpu")["input_ids"][0].tolist() for row in smollm2.prompts()]
    python = arguments.vllm_python or sys.executable
    draft = draft.to(dtype=target.dtype, device=target.device).eval()
    return verify_vllm(target, draft, arguments.target, Path(arguments.output), prompts, python=python)
