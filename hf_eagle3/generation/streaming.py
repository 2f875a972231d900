"""What a streamer sees: each step's tokens once every sequence has taken it, and each cycle's tree and path.

Shape letters: A active sequences.
"""

import time

from ..compat.outputs import BaseStreamer
from .batch import Batch
from .ending import Plan
from .stats import CycleRecord, CycleStreamer, SpeculationStats
from .tree.draft_tree import DraftTree
from .walk import Walk


class Reporter:
    """
    Args:
        streamer: The caller's, or `None`.
        batch: The sequences.
        stats: Where cycles are counted.
        started: When the call began, by `time.perf_counter`.
    """

    def __init__(self, streamer: BaseStreamer | None, batch: Batch, stats: SpeculationStats, started: float):
        self.streamer, self.batch, self.stats, self.started = streamer, batch, stats, started
        self.streamed = 0  # steps handed to the streamer

    def report(self, tree: DraftTree, walk: Walk, plan: Plan) -> None:
        """Cycle records, then the tokens of all steps that every sequence has taken."""
        if self.streamer is None:
            return
        batch = self.batch
        if isinstance(self.streamer, CycleStreamer):
            for a, is_live in enumerate(plan.is_live):
                if is_live:
                    self.streamer.on_cycle(self._record(a, tree, walk, plan))
        running = [batch.lengths[n] for n, leaves in zip(batch.active, plan.leaves, strict=True) if not leaves]
        self._stream_up_to(min(running) if running else max(batch.lengths))

    def _record(self, a: int, tree: DraftTree, walk: Walk, plan: Plan) -> CycleRecord:
        number = self.batch.active[a]
        return CycleRecord(
            row=number,
            cycle=len(self.stats.accepted_tokens[number]) - 1,  # the prefill is not counted: -1
            tokens=plan.tokens[a],
            num_accepted_tokens=plan.accepted[a],
            tree_tokens=tree.tokens[a].tolist(),
            tree_parents=tree.parents[a].tolist(),
            tree_scores=tree.scores[a].tolist(),
            accepted_nodes=walk.nodes[a, 1 : plan.accepted[a] + 1].tolist(),
            seconds=time.perf_counter() - self.started,
        )

    def _stream_up_to(self, length: int) -> None:
        batch = self.batch
        first = batch.prompt_length + self.streamed
        if length <= first:
            return
        for number, end in enumerate(batch.lengths):  # behind an end stands padding, not what was tried there
            if end < length:
                batch.ids[number, end:] = batch.pad_token_id
        for column in batch.ids[:, first:length].cpu().unbind(dim=1):
            self.streamer.put(column)
        self.streamed = length - batch.prompt_length

    def end(self) -> None:
        """After the last token."""
        if self.streamer is not None:
            self.streamer.end()
