"""Loading and warming up a pair of target and draft. Does not know users or pages."""

import json
import os
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import hf_eagle3
from hf_eagle3 import embedded, pairs
from hf_eagle3.model_loading import DTYPES, checked_template_kwargs, load_pair, usable_device


WARM_UP_TOKENS = 16


@dataclass(frozen=True)
class PairSettings:
    """
    The pair to load, its dtype and device.

    Attributes:
        target, draft: Directories or Hub ids; both empty for a pair that ships with the package.
        pair: Which one, see `hf_eagle3.pairs`.
        dtype: As `hf-eagle3 generate --dtype`; with "auto" these pairs run in float32.
        device: "cpu", "cuda", "mps", ...; empty for the accelerator if there is one.
        chat_template_kwargs: Extra arguments of the target's chat template, as JSON.
    """

    target: str = ""
    draft: str = ""
    pair: str = pairs.EMBEDDED
    dtype: str = "auto"
    device: str = ""
    chat_template_kwargs: str = ""

    def __post_init__(self):
        if bool(self.target) != bool(self.draft):
            given, missing = ("target", "draft") if self.target else ("draft", "target")
            raise ValueError(
                f"A {given} is given without a {missing}. Set both, or neither for the embedded pair "
                "(HF_EAGLE3_TARGET and HF_EAGLE3_DRAFT, or --target and --draft)."
            )
        if self.pair not in pairs.NAMES:
            raise ValueError(f"HF_EAGLE3_PAIR is {self.pair!r}; choose from {', '.join(pairs.NAMES)}.")
        if self.dtype not in DTYPES:
            raise ValueError(f"HF_EAGLE3_DTYPE is {self.dtype!r}; choose from {', '.join(DTYPES)}.")
        _ = self.template_kwargs  # validated here

    @property
    def template_kwargs(self) -> dict:
        """`chat_template_kwargs` decoded; ValueError if it is not a JSON object."""
        try:
            value = json.loads(self.chat_template_kwargs or "{}")
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ValueError(
                f"HF_EAGLE3_CHAT_TEMPLATE_KWARGS or --chat-template-kwargs: {self.chat_template_kwargs!r} is not a "
                'JSON object such as {"enable_thinking": false}'
            )
        return value

    @classmethod
    def from_environment(cls) -> "PairSettings":
        """`HF_EAGLE3_TARGET`, `_DRAFT`, `_PAIR`, `_DTYPE`, `_DEVICE` and `_CHAT_TEMPLATE_KWARGS`."""
        names = ("target", "draft", "pair", "dtype", "device", "chat_template_kwargs")
        values = {name: os.environ.get(f"HF_EAGLE3_{name.upper()}", "") for name in names}
        if is_zero_gpu() and not values["device"]:
            values["device"] = "cuda"  # not available yet: each call borrows the device
        return cls(**{name: value for name, value in values.items() if value})


@dataclass(frozen=True)
class Pair:
    """Target, draft and tokenizer, with their description and extra arguments of the chat template."""

    target: PreTrainedModel
    draft: hf_eagle3.Eagle3DraftModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    is_toy: bool = False
    template_kwargs: dict = field(default_factory=dict)
    note: str | None = None  # why it is not the pair that was asked for

    def drafter(self, name: str, tree: str, **sizes: int):
        """
        A drafter for `generate(assistant_model=...)`: one of `limits.DRAFTERS`, with a tree as for `with_tree`.

        Raises:
            ValueError: impossible sizes.
        """
        draft = hf_eagle3.SuffixDraft() if name == "suffix" else self.draft
        draft = draft.with_tree(tree, **sizes)
        return draft.with_suffix() if name == "eagle3+suffix" else draft

    @property
    def context(self) -> int:
        """Maximum tokens of prompt and answer together, from the target's configuration if available."""
        return self.target.config.get_text_config().to_dict().get("max_position_embeddings") or 2048

    @property
    def description(self) -> str:
        """Name, sizes, dtype and device in one line."""
        weight = next(self.target.parameters())
        return (
            f"{self.name}: target of {_millions(self.target)} parameters in "
            f"{self.target.config.get_text_config().num_hidden_layers} layers, draft of {_millions(self.draft)}, "
            f"{str(weight.dtype).removeprefix('torch.')} on {weight.device.type}"
        )


def is_zero_gpu() -> bool:
    """Whether this is a ZeroGPU Space, where each call runs in its own process with a borrowed GPU."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def load(settings: PairSettings) -> Pair:
    """
    Raises:
        ValueError, OSError: the pair cannot be loaded, or the settings are invalid.
    """
    if settings.target:
        names, title, note = (settings.target, settings.draft), settings.target, None
    else:
        shipped = pairs.shipped_pair(settings.pair)
        names, title, note = (str(shipped.target), str(shipped.draft)), shipped.title, shipped.note
    dtype = "float32" if not settings.target and settings.dtype == "auto" else settings.dtype
    device = usable_device(settings.device, "`--device` (or HF_EAGLE3_DEVICE)")
    is_toy = names[0] == str(embedded.TARGET)
    pair = Pair(*load_pair(*names, dtype=dtype, device=device), title, is_toy, settings.template_kwargs, note)
    checked_template_kwargs(pair.template_kwargs, pair.tokenizer)
    return pair


def leave_a_core() -> None:
    """
    Reserve one core for the page, unless `OMP_NUM_THREADS` is set: a forward pass whose threads wait for a core in use
    by the page or a browser takes several times as long. Affects the whole process.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() - 1))


def warm_up(pair: Pair) -> None:
    """Run the first calls, which are slow and in which the tree mode "auto" measures its costs."""
    if is_zero_gpu():
        return  # no device is available outside a call
    ids = torch.tensor([pair.tokenizer("Hello").input_ids], device=pair.target.device)
    options = {"max_new_tokens": WARM_UP_TOKENS, "min_new_tokens": WARM_UP_TOKENS, "do_sample": False}
    for extra in ({}, {"assistant_model": pair.draft}):
        pair.target.generate(ids, attention_mask=torch.ones_like(ids), **options, **extra)


def _millions(model: torch.nn.Module) -> str:
    count = sum(parameter.numel() for parameter in model.parameters())
    return f"{count / 1e9:.1f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"
