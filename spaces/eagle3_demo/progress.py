"""State of a run: tokens of both methods and statistics, from the events of `race`. Does not know pages."""

from dataclasses import dataclass, field

from choices import summary, why
from race import PLAIN, SPECULATIVE, Event, Failed, Finished, PlainToken, Probabilities

from hf_eagle3 import CycleRecord, metrics
from hf_eagle3.token_ids import common_prefix_length


@dataclass(frozen=True)
class Figures:
    """Tokens of one method so far, and seconds until the latest token or, if finished, of the whole call."""

    num_tokens: int
    seconds: float
    is_finished: bool

    @property
    def rate(self) -> float | None:
        """Tokens per second."""
        return self.num_tokens / self.seconds if self.num_tokens and self.seconds > 0 else None


@dataclass
class Progress:
    """
    Attributes:
        compare: Whether plain generate runs as well.
        prompt_tokens: Length of the prompt.
        plain: Tokens of plain generate.
        cycles: Cycles of speculative generation; the first contains only the token of prefill.
        levels: Depth of each cycle's draft tree: the most tokens that it could have accepted.
        finished: Finished methods.
        probabilities: The target's probability of each speculative token; empty until known.
        message: An error, or a note that the run was stopped.
        is_stopped: Whether the user stopped it.
    """

    compare: bool = True
    prompt_tokens: int = 0
    plain: list[PlainToken] = field(default_factory=list)
    cycles: list[CycleRecord] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)
    finished: dict[str, Finished] = field(default_factory=dict)
    probabilities: list[float] = field(default_factory=list)
    message: str = ""
    is_stopped: bool = False

    def add(self, event: Event) -> None:
        """Process the next event of the run."""
        if isinstance(event, PlainToken):
            self.plain.append(event)
        elif isinstance(event, CycleRecord):
            self.cycles.append(event)
            self.levels.append(max(depths_of(event.tree_parents)))
        elif isinstance(event, Finished):
            self.finished[event.way] = event
        elif isinstance(event, Probabilities):
            self.probabilities = event.values
        elif isinstance(event, Failed):
            self.message = event.message

    @property
    def plain_ids(self) -> list[int]:
        """Token ids of plain generate."""
        return [event.token for event in self.plain]

    @property
    def ids(self) -> list[int]:
        """Token ids of speculative generation."""
        if SPECULATIVE in self.finished:
            return self.finished[SPECULATIVE].tokens
        return [token for cycle in self.cycles for token in cycle.tokens]

    @property
    def speculated(self) -> list[CycleRecord]:
        """Cycles after prefill."""
        return [cycle for cycle in self.cycles if cycle.cycle >= 0]

    @property
    def drafted_levels(self) -> list[int]:
        """`levels` of the cycles after prefill."""
        return [levels for cycle, levels in zip(self.cycles, self.levels, strict=True) if cycle.cycle >= 0]

    def why(self, number: int) -> str:
        """
        The reason for the choice of the tree mode "auto" in cycle `number`, from 1. Empty in other modes, during the
        run, and in a last cycle of one token, where there is no choice.
        """
        done = self.finished.get(SPECULATIVE)
        if done is None or len(done.choices) < number:
            return ""
        return why(done.choices[number - 1])

    @property
    def notes(self) -> list[str]:
        """Remarks on the finished methods."""
        found = []
        done = self.finished.get(SPECULATIVE)
        if done and done.why_plain:
            found.append(f"This ran without speculation: {done.why_plain}.")
        if cached := max((way.cached_tokens for way in self.finished.values()), default=0):
            found.append(f"{cached} tokens of the prompt were reused from the cache of earlier turns.")
        if done and done.choices:
            found.append(summary(done.choices))
            if PLAIN in self.finished and done.seconds > self.finished[PLAIN].seconds:
                found.append("This was slower than plain generate, so auto will measure this machine again.")
        return found

    def figures(self, way: str) -> Figures:
        """Statistics of one method so far."""
        if way in self.finished:
            done = self.finished[way]
            return Figures(len(done.tokens), done.seconds, True)
        if way == PLAIN:
            return Figures(len(self.plain), self.plain[-1].seconds if self.plain else 0.0, False)
        return Figures(len(self.ids), self.cycles[-1].seconds if self.cycles else 0.0, False)

    @property
    def identical(self) -> bool | None:
        """Whether both methods generated the same token ids; `None` until both have finished."""
        if not {PLAIN, SPECULATIVE} <= self.finished.keys():
            return None
        return self.finished[PLAIN].tokens == self.finished[SPECULATIVE].tokens

    @property
    def first_difference(self) -> int | None:
        """Index of the first differing token, if both have finished and differ."""
        if self.identical is not False:
            return None
        plain, ours = self.finished[PLAIN].tokens, self.finished[SPECULATIVE].tokens
        return common_prefix_length(plain, ours)

    @property
    def speedup(self) -> float | None:
        """Seconds per token of plain over speculative generation; `None` until both have finished with tokens."""
        plain, ours = self.figures(PLAIN), self.figures(SPECULATIVE)
        if not (plain.is_finished and ours.is_finished and plain.num_tokens and ours.num_tokens):
            return None
        return metrics.speedup(plain.seconds / plain.num_tokens, ours.seconds / ours.num_tokens)

    @property
    def acceptance_length(self) -> float | None:
        """Running tau; `None` before the first cycle."""
        cycles = self.speculated
        return metrics.acceptance_length(sum(len(c.tokens) for c in cycles), len(cycles)) if cycles else None


def depths_of(parents: list[int]) -> list[int]:
    """Depth of each node of a tree; node 0 is the root, and parents precede their children."""
    depths = [0] * len(parents)
    for node in range(1, len(parents)):
        depths[node] = depths[parents[node]] + 1
    return depths
