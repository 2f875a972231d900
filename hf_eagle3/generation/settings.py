"""What one call is going to do, decided before it begins: tree or chain, sizes, policy; refusals of what does not go
together. Does not know sequences, passes or caches' contents."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, GenerationConfig

from ..compat.caches import window_of
from ..errors import CallRefused
from ..target.mode import DecodingMode, accepted_mode
from ..target.parts import is_sharded
from ..target.target import Target
from ..tree_config import TreeConfig
from .auto.calibration import GREEDY, OWN_NOISE, SHARED_NOISE
from .auto.costs import CostTable, context_bucket, cost_table
from .auto.planner import PASS_SIZES, AutoPlanner, few_sizes
from .auto.traits import MEASURED, DraftingTraits
from .compiled.shapes import StaticShapes
from .tree.policy import FixedPolicy, TreePolicy
from .tree.ranks import RankPolicy


# A chain's chance of full acceptance falls with its length; used where a target takes no tree.
CHAIN_DEPTH = 5


@dataclass(frozen=True)
class Settings:
    """
    Attributes:
        mode: Whether the target takes trees, and why not.
        sizes: Of the draft tree; the largest where the policy chooses.
        policy: How much of it is drafted and verified.
        pass_sizes: Nodes of a target pass, the root included, over static shapes; ascending.
        static: The call's static shapes, if it asked for them.
    """

    mode: DecodingMode
    sizes: TreeConfig
    policy: TreePolicy
    pass_sizes: tuple[int, ...]
    static: StaticShapes | None = None

    @property
    def room(self) -> int:
        """Most nodes of a pass. A path has T + 1 places, whatever N is."""
        return max(self.sizes.num_draft_tokens, self.sizes.tree_depth) + 1


def settle(
    target: Target,
    sizes: TreeConfig,
    cache: Cache | None,
    config: GenerationConfig,
    static: StaticShapes | None,
    device: torch.device,
    identity: Any,
    traits: DraftingTraits = MEASURED,
) -> Settings:
    """
    Settings of a call.

    Args:
        sizes: What the draft asks for.
        cache: The target's, empty or a user's.
        static: The call's static shapes.
        device: Where trees are grown.
        identity: What the costs of drafting are kept by.
        traits: Of the kind of draft.

    Raises:
        ValueError: the target allows no speculation, or options do not go together.
    """
    model = target.model
    mode = accepted_mode(model, cache)
    is_auto = sizes.tree_mode == "auto"
    if mode.kind == "chain" and not sizes.is_chain:
        depth = sizes.tree_depth if is_auto else min(CHAIN_DEPTH, sizes.tree_depth)
        sizes = sizes.with_changes("chain", tree_depth=depth)
    policy = RankPolicy(sizes) if sizes.tree_mode == "sparse" else FixedPolicy(sizes)
    pass_sizes = (sizes.num_draft_tokens + 1,)
    if is_auto and not is_sharded(model):  # processes that measure for themselves would choose different trees
        pass_sizes = PASS_SIZES if static is None else few_sizes(sizes.num_draft_tokens + 1)
        assumed = traits.assumed
        if assumed is None:
            assumed = GREEDY if not config.do_sample else SHARED_NOISE if sizes.shared_noise else OWN_NOISE
        costs = _CostsOf(target, identity, static is not None)
        policy = AutoPlanner(sizes, device, assumed, costs, pass_sizes, static is not None, traits)
    _refuse_combinations(mode, cache, config)
    return Settings(mode, sizes, policy, pass_sizes, static)


class _CostsOf:
    """Cost tables of a pair, the latest one kept: it is asked for in every cycle."""

    def __init__(self, target: Target, identity: Any, is_static: bool):
        self.pair, self.is_static = (target.model, identity), is_static
        self._size, self._table = None, None

    def __call__(self, num_sequences: int, context: int) -> CostTable:
        size = (num_sequences, context_bucket(context))
        if size != self._size:
            self._size, self._table = size, cost_table(*self.pair, *size, self.is_static)
        return self._table


def _refuse_combinations(mode: DecodingMode, cache: Cache, config: GenerationConfig) -> None:
    windows = any(window_of(layer) is not None for layer in cache.layers)
    if config.return_dict_in_generate and config.output_attentions and windows and mode.kind == "tree":
        raise CallRefused("`output_attentions` with sliding-window layers does not go with a draft; leave one out.")
