"""`TreeConfig`: the sizes of the draft tree, validated, with their defaults. Does not know how trees are drafted."""

from dataclasses import asdict, dataclass, fields, replace

from transformers import GenerationConfig


MODES = ("auto", "static", "chain", "host_chain", "sparse")
# Shapes of "sparse" trees: per level, how many children each node of the level above has, in the order of ranks;
# nodes without children at a level's end are left out.
SPARSE_TREES: dict[str, tuple[tuple[int, ...], ...]] = {
    # EAGLE (arXiv 2401.15077), figure 7: 25 nodes.
    "eagle": ((4,), (3, 2, 2, 1), (3, 2, 2, 1), (3,), (2,)),
    # Medusa (arXiv 2401.10774), figure 6: 63 nodes, for Vicuna-7B; also what Hydra's code takes.
    "medusa": (
        (10,),
        (10, 7, 3, 2, 1, 1, 1, 1, 1, 1),
        (10, 3, 2, 1, 1, 1, 1, 1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 1),
        (2,),
    ),
}
# Bounds the (nodes, nodes) mask and the target pass of a verification.
MAX_DRAFT_TOKENS = 1024


@dataclass(frozen=True)
class TreeConfig:
    """
    Sizes of the draft tree.

    Args:
        tree_mode: "auto" (in each cycle, the number of levels and nodes that is fastest on this machine, possibly
            none; the sizes are upper limits), "static" (EAGLE-2's tree: the best `num_draft_tokens` nodes), "chain"
            (one child per level), "host_chain" (a chain in transformers' own assisted decoding, with its limits), or
            "sparse" (the shape `sparse_tree`, by rank, whatever the probabilities).
        num_draft_tokens: Nodes verified per cycle, without the root. The original code's `total_token` 60 counts the
            root. For chains it equals `tree_depth`.
        tree_depth: Levels below the root: the most draft tokens that one cycle can accept. The original code's
            `depth` 7 drafts 8 levels.
        tree_top_k: Children per node, and nodes expanded per level.
        shared_noise: When sampling, rank children with the noise that the coming steps will use, so that the draft
            predicts the sample instead of the mode. Never changes the output.
        sparse_tree: Shape of the mode "sparse": "eagle" or "medusa", as before EAGLE-2.
        draft_window: Latest positions that the draft attends to, and keeps in its cache, beside the first four, for
            contexts longer than the draft was trained on. `None`: the draft configuration's; 0: all positions.

    Raises:
        ValueError: impossible sizes.

    Source: EAGLE-2 (arXiv 2406.16858); defaults of the original repository.
    """

    tree_mode: str = "auto"
    num_draft_tokens: int = 59
    tree_depth: int = 8
    tree_top_k: int = 10
    shared_noise: bool = True
    sparse_tree: str = "eagle"
    draft_window: int | None = None

    def __post_init__(self):
        if self.tree_mode not in MODES:
            raise ValueError(f"`tree_mode` is {self.tree_mode!r}; known are {', '.join(map(repr, MODES))}.")
        if self.sparse_tree not in SPARSE_TREES:
            raise ValueError(f"`sparse_tree` is {self.sparse_tree!r}; known are {', '.join(map(repr, SPARSE_TREES))}.")
        if self.is_chain:
            object.__setattr__(self, "tree_top_k", 1)
            object.__setattr__(self, "num_draft_tokens", self.tree_depth)
        for name in ("num_draft_tokens", "tree_depth", "tree_top_k"):
            value = vars(self)[name]
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"`{name}` is {value!r}; pass an integer of at least 1.")
        if not isinstance(self.shared_noise, bool):
            raise ValueError(f"`shared_noise` is {self.shared_noise!r}; pass True or False.")
        window = self.draft_window
        if window is not None and (not isinstance(window, int) or isinstance(window, bool) or window < 0):
            raise ValueError(f"`draft_window` is {window!r}; pass the number of positions, 0 for all, or None.")
        if self.num_draft_tokens > MAX_DRAFT_TOKENS or self.tree_depth > MAX_DRAFT_TOKENS:
            raise ValueError(
                f"`num_draft_tokens` {self.num_draft_tokens} or `tree_depth` {self.tree_depth} exceeds "
                f"{MAX_DRAFT_TOKENS}; useful trees have 5 to 100 nodes."
            )
        if self.tree_mode == "sparse":  # sizes are limits of a given shape
            levels = SPARSE_TREES[self.sparse_tree][: self.tree_depth]
            object.__setattr__(self, "tree_depth", len(levels))
            object.__setattr__(self, "num_draft_tokens", min(self.num_draft_tokens, sum(map(sum, levels))))
            expanded = (sum(count > 0 for count in level) for level in levels)
            object.__setattr__(self, "tree_top_k", max(*map(max, levels), *expanded))
        if self.tree_mode == "auto":  # sizes are limits
            object.__setattr__(self, "num_draft_tokens", min(self.num_draft_tokens, self.pool_size))
        if self.num_draft_tokens > self.pool_size:
            raise ValueError(
                f"`num_draft_tokens` is {self.num_draft_tokens}, but `tree_depth` {self.tree_depth} with `tree_top_k` "
                f"{self.tree_top_k} drafts only {self.pool_size} nodes; lower it or raise one of those."
            )

    @property
    def is_chain(self) -> bool:
        """Whether every node has at most one child."""
        return self.tree_mode in ("chain", "host_chain")

    @property
    def pool_size(self) -> int:
        """Nodes scored while drafting: k children of the root, then k children of k nodes per further level."""
        return self.tree_top_k + (self.tree_depth - 1) * self.tree_top_k**2

    def with_changes(self, tree_mode: str, **sizes) -> "TreeConfig":
        """
        A copy in `tree_mode` with other sizes; unknown names raise TypeError. Sizes not given keep their values if the
        mode stays the same, else they get the defaults.
        """
        kept = self
        if tree_mode != self.tree_mode:
            kept = TreeConfig(shared_noise=self.shared_noise, draft_window=self.draft_window)
        if tree_mode == "sparse":  # the whole shape
            sizes = {"num_draft_tokens": MAX_DRAFT_TOKENS, "tree_depth": MAX_DRAFT_TOKENS} | sizes
        if tree_mode in ("chain", "host_chain"):
            if "num_draft_tokens" in sizes:
                nodes = sizes.pop("num_draft_tokens")
                if sizes.setdefault("tree_depth", nodes) != nodes:
                    raise ValueError(
                        f"`num_draft_tokens` is {nodes} and `tree_depth` {sizes['tree_depth']}: a chain has one node "
                        "per level; give one of the two."
                    )
            if tree_mode != self.tree_mode:
                sizes.setdefault("tree_depth", 5)
        return replace(kept, tree_mode=tree_mode, **sizes)

    def shallower(self, tree_depth: int) -> "TreeConfig":
        """A copy with at most `tree_depth` levels, and no more nodes than they can have."""
        if tree_depth >= self.tree_depth:
            return self
        pool = self.tree_top_k + (tree_depth - 1) * self.tree_top_k**2
        return replace(self, tree_depth=tree_depth, num_draft_tokens=min(self.num_draft_tokens, pool))

    def limited(self, num_tokens: int) -> "TreeConfig":
        """
        A copy that drafts at most `num_tokens` per cycle, for `generate`'s `num_assistant_tokens`.

        Raises:
            ValueError: `num_tokens` is no integer of at least 1.
        """
        if not isinstance(num_tokens, int) or isinstance(num_tokens, bool) or num_tokens < 1:
            raise ValueError(f"`num_assistant_tokens` is {num_tokens!r}; it must be an integer of at least 1.")
        shallow = self.shallower(num_tokens)
        return replace(shallow, num_draft_tokens=min(num_tokens, shallow.num_draft_tokens))

    def fitted(self, draft_vocab_size: int) -> "TreeConfig":
        """
        A copy for a draft vocabulary of the given size, no deeper than the number of nodes allows.

        Raises:
            ValueError: `tree_top_k` exceeds the vocabulary (mode "auto" lowers it instead).
        """
        if self.tree_mode == "auto":
            return replace(self, tree_top_k=min(self.tree_top_k, draft_vocab_size))
        if self.tree_top_k > draft_vocab_size:
            raise ValueError(
                f"`tree_top_k` is {self.tree_top_k}, but the draft vocabulary has only {draft_vocab_size} tokens; "
                "lower it (`with_tree`)."
            )
        return self.shallower(self.num_draft_tokens)

    def write_to(self, generation_config: GenerationConfig) -> None:
        """Store the fields in `generation_config`, as extra attributes."""
        for name, value in asdict(self).items():
            setattr(generation_config, name, value)

    @classmethod
    def read_from(cls, generation_config: GenerationConfig) -> "TreeConfig":
        """The fields stored in `generation_config`, with defaults for missing ones."""
        stored = generation_config.to_dict()
        return cls(**{f.name: stored[f.name] for f in fields(cls) if stored.get(f.name) is not None})
