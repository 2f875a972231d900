"""The compared methods: from names like `tree:24,6,6` to arguments of `generate`. Does not know prompts or timing.

    lookup[:TOKENS]           transformers' prompt lookup
    assisted[:TOKENS]         transformers' assisted decoding with a small model: standard speculative sampling
    chain[:DEPTH]             the draft, one child per level
    tree[:NODES,DEPTH,TOP_K]  the draft's static tree
    auto                      the draft's tree, its size chosen per cycle
    eagle3+suffix             the same, with repeated text in its trees
    small[:DIRECTORY]         a small model's tree (default: the one of `--assistant`), its size chosen per cycle
    suffix                    repeated text alone
    lookahead[:W,N,G]         n-grams of the target's guesses
    medusa:DIRECTORY          Medusa's heads, in the tree of its paper
    hydra:DIRECTORY           Hydra's heads, in the same tree
    eagle:DIRECTORY           EAGLE's draft, in the static tree of its paper
    eagle2:DIRECTORY          the same draft in EAGLE-2's dynamic tree
    hass:DIRECTORY            HASS's draft, in the same tree

Methods with a draft's or a model's tree take the suffix `:no-shared-noise`.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING


if TYPE_CHECKING:  # `hf-eagle3 benchmark --help` lists the names without importing torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..draft_model import DraftModel
    from ..modeling_eagle3 import Eagle3DraftModel


PLAIN = "plain"
LOOKUP_TOKENS = 10  # as PLD (Saxena, 2023) in the paper
NO_SHARED_NOISE = ":no-shared-noise"
SYNTAX = (
    "plain, lookup[:TOKENS], assisted[:TOKENS], suffix, lookahead[:W,N,G], chain[:DEPTH], tree[:NODES,DEPTH,TOP_K], "
    "auto, eagle3+suffix, small[:DIRECTORY], medusa:DIRECTORY, hydra:DIRECTORY, eagle:DIRECTORY, eagle2:DIRECTORY, "
    f"hass:DIRECTORY; from chain on with an optional suffix {NO_SHARED_NOISE}"
)
TITLES = {
    "lookup": "PLD",
    "assisted": "SpS",
    "chain": "EAGLE-3 chain",
    "tree": "EAGLE-3 tree",
    "auto": "EAGLE-3 auto",
    "eagle3+suffix": "EAGLE-3 auto + suffix",
    "small": "small model",
    "suffix": "suffix",
    "lookahead": "Lookahead",
    "medusa": "Medusa",
    "hydra": "Hydra",
    "eagle": "EAGLE",
    "eagle2": "EAGLE-2",
    "hass": "HASS",
}
WITHOUT_MODEL = ("suffix", "lookahead")
# Drafts given by their directory: the kind of draft, and the tree of its paper. Hydra's code takes Medusa's tree.
TREES = {
    "medusa": ("medusa", ("sparse", {"sparse_tree": "medusa"})),
    "hydra": ("hydra", ("sparse", {"sparse_tree": "medusa"})),
    "eagle": ("eagle", ("sparse", {"sparse_tree": "eagle"})),
    "eagle2": ("eagle", ("static", {})),
    "hass": ("hass", ("static", {})),
}


@dataclass(frozen=True)
class Method:
    """
    One way to generate.

    Attributes:
        name: As given to `--methods`, sizes included.
        options: Arguments of `generate`.
        is_ours: Whether our loop decodes; otherwise transformers' own loop runs.
        other_vocabulary: Whether the assistant's vocabulary differs from the target's.
    """

    name: str
    options: Mapping = field(default_factory=lambda: MappingProxyType({}))
    is_ours: bool = False
    other_vocabulary: bool = False

    def skip_reason(self, batch_size: int, temperature: float) -> str:
        """Why the method cannot be measured there; empty if it can."""
        if not self.is_ours and batch_size > 1:
            return "transformers' assisted decoding supports batch size 1 only"
        if self.other_vocabulary and temperature > 0:
            # Measured with transformers 5.23: the target assigns its text a far lower likelihood than its own text.
            return (
                "transformers' sampling with an assistant of another vocabulary does not preserve the target's "
                "distribution"
            )
        return ""

    def keeps_text(self, temperature: float) -> bool:
        """
        Whether the text must equal plain generate's. When sampling, transformers' own speculation draws other random
        numbers: the same distribution, but another text.
        """
        return self.is_ours or temperature == 0


@dataclass(frozen=True)
class Assistant:
    """A small causal LM, with both tokenizers if they differ."""

    model: "PreTrainedModel"
    tokenizers: "Mapping[str, PreTrainedTokenizerBase]"


def title(name: str) -> str:
    """A method's name in tables: "EAGLE-3 tree 24/6/6"."""
    kind, *rest = name.split(":")
    if kind == "small" or kind in TREES:  # a directory may hold anything
        return f"{TITLES[kind]} {Path(name[len(kind) + 1 :]).name}".rstrip()
    sizes = "".join(f" {part.replace(',', '/')}" for part in rest)
    return TITLES.get(kind, kind) + sizes


def default_names(has_assistant: bool) -> list[str]:
    """Every method that can run, with static trees of two sizes."""
    return [f"lookup:{LOOKUP_TOKENS}", "chain:5", "tree:24,6,6", "tree:59,8,10", "auto"] + ["assisted"] * has_assistant


