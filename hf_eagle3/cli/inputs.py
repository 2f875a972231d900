"""Inputs of commands from their options: encoded prompt, draft with its tree, output folder."""

import argparse
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from ..data.conversations import checked_template_kwargs, rendered
from ..errors import explained
from ..modeling_eagle3 import Eagle3DraftModel
from .options.shared import refuse_unused_sizes, value_of


def new_folder(path: str, option: str) -> Path:
    """The output folder, which must be new or empty: leftover weight files would belong to another draft."""
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`{option}` {path} is a file; choose a folder.")
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"`{option}` {path} is not empty; choose a new folder.")
    return folder


def with_tree(draft: Eagle3DraftModel, arguments: argparse.Namespace) -> Eagle3DraftModel:
    """The draft with the tree selected by the options of `add_tree_arguments`."""
    sizes = {
        name: value
        for name in ("num_draft_tokens", "tree_depth", "tree_top_k")
        if (value := value_of(arguments, name)) is not None
    }
    if arguments.no_shared_noise:
        sizes["shared_noise"] = False
    mode = arguments.tree or draft.tree_config.tree_mode
    refuse_unused_sizes(arguments, mode)
    return draft.with_tree(mode, **sizes)


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    raw: bool,
    device: torch.device,
    template_kwargs: dict | None = None,
) -> dict[str, torch.Tensor]:
    """Model inputs of one prompt, as a chat turn if the tokenizer has a template and `raw` is not set."""
    options = checked_template_kwargs(template_kwargs, tokenizer)
    if tokenizer.chat_template is not None and not raw:
        messages = [{"role": "user", "content": prompt}]
        with explained("The chat template cannot render the prompt", "`--raw` skips the template."):
            inputs = rendered(tokenizer, messages, options, add_generation_prompt=True, return_tensors="pt")
    else:
        inputs = tokenizer(prompt, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    if inputs["input_ids"].shape[1] == 0:
        raise ValueError("`--prompt` is empty; it must have at least one token.")
    return inputs.to(device)
