"""What one call is going to do, decided before it begins: tree or chain, its sizes, who plans them; and refusals of
what does not go together. Does not know rows, passes or caches' contents."""

from dataclasses import dataclass

from transformers import Cache, GenerationConfig

from ..compat.caches import window_of
from ..modeling_eagle3 import Eagle3DraftModel
from ..target.mode import DecodingMode, accepted_mode
from ..target.parts import is_sharded
from ..target.target import Target
from ..tree_config import TreeConfig
from .auto.calibration import GREEDY, OWN_NOISE, SHARED_NOISE
from .auto.planner import PASS_SIZES, AutoPlanner, few_sizes


# A chain's chance of full acceptance falls with its length; used where a target takes no tree.
CHAIN_DEPTH = 5


@dataclass(frozen=True)
class Settings:
    """
    Attributes:
        mode: Whether the target takes trees, and why not.
        sizes: Of the draft tree.
        planner: Who chooses how much of it, in the mode "auto".
        pass_sizes: Nodes of a target pass, the root included, over static shapes; ascending.
    """

    mode: DecodingMode
    sizes: TreeConfig
    planner: AutoPlanner | None
    pass_sizes: tuple[int, ...]

    @property
    def room(self) -> int:
        """Most nodes of a pass. A path has T + 1 places, whatever N is."""
        return max(self.sizes.num_draft_tokens, self.sizes.tree_depth) + 1


def settle(
    target: Target, draft: Eagle3DraftModel, cache: Cache | None, config: GenerationConfig, is_static: bool
) -> Settings:
    """
    Settings of a call.

    Args:
        cache: The target's, empty or a user's.
        is_static: Whether the call's passes have few shapes.

    Raises:
        ValueError: the target allows no speculation, or options do not go together.
    """
    model = target.model
    mode = accepted_mode(model, cache)
    sizes = draft.tree_config.fitted(draft.config.draft_vocab_size)
    is_auto = sizes.tree_mode == "auto"
    if mode.kind == "chain" and not sizes.is_chain:
        depth = sizes.tree_depth if is_auto else min(CHAIN_DEPTH, sizes.tree_depth)
        sizes = sizes.with_changes("chain", tree_depth=depth)
    planner, pass_sizes = None, (sizes.num_draft_tokens + 1,)
    if is_auto and not is_sharded(model):  # processes that measure for themselves would choose different trees
        pass_sizes = few_sizes(sizes.num_draft_tokens + 1) if is_static else PASS_SIZES
        assumed = GREEDY if not config.do_sample else SHARED_NOISE if sizes.shared_noise else OWN_NOISE
        planner = AutoPlanner(sizes, draft.fc.weight.device, assumed, pass_sizes, is_static)
    _refuse_combinations(target, mode, cache, config)
    return Settings(mode, sizes, planner, pass_sizes)


def _refuse_combinations(target: Target, mode: DecodingMode, cache: Cache, config: GenerationConfig) -> None:
    windows = any(window_of(layer) is not None for layer in cache.layers)
    if config.return_dict_in_generate and config.output_attentions and windows and mode.kind == "tree":
        raise ValueError("`output_attentions` with sliding-window layers does not go with a draft; leave one out.")