def parse(
    names: list[str],
    draft: "Eagle3DraftModel",
    assistant: Assistant | None,
    load_small: "Callable[[str], PreTrainedModel] | None" = None,
    load_kind: "Callable[[str, str], DraftModel] | None" = None,
) -> list[Method]:
    """
    The methods of `--methods`; "plain" is the baseline and never in the list.

    Args:
        load_small: Loads the model of a `small:DIRECTORY`.
        load_kind: (kind, directory) -> a draft of that kind, for the methods of `TREES`.

    Raises:
        ValueError: an unknown name, invalid sizes, or a missing assistant.
    """
    loaders = {"small": load_small, "kind": load_kind}
    methods = [_parse(name, draft, assistant, loaders) for name in dict.fromkeys(names) if name != PLAIN]
    if not methods:
        raise ValueError(
            f"`--methods` {' '.join(names)!r} has nothing to compare with plain generate; choose from: {SYNTAX}."
        )
    return methods


def _parse(name: str, draft: "Eagle3DraftModel", assistant: Assistant | None, loaders: dict) -> Method:
    shared_noise = not name.endswith(NO_SHARED_NOISE)
    kind, _, text = name.removesuffix(NO_SHARED_NOISE).partition(":")
    if kind not in TITLES or (not shared_noise and kind in ("lookup", "assisted", *WITHOUT_MODEL)):
        raise ValueError(f"`--methods` {name!r} is unknown; choose from: {SYNTAX}.")
    if kind == "small":
        small = _small(name, text, assistant, loaders["small"], shared_noise)
        return Method(name, {"assistant_model": small}, is_ours=True)
    if kind in TREES:
        if not text:
            raise ValueError(f"`--methods` {name!r} needs the directory of its draft, as in {kind}:DIRECTORY.")
        given, (mode, sizes) = TREES[kind]
        view = loaders["kind"](given, text).with_tree(mode, shared_noise=shared_noise, **sizes)
        return Method(name, {"assistant_model": view}, is_ours=True)
    counts = {"tree": (0, 3), "lookahead": (0, 3), "auto": (0,), "suffix": (0,), "eagle3+suffix": (0,)}
    counts = counts.get(kind, (0, 1))
    parts = text.split(",") if text else []
    sizes = [int(part) for part in parts if part.isdigit() and int(part) > 0]
    if len(parts) not in counts or len(sizes) < len(parts):
        raise ValueError(f"`--methods` {name!r}: sizes must be positive integers, as in: {SYNTAX}.")
    if kind == "lookup":
        return Method(name, {"prompt_lookup_num_tokens": sizes[0] if sizes else LOOKUP_TOKENS})
    if kind == "assisted":
        options = _assisted_options(name, sizes, assistant)
        return Method(name, options, other_vocabulary="assistant_tokenizer" in options)
    if kind in WITHOUT_MODEL:
        from ..drafters.lookahead import LookaheadDraft
        from ..drafters.suffix import SuffixDraft

        return Method(name, {"assistant_model": SuffixDraft() if kind == "suffix" else LookaheadDraft(*sizes)}, True)
    if kind == "eagle3+suffix":
        from ..modeling_eagle3 import Eagle3DraftModel

        if not isinstance(draft, Eagle3DraftModel):
            raise ValueError(f"`--methods` {name!r} takes an EAGLE-3 draft, not a {type(draft).__name__}; omit it.")
        view = draft.with_tree("auto", shared_noise=shared_noise).with_suffix()
        return Method(name, {"assistant_model": view}, is_ours=True)
    mode = {"tree": "static"}.get(kind, kind)
    names = ("num_draft_tokens", "tree_depth", "tree_top_k") if kind == "tree" else ("tree_depth",)
    from ..generation.draft.interface import drafter_kind

    view = draft.with_tree(mode, shared_noise=shared_noise, **dict(zip(names, sizes, strict=False)))
    drafter_kind(draft).sizes(view)  # raises if the sizes are impossible
    return Method(name, {"assistant_model": view}, is_ours=True)


def _small(name: str, directory: str, assistant: Assistant | None, load_small, shared_noise: bool):
    from ..drafters.small_model import SmallModelDraft

    if not directory and (assistant is None or assistant.tokenizers):
        raise ValueError(
            f"`--methods` {name!r} needs a small model with the target's vocabulary: name its directory, as in "
            "small:DIRECTORY, or set `--assistant`."
        )
    draft = SmallModelDraft(load_small(directory) if directory else assistant.model)
    return draft.with_tree("auto", shared_noise=shared_noise)


def _assisted_options(name: str, sizes: list[int], assistant: Assistant | None) -> dict:
    if assistant is None:
        raise ValueError(f"`--methods` {name!r} needs a small model: set `--assistant` to its directory or Hub id.")
    model = assistant.model
    if sizes:  # a fixed number of tokens; by default transformers stops when the assistant is not confident
        model = copy.copy(model)
        model.generation_config = copy.deepcopy(model.generation_config)
        model.generation_config.num_assistant_tokens = sizes[0]
        model.generation_config.num_assistant_tokens_schedule = "constant"
        model.generation_config.assistant_confidence_threshold = 0.0
    return {"assistant_model": model, **assistant.tokenizers}
