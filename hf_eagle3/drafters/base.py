"""`Draft`: what the drafts of this package share: a tree's sizes, and views with other ones. Does not know calls."""

import copy
from collections.abc import Sequence
from typing import Any

from ..tree_config import TreeConfig


class Draft:
    """
    A draft that is no [`Eagle3DraftModel`], for `generate(assistant_model=...)`.

    Attributes:
        tree_config: Sizes of its trees.
        takes_shapes: Whether the shape of its trees can be given, in the mode "sparse".
    """

    tree_config: TreeConfig
    takes_shapes = False

    def with_tree(self, tree_mode: str, **sizes) -> Any:
        """
        A view with another tree: `num_draft_tokens`, `tree_depth`, `tree_top_k`, `shared_noise`, see [`TreeConfig`].

        Raises:
            ValueError: impossible sizes, a `draft_window`, which other drafts have, "host_chain", transformers' own
                loop, or "sparse" where the draft does not take shapes.
        """
        if tree_mode == "host_chain":
            raise ValueError(
                f"`tree_mode` 'host_chain' is transformers' own loop, which does not take a {type(self).__name__}; "
                "take 'chain'."
            )
        if tree_mode == "sparse" and not self.takes_shapes:
            raise ValueError(
                f"`tree_mode` 'sparse' does not go with a {type(self).__name__}, whose trees have the shape of what "
                "it finds; take 'static'."
            )
        if sizes.get("draft_window") is not None:
            raise ValueError(f"`draft_window` is {sizes['draft_window']}; a {type(self).__name__} has none, omit it.")
        view = copy.copy(self)
        view.tree_config = self.tree_config.with_changes(tree_mode, **sizes)
        return view

    def with_suffix(self, documents: Sequence[Sequence[int]] = ()) -> "Draft":
        """This draft with the proposals of a [`SuffixDraft`] in its trees, see [`GraftedDraft`]."""
        from .grafted import GraftedDraft

        return GraftedDraft(self, documents)
