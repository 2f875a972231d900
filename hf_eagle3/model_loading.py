"""Loading a target and its draft by directory or Hub id, with errors that a user can act on.

For programs on top of this package, such as its command line and its Space. Does not know how options are parsed.
"""

import math
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from . import checkpoint, embedded
from .data.conversations import checked_template_kwargs
from .draft_model import DraftModel
from .dtypes import DTYPES
from .errors import PACKAGE, UserError, explained, is_raised_by
from .generation.draft.interface import draft_class
from .generation.ops.transfer import best_device
from .hub.formats import CLASSES
from .known_defects import corrections
from .modeling_eagle3 import Eagle3DraftModel


__all__ = ["DTYPES", "checked_template_kwargs", "load_any_draft", "load_pair", "usable_device"]
logger = logging.get_logger(__name__)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
BASE = "base"  # folder next to an adapter
MODEL_REMEDY = "Use the directory or Hub id of a model that this transformers version supports, with complete files."


def load_pair(
    target: str, draft: str, *, dtype: str = "auto", device: str | None = None
) -> tuple[PreTrainedModel, DraftModel, PreTrainedTokenizerBase]:
    """
    Target, draft and tokenizer.

    Args:
        target, draft: Directories or Hub ids; `draft` may be a LoRA adapter of a draft.
        dtype: One of `DTYPES`, see [`dtype_for`].
        device: See [`usable_device`].

    Raises:
        ValueError, OSError: a model does not load, or the device is not available.
    """
    target_model, tokenizer = load_target(target, dtype=dtype, device=device), load_tokenizer(target)
    if (note := tokenizer_note(draft, tokenizer)) is not None:
        logger.warning(note)
    return target_model, load_draft(draft, target_model), tokenizer


def load_target(source: str, *, dtype: str = "auto", device: str | None = None) -> PreTrainedModel:
    """The target on `device`, in evaluation mode; arguments as for [`load_pair`]."""
    device = usable_device(device)
    return load_causal_lm("--target", source, dtype=dtype_for(source, dtype, device)).to(device).eval()


def load_causal_lm(flag: str, source: str, **options) -> PreTrainedModel:
    """
    Load the causal LM given by the option `flag`.

    Raises:
        UserError: it does not exist, is a draft, or has broken files.
    """
    with explained(f"`{flag}` {source} cannot be loaded", MODEL_REMEDY):
        config, _ = PreTrainedConfig.get_config_dict(source)
    refuse_wrong_config(f"`{flag}` {source}", config)
    with explained(f"`{flag}` {source} cannot be loaded", MODEL_REMEDY):
        model = AutoModelForCausalLM.from_pretrained(source, **options)
    if checkpoint.base_of_adapter(source) is not None:
        # transformers keeps the base's name, under which a draft of the adapted model would be published.
        model.config.name_or_path = source
    return model


def load_target_config(source: str, flag: str = "--target") -> PreTrainedConfig:
    """The configuration of a target, without its weights; for a folder with a PEFT adapter that of its base."""
    with explained(f"`{flag}` {source} cannot be read", MODEL_REMEDY):
        return AutoConfig.from_pretrained(checkpoint.with_model_files(source, checkpoint.CONFIG_NAME))


def refuse_wrong_config(what: str, config: dict) -> None:
    """
    Raises:
        UserError: the config is that of a draft, or its values lead to NaN.
    """
    if config.get("draft_vocab_size") is not None or "speculators_model_type" in config:
        raise UserError(f"{what} is an EAGLE-3 draft, not a target model; are `--target` and `--draft` swapped?")
    for name, value in numbers_of(config):
        if math.isnan(value) or (name.endswith("rope_theta") and not 0 < value < math.inf):
            raise UserError(f"{what} has `{name}` {value} in its config.json; fix the file.")


