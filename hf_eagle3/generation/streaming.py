"""What a streamer sees: each step's tokens once every row has taken it, and each cycle's tree and path.

Shape letters: A active rows.
"""

import time

from ..compat.outputs import BaseStreamer
from .batch import Rows
from .ending import Plan
from .stats import CycleRecord, CycleStreamer, SpeculationStats
from .tree.draft_tree import DraftTree
from .walk import Walk


class Reporter:
    """
    Args:
        streamer: The caller's, or `None`.
        stats: Where cycles are counted.
    """

    rows: Rows

    def __init__(self, streamer: BaseStreamer | None, stats: SpeculationStats):
        self.streamer, self.stats = streamer, stats
        self.started = time.perf_counter()
        self.streamed = 0  # steps handed to the streamer

    def report(self, tree: DraftTree, walk: Walk, plan: Plan) -> None:
        """Cycle records, then the tokens of all steps that no row has still to take."""
        if self.streamer is None:
            return
        rows = self.rows
        if isinstance(self.streamer, CycleStreamer):
            for a, is_live in enumerate(plan.is_live):
                if is_live:
                    self.streamer.on_cycle(self._record(a, tree, walk, plan))
        going = [rows.lengths[row] for row, end in zip(rows.active, plan.ends, strict=True) if not end]
        self._stream_up_to(min(going) if going else max(rows.lengths))

    def _record(self, a: int, tree: DraftTree, walk: Walk, plan: Plan) -> CycleRecord:
        row = self.rows.active[a]
        return CycleRecord(
            row=row,
            cycle=len(self.stats.accepted_tokens[row]) - 1,  # nothing is counted before the first: -1 is the prefill
            tokens=plan.tokens[a],
            num_accepted_tokens=plan.accepted[a],
            tree_tokens=tree.tokens[a].tolist(),
            tree_parents=tree.parents[a].tolist(),
            tree_scores=tree.scores[a].tolist(),
            accepted_nodes=walk.nodes[a, 1 : plan.accepted[a] + 1].tolist(),
            seconds=time.perf_counter() - self.started,
        )

    def _stream_up_to(self, length: int) -> None:
        rows = self.rows
        first = rows.prompt_length + self.streamed
        if length <= first:
            return
        for row, end in enumerate(rows.lengths):  # behind a row's end stands padding, not what was tried there
            if end < length:
                rows.ids[row, end:] = rows.pad_token_id
        for column in rows.ids[:, first:length].cpu().unbind(dim=1):
            self.streamer.put(column)
        self.streamed = length - rows.prompt_length

    def end(self) -> None:
        """After the last token."""
        if self.streamer is not None:
            self.streamer.end()
