"""What the loop asks of whatever proposes tokens, and how a kind of draft is registered.

The walk commits only what the target chooses, so that a drafter may propose anything, by any means. One is opened per
call of `generate`, is fed what the target computed, and grows a tree per cycle:

    register_drafter(MyDraft, MyDrafter)      # MyDrafter(my_draft, context) is a Drafter
    target.generate(**inputs, assistant_model=MyDraft(...))

Shape letters: B sequences of the batch, A active ones, m new entries, F features, H hidden.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import Cache, PreTrainedModel

from ...target.target import Target
from ...tree_config import TreeConfig
from ..auto.traits import MEASURED, DraftingTraits
from ..batch import Batch
from ..ops.transfer import on_device
from ..sampling.noise import StepNoise
from ..settings import Settings
from ..stats import PhaseTimer
from ..tree.draft_tree import DraftTree
from ..tree.policy import TreePolicy
from .ranking import Warp


@dataclass
class DraftInputs:
    """
    What the target computed for tokens that were committed, m per active sequence.

    Args:
        tokens: The token *behind* each feature's, (A, m); or `embeds`, its embedding rows (A, m, H).
        features: (A, m, F).
        slots, positions: Place in the caches and RoPE position of each feature's token, (A, m).
        counts: How many of each sequence's entries are real; padding follows.
        last_slot, first_slot: The largest and the smallest of `slots`, known without asking the device.
        valid: (A, m), False at entries that must never be attended to, for padding on the left.
    """

    tokens: torch.Tensor | None
    features: torch.Tensor
    slots: torch.Tensor
    positions: torch.Tensor
    counts: list[int]
    last_slot: int
    first_slot: int = 0
    valid: torch.Tensor | None = None
    embeds: torch.Tensor | None = None

    @property
    def is_even(self) -> bool:
        """Whether every sequence has all m of them."""
        return self.valid is None and self.embeds is None and min(self.counts) == self.features.shape[1]

    def select(self, kept: list[int]) -> "DraftInputs":
        """Those of the sequences at the places `kept`."""
        names = ("tokens", "features", "slots", "positions", "valid", "embeds")
        held = {name: value for name in names if (value := vars(self)[name]) is not None}
        picked = {name: value[on_device(kept, value.device)] for name, value in held.items()}
        return replace(self, counts=[self.counts[place] for place in kept], **picked)


@dataclass
class Prompt:
    """
    What the target computed for the prompt.

    Args:
        features: Of the tokens that this call's prefill ran, (B, m, F).
        num_cached: Tokens that the cache held before.
        first_tokens: The tokens chosen behind the prompt, (B, 1).
        embeds: The prompt where it was given as embeddings, (B, m, H).
        cache: The target's; what a drafter left on it in an earlier call may still be there.
        is_read: Whether a cycle will follow.
    """

    features: torch.Tensor
    num_cached: int
    first_tokens: torch.Tensor
    embeds: torch.Tensor | None
    cache: Cache
    is_read: bool


@dataclass
class Roots:
    """
    Where a tree of every active sequence hangs.

    Args:
        tokens: The last committed tokens, (A,).
        positions: RoPE position of the token before each root; level d of the tree lies d behind it.
        steps: The decoding step that level 1's tokens belong to.
        sequences: Original numbers of the active sequences, for noise that is drawn per sequence.
    """

    tokens: torch.Tensor
    positions: list[int]
    steps: list[int]
    sequences: list[int]


@dataclass
class DraftContext:
    """
    What a drafter is opened with.

    Attributes:
        target: Embedding rows, head and features of the target.
        batch: Tokens and lengths of the sequences; read only.
        settings: The call's; its `sizes` are the largest tree wanted.
        noise: The coming steps' noise under shared noise, else `None`.
        warp: The request's temperature, top-k and top-p.
        timer: Where phases are timed.
        max_length: Tokens that a sequence can reach.
    """

    target: Target
    batch: Batch
    settings: Settings
    noise: StepNoise | None
    warp: Warp
    timer: PhaseTimer
    max_length: int


class Drafter:
    """
    Proposes trees within one call of `generate`.

    Attributes:
        device: Where its trees lie.
        reads_choices: Whether `observe` is wanted.
    """

    device: torch.device
    reads_choices = False

    def start(self, prompt: Prompt) -> None:
        """The prompt has been read and the first token chosen."""

    def extend(self, inputs: DraftInputs) -> None:
        """Tokens were committed. May wait until `grow` needs it: after plain steps several come at once."""

    def grow(self, roots: Roots, depth: int, policy: TreePolicy) -> DraftTree:
        """A tree of at most `depth` levels below each root; siblings carry different tokens, parents come first."""
        raise NotImplementedError

    def observe(self, tree: DraftTree, logits: torch.Tensor) -> None:
        """What the target computed at every node of a verified tree, accepted or not: `logits` (A, N + 1, V)."""

    def select(self, kept: list[int]) -> None:
        """Only the active sequences at the places `kept` continue, in that order."""

    def close(self, cache: Cache | None) -> None:
        """The call ends; `cache` goes back to the caller, who may continue on it in another call."""


@dataclass(frozen=True)
class DrafterKind:
    """
    A registered kind of draft.

    Attributes:
        open: (assistant, context) -> [`Drafter`].
        fit: (assistant, target) -> the assistant for that target; raises ValueError if it does not fit.
        sizes: assistant -> the [`TreeConfig`] of its trees.
        features: assistant -> the configuration that names the tapped layers, an [`Eagle3Config`] or one with its
            fields of the target, or `None`: no features are read.
        vocabulary: assistant -> target ids of the tokens that it can propose, (D,); `None`: any.
        device: (assistant, target) -> where its trees are grown.
        identity: assistant -> what views of one draft share, by which the mode "auto" keeps measured costs.
        traits: assistant -> what the mode "auto" takes for granted, see [`DraftingTraits`].
        reads: A parsed `config.json` -> whether it is of this kind, so that its directory can be given by name.
        adopts: Any model -> a draft of this kind that shares its weights, or `None`: it is something else.
        speculation_types: Values of transformers' `speculation_type` that mean this kind.
    """

    open: Callable[[Any, DraftContext], Drafter]
    fit: Callable[[Any, PreTrainedModel], Any] = lambda assistant, target: assistant
    sizes: Callable[[Any], TreeConfig] = lambda assistant: assistant.tree_config
    features: Callable[[Any], Any] = lambda assistant: None
    vocabulary: Callable[[Any], torch.Tensor | None] = lambda assistant: None
    device: Callable[[Any, PreTrainedModel], torch.device] = lambda assistant, target: target.device
    identity: Callable[[Any], Any] = lambda assistant: assistant
    traits: Callable[[Any], DraftingTraits] = lambda assistant: MEASURED
    reads: Callable[[dict], bool] = lambda config: False
    adopts: Callable[[Any], Any | None] = lambda model: None
    speculation_types: tuple[str, ...] = ()


_KINDS: dict[type, DrafterKind] = {}


def register_drafter(assistant_type: type, open: Callable[[Any, DraftContext], Drafter], **others: Any) -> None:
    """Let `generate` take assistants of `assistant_type`, subclasses included; for `others` see [`DrafterKind`]."""
    _KINDS[assistant_type] = DrafterKind(open, **others)


def draft_class(config: dict, default: type) -> type:
    """The registered type that reads a draft with this parsed `config.json`; `default`: none does."""
    return next((cls for cls, kind in _KINDS.items() if kind.reads(config)), default)


def as_draft(assistant: Any) -> Any | None:
    """`assistant` if it is of a registered kind, or what a kind makes of it; `None`: none knows it."""
    if drafter_kind(assistant) is not None:
        return assistant
    adopted = (kind.adopts(assistant) for kind in _KINDS.values())
    return next((draft for draft in adopted if draft is not None), None)


def drafter_kind(assistant: Any) -> DrafterKind | None:
    """What is registered for `assistant`; `None`: nothing is."""
    return next((_KINDS[cls] for cls in type(assistant).__mro__ if cls in _KINDS), None)
