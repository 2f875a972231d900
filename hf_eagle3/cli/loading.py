"""What several commands share: loading a pair, devices, prompts."""

import argparse
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .. import checkpoint
from ..configuration_eagle3 import Eagle3Config
from ..generation.transfer import best_device
from ..modeling_eagle3 import Eagle3DraftModel


ADAPTER_CONFIG = "adapter_config.json"


def load_pair(arguments: argparse.Namespace) -> tuple[PreTrainedModel, Eagle3DraftModel, PreTrainedTokenizerBase]:
    """Target, draft (with the tree asked for) and tokenizer."""
    target = load_target(arguments)
    return target, with_tree(load_draft(arguments, target), arguments), AutoTokenizer.from_pretrained(arguments.target)


def load_target(arguments: argparse.Namespace) -> PreTrainedModel:
    """The target in the precision and on the device asked for."""
    target = AutoModelForCausalLM.from_pretrained(arguments.target, dtype=arguments.dtype)
    return target.to(arguments.device or best_device()).eval()


def load_draft(arguments: argparse.Namespace, target: PreTrainedModel) -> Eagle3DraftModel:
    """The draft in its target's precision and beside it."""
    return Eagle3DraftModel.from_pretrained(arguments.draft, dtype=target.dtype).to(target.device).eval()


def load_any_draft(source: str, base: str | None = None, **hub) -> Eagle3DraftModel:
    """
    A draft in the very precision of its file, on the CPU; a LoRA adapter is merged into the draft it was trained on.

    Args:
        source: Directory or Hub id of a draft or of an adapter.
        base: Draft of an adapter. Default: `base/` beside it, or what the adapter names.
        hub: `revision`, `subfolder`.
    """
    if not checkpoint.has_file(source, ADAPTER_CONFIG, **hub):
        if base is not None:
            raise ValueError(f"`--base {base}`: {source} is no adapter (it has no {ADAPTER_CONFIG}); leave it out.")
        raw = checkpoint.load_config(source, **hub)
        # What the configuration says of the precision may not be the file's; converting changes no weight.
        config = Eagle3Config.from_dict({k: v for k, v in raw.items() if k not in ("dtype", "torch_dtype")})
        return Eagle3DraftModel.from_pretrained(source, config=config, dtype="auto", **hub).eval()
    needs_extra("train", ("peft",))
    from peft import PeftConfig, PeftModel

    known = {name: value for name, value in hub.items() if value is not None}
    if base is None and (Path(source) / "base").is_dir():
        base = str(Path(source) / "base")
    base = base or PeftConfig.from_pretrained(source, **known).base_model_name_or_path
    if not base:
        raise ValueError(f"{source} is an adapter and does not say of which draft; give --base.")
    draft = load_any_draft(base)
    merged = PeftModel.from_pretrained(draft, source, **known).merge_and_unload(safe_merge=True)
    merged.config.name_or_path = source
    return merged.eval()


def new_folder(path: str, option: str) -> Path:
    """A folder to write into, new or empty: a weight file left from before would be another draft's."""
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`{option}` {path} is a file; name a folder.")
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"`{option}` {path} holds files already; name a new folder.")
    return folder


def with_tree(draft: Eagle3DraftModel, arguments: argparse.Namespace) -> Eagle3DraftModel:
    """The draft with the tree that the options of `add_tree_arguments` ask for."""
    sizes = {
        name: value
        for name in ("num_draft_tokens", "tree_depth", "tree_top_k")
        if (value := getattr(arguments, name)) is not None
    }
    if arguments.no_shared_noise:
        sizes["shared_noise"] = False
    return draft.with_tree(arguments.tree or draft.tree_config.tree_mode, **sizes)


def encode(
    tokenizer: PreTrainedTokenizerBase, prompt: str, raw: bool, device: torch.device
) -> dict[str, torch.Tensor]:
    """Token ids of one prompt, as a chat turn where the tokenizer has a template and `raw` is not asked for."""
    if tokenizer.chat_template is not None and not raw:
        messages = [{"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
    else:
        inputs = tokenizer(prompt, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    if inputs["input_ids"].shape[1] == 0:
        raise ValueError("`--prompt` is empty; give at least one token.")
    return inputs.to(device)


def needs_extra(extra: str, modules: tuple[str, ...]) -> None:
    """Raises ValueError with the command to run where an optional part is not installed."""
    if missing := [name for name in modules if find_spec(name) is None]:
        raise ValueError(f"This needs {', '.join(missing)}: pip install 'hf-eagle3[{extra}]'")
