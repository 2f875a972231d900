"""What several commands share: loading a pair, devices, prompts."""

import argparse
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from .. import checkpoint
from ..configuration_eagle3 import Eagle3Config
from ..generation.transfer import best_device
from ..modeling_eagle3 import Eagle3DraftModel


logger = logging.get_logger(__name__)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
BASE = "base"  # folder beside an adapter
DTYPES = ("auto", "float32", "bfloat16", "float16")


def positive(text: str) -> int:
    """An argument type: a whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


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
    target, tokenizer = load_target(arguments), AutoTokenizer.from_pretrained(arguments.target)
    if (note := tokenizer_note(arguments.draft, tokenizer)) is not None:
        logger.warning(note)
    return target, with_tree(load_draft(arguments, target), arguments), tokenizer


def load_target(arguments: argparse.Namespace) -> PreTrainedModel:
    """The target in the precision and on the device asked for."""
    target = AutoModelForCausalLM.from_pretrained(arguments.target, dtype=arguments.dtype)
    return target.to(arguments.device or best_device()).eval()


def load_draft(arguments: argparse.Namespace, target: PreTrainedModel) -> Eagle3DraftModel:
    """The draft, or what an adapter makes of its base, in its target's precision and beside it."""
    if not is_adapter(arguments.draft):
        draft = Eagle3DraftModel.from_pretrained(arguments.draft, dtype=target.dtype)
    else:
        draft = load_any_draft(arguments.draft)
        for parameter in draft.parameters():  # merged before it is rounded; buffers keep their precision
            parameter.data = parameter.data.to(target.dtype)
    return draft.to(target.device).eval()


def load_any_draft(source: str, base: str | None = None, **hub) -> Eagle3DraftModel:
    """
    A draft in the very precision of its file, on the CPU; a LoRA adapter is merged into the draft it was trained on.

    Args:
        source: Directory or Hub id of a draft or of an adapter.
        base: Draft of an adapter. Default: see [`adapter_base`].
        hub: `revision`, `subfolder`.
    """
    if not is_adapter(source, **hub):
        if base is not None:
            raise ValueError(
                f"`--base {base}`: {source} is no adapter (no {checkpoint.ADAPTER_CONFIG}); leave it out."
            )
        raw = checkpoint.load_config(source, **hub)
        # What the configuration says of the precision may not be the file's; converting changes no weight.
        config = Eagle3Config.from_dict({k: v for k, v in raw.items() if k not in ("dtype", "torch_dtype")})
        return Eagle3DraftModel.from_pretrained(source, config=config, dtype="auto", **hub).eval()
    needs_extra("train", ("peft",))
    from peft import PeftModel

    known = {name: value for name, value in hub.items() if value is not None}
    base, revision = (base, None) if base else adapter_base(source, **hub)
    try:
        draft = load_any_draft(base, revision=revision)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{source} is an adapter over `{base}`, which does not load: {error} Name the right one by --base."
        ) from error
    merged = PeftModel.from_pretrained(draft, source, **known).merge_and_unload(safe_merge=True)
    merged.config.name_or_path = merged.name_or_path = source
    return merged.eval()


def adapter_base(source: str, **hub) -> tuple[str, str | None]:
    """
    Directory or Hub id, and revision, of the draft that an adapter changes: the one that it names, or `base/` beside
    it, where `Eagle3Trainer` keeps one that has no name.
    """
    needs_extra("train", ("peft",))
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(source, **{name: value for name, value in hub.items() if value is not None})
    named = config.base_model_name_or_path
    beside = [str(Path(folder, BASE)) for folder in (source, Path(source).parent) if Path(folder, BASE).is_dir()]
    if named in (None, "", "None"):  # the text, in adapters of earlier versions
        if not beside:
            raise ValueError(f"{source} is an adapter and does not say of which draft; give --base.")
        return beside[0], None
    if beside and Path(named).name == BASE and not Path(named).is_dir():  # the folder was moved since
        return beside[0], None
    return named, config.revision


def tokenizer_note(draft: str, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Where a draft carries a tokenizer, as trainers save it: how it differs from its target's in the ids of both."""
    try:
        if not any(checkpoint.has_file(draft, name) for name in TOKENIZER_FILES):
            return None
        own = AutoTokenizer.from_pretrained(draft)
    except (OSError, ValueError) as error:
        return (
            f"The tokenizer beside the draft cannot be read, so it is not compared ({' '.join(str(error).split())})."
        )
    mine, theirs = ({place: token for token, place in t.get_vocab().items()} for t in (own, tokenizer))
    other = [place for place in sorted(mine.keys() & theirs.keys()) if mine[place] != theirs[place]]
    if not other:
        return None
    return (
        f"The draft was trained with another tokenizer: {len(other)} ids stand for other tokens, the first of them "
        f"{other[0]}: {mine[other[0]]!r} there, {theirs[other[0]]!r} in the target's. Few tokens will be accepted."
    )


def is_adapter(source: str, **hub) -> bool:
    """Whether a directory or Hub id is that of a LoRA adapter; none if the Hub is silent and a draft is cached."""
    try:
        return checkpoint.has_file(source, checkpoint.ADAPTER_CONFIG, **hub)
    except checkpoint.HubUnreachableError:
        if checkpoint.has_file(source, checkpoint.CONFIG_NAME, **hub | {"local_files_only": True}):
            return False
        raise


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
