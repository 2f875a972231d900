"""What several commands share: loading a pair, devices, prompts."""

import argparse
import json
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .. import checkpoint
from ..configuration_eagle3 import Eagle3Config
from ..data.conversations import checked_template_kwargs, rendered
from ..generation.transfer import best_device
from ..modeling_eagle3 import Eagle3DraftModel


ADAPTER_CONFIG = "adapter_config.json"
DTYPES = ("auto", "float32", "bfloat16", "float16")


def positive(text: str) -> int:
    """An argument type: a whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def json_object(text: str) -> dict:
    """An argument type: a JSON object."""
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
        help="further arguments of the chat template, e.g. '{\"enable_thinking\": false}'",
    )


def add_pair_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", required=True, help="directory or Hub id of the target model")
    parser.add_argument("--draft", required=True, help="directory or Hub id of its EAGLE-3 draft model")
    add_device_arguments(parser, "both models")


def add_device_arguments(parser: argparse.ArgumentParser, models: str) -> None:
    parser.add_argument("--dtype", default="auto", choices=DTYPES, help=f"of {models} (default: auto)")
    parser.add_argument("--device", help="cpu, cuda, mps, ... (default: the accelerator, else cpu)")


def add_tree_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tree",
        choices=("auto", "static", "chain"),
        default=None,
        help="shape of the draft (default: the draft's own)",
    )
    parser.add_argument("--num-draft-tokens", type=int, help="nodes verified per cycle, the root not counted")
    parser.add_argument("--tree-depth", type=int, help="levels below the root")
    parser.add_argument("--tree-top-k", type=int, help="children per node, and nodes expanded per level")
    parser.add_argument(
        "--no-shared-noise", action="store_true", help="when sampling, rank by the draft's probability alone"
    )


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
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    raw: bool,
    device: torch.device,
    template_kwargs: dict | None = None,
) -> dict[str, torch.Tensor]:
    """Token ids of one prompt, as a chat turn where the tokenizer has a template and `raw` is not asked for."""
    if raw and template_kwargs:
        raise ValueError("`--chat-template-kwargs` has no effect with `--raw`; leave one out.")
    options = checked_template_kwargs(template_kwargs, tokenizer)
    if tokenizer.chat_template is not None and not raw:
        messages = [{"role": "user", "content": prompt}]
        inputs = rendered(tokenizer, messages, options, add_generation_prompt=True, return_tensors="pt")
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