def numbers_of(config: dict, prefix: str = "") -> Iterator[tuple[str, float]]:
    """(name, value) of every float in a configuration, including nested ones."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from numbers_of(value, f"{prefix}{name}.")
        elif isinstance(value, float):
            yield prefix + name, value


def load_tokenizer(source: str, flag: str = "--target") -> PreTrainedTokenizerBase:
    """Load the tokenizer of the model given by the option `flag`."""
    with explained(f"The tokenizer of `{flag}` {source} cannot be loaded", "Save it into the model's directory."):
        return AutoTokenizer.from_pretrained(checkpoint.with_model_files(source, *TOKENIZER_FILES))


def usable_device(name: str | None, option: str = "`--device`") -> str:
    """
    The requested device; by default the accelerator if there is one, else the CPU.

    Raises:
        UserError: the device is not available; the message names `option`.
    """
    device = name or best_device()
    try:
        if torch.empty(0, device=device).is_meta:
            raise RuntimeError("it stores no data")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        known = " or ".join(dict.fromkeys((best_device(), "cpu")))
        why = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"{option} {device!r} cannot be used: {why}. This machine has {known}.") from None
    return device


def dtype_for(source: str, dtype: str, device: str) -> str:
    """
    Resolve "auto" to float32 for the embedded pair on a CPU; otherwise it stays the dtype of the files. In bfloat16
    near-ties depend on the number of tokens per pass, which the tree mode "auto" chooses by measured time, so that the
    text would change between runs.
    """
    is_embedded = Path(source).resolve() == embedded.TARGET.resolve()
    return "float32" if dtype == "auto" and is_embedded and torch.device(device).type == "cpu" else dtype


def load_draft(source: str, target: PreTrainedModel) -> DraftModel:
    """The draft, or the merge of an adapter with its base, in the dtype and on the device of `target`."""
    if not is_adapter(source):
        draft = read_draft(source, dtype=target.dtype)
    else:
        draft = load_any_draft(source)
        for parameter in draft.parameters():  # merged before it is rounded; buffers keep their dtype
            parameter.data = parameter.data.to(target.dtype)
    return draft.to(target.device).eval()


def read_draft(source: str, kind: type[DraftModel] | None = None, **options) -> DraftModel:
    """
    Load the draft given by `--draft`, as a `kind`; default: what its `config.json` says.

    Raises:
        ValueError: it cannot be loaded; the message names it.
    """
    try:
        with explained(f"`--draft` {source} cannot be loaded", MODEL_REMEDY):
            kind = kind or draft_class(checkpoint.load_config(source), Eagle3DraftModel)
            return kind.from_pretrained(source, **options)
    except ValueError as error:
        if source in str(error) or not is_raised_by(error, (PACKAGE,)):
            raise
        raise UserError(f"`--draft` {source}: {error}") from error


def load_shareable_draft(source: str, base: str | None = None, **hub) -> DraftModel:
    """As [`load_any_draft`]; UserError for a kind of draft that no other program reads."""
    draft = load_any_draft(source, base, **hub)
    if draft.config.model_type not in CLASSES:
        raise UserError(
            f"{source} is a {type(draft).__name__}; only EAGLE-3 drafts and block drafters can be converted or pushed."
        )
    return draft


def load_any_draft(source: str, base: str | None = None, **hub) -> DraftModel:
    """
    Load a draft in the dtype of its file, on the CPU. A LoRA adapter is merged into its base draft.

    Args:
        source: Directory or Hub id of a draft or of an adapter.
        base: Base draft of an adapter. Default: see [`adapter_base`].
        hub: `revision`, `subfolder`.
    """
    if not is_adapter(source, **hub):
        if base is not None:
            raise ValueError(f"`--base {base}`: {source} is not an adapter (no {checkpoint.ADAPTER_CONFIG}); omit it.")
        raw = checkpoint.load_config(source, **hub)
        # The dtype in the configuration may differ from that of the file; converting must not change weights.
        kind = draft_class(raw, Eagle3DraftModel)
        config = kind.config_class.from_dict({k: v for k, v in raw.items() if k not in ("dtype", "torch_dtype")})
        config = config.changed(corrections(source, config, {}))
        return kind.from_pretrained(source, config=config, dtype="auto", **hub).eval()
    needs_extra("train", ("peft",))
    from peft import PeftModel

    known = {name: value for name, value in hub.items() if value is not None}
    base, revision = (base, None) if base else adapter_base(source, **hub)
    try:
        draft = load_any_draft(base, revision=revision)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{source} is an adapter of `{base}`, which does not load: {error} Set --base to the right one."
        ) from error
    with explained(f"The adapter {source} cannot be loaded", MODEL_REMEDY):
        merged = PeftModel.from_pretrained(draft, source, **known).merge_and_unload(safe_merge=True)
    merged.config.name_or_path = merged.name_or_path = source
    return merged.eval()


def adapter_base(source: str, **hub) -> tuple[str, str | None]:
    """
    Directory or Hub id, and revision, of an adapter's base draft: the one named in the adapter, or the folder `base/`
    next to it, where `Eagle3Trainer` saves a base without a name.
    """
    needs_extra("train", ("peft",))
    from peft import PeftConfig

    with explained(f"The adapter {source} cannot be loaded", MODEL_REMEDY):
        config = PeftConfig.from_pretrained(
            source, **{name: value for name, value in hub.items() if value is not None}
        )
    named = config.base_model_name_or_path
    candidates = [str(Path(folder, BASE)) for folder in (source, Path(source).parent) if Path(folder, BASE).is_dir()]
    if named in (None, "", "None"):  # older adapters contain the string "None"
        if not candidates:
            raise ValueError(f"{source} is an adapter that does not name its base draft; set --base.")
        return candidates[0], None
    if candidates and Path(named).name == BASE and not Path(named).is_dir():  # the folder was moved
        return candidates[0], None
    return named, config.revision


def tokenizer_note(draft: str, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """How the tokenizer saved with a draft, if any, differs from the target's; `None` if it does not."""
    try:
        if not any(checkpoint.has_file(draft, name) for name in TOKENIZER_FILES):
            return None
        own = AutoTokenizer.from_pretrained(draft)
    except (OSError, ValueError) as error:
        return (
            f"The tokenizer saved with the draft cannot be read and is not compared ({' '.join(str(error).split())})."
        )
    mine, theirs = ({place: token for token, place in t.get_vocab().items()} for t in (own, tokenizer))
    other = [place for place in sorted(mine.keys() & theirs.keys()) if mine[place] != theirs[place]]
    if not other:
        return None
    return (
        f"The draft was trained with another tokenizer: {len(other)} ids have different tokens, for instance "
        f"{other[0]}: {mine[other[0]]!r}, but {theirs[other[0]]!r} for the target. Few tokens will be accepted."
    )


def is_adapter(source: str, **hub) -> bool:
    """Whether a directory or Hub id contains a LoRA adapter; `False` if offline with a cached draft."""
    try:
        return checkpoint.has_file(source, checkpoint.ADAPTER_CONFIG, **hub)
    except checkpoint.HubUnreachableError:
        if checkpoint.has_file(source, checkpoint.CONFIG_NAME, **hub | {"local_files_only": True}):
            return False
        raise


def needs_extra(extra: str, modules: tuple[str, ...]) -> None:
    """Raises ValueError with the install command if one of `modules` is missing."""
    if missing := [name for name in modules if find_spec(name) is None]:
        raise ValueError(f"This needs {', '.join(missing)}: pip install 'hf-eagle3[{extra}]'")
