"""A run as far as it has come: tokens of both ways, figures. Built from `race`'s events; does not know pages."""

from dataclasses import dataclass, field

from choices import summary, why
from race import PLAIN, SPECULATIVE, Event, Failed, Finished, PlainToken, Probabilities

from hf_eagle3 import CycleRecord, metrics
from hf_eagle3.token_ids import common_prefix_length


@dataclass(frozen=True)
class Figures:
    """One way: tokens so far; seconds of the latest token while it runs, of the whole call once it is through."""

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
        plain: Its tokens.
        cycles: Cycles of the speculative way; the first is the prompt's token.
        levels: Of each cycle's draft tree: how many tokens it could have accepted.
        finished: Ways that are through.
        probabilities: The target's, per token of the speculative way; empty until known.
        message: What went wrong, or that the run was stopped.
        is_stopped: Whether the visitor ended it.
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
        """Takes the next event of the run."""
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
        """Token ids of the speculative way."""
        if SPECULATIVE in self.finished:
            return self.finished[SPECULATIVE].tokens
        return [token for cycle in self.cycles for token in cycle.tokens]

    @property
    def speculated(self) -> list[CycleRecord]:
        """Cycles after the prompt's token."""
        return [cycle for cycle in self.cycles if cycle.cycle >= 0]

    @property
    def drafted_levels(self) -> list[int]:
        """`levels` of the cycles after the prompt's token."""
        return [levels for cycle, levels in zip(self.cycles, self.levels, strict=True) if cycle.cycle >= 0]

    def why(self, number: int) -> str:
        """
        Why the tree mode "auto" chose cycle `number`, from 1, as it did. Empty in other modes, while it runs, and
        where there was nothing to choose: in a last cycle of one token.
        """
        done = self.finished.get(SPECULATIVE)
        if done is None or len(done.choices) < number:
            return ""
        return why(done.choices[number - 1])

    @property
    def notes(self) -> list[str]:
        """What is worth knowing of the ways that are through."""
        found = []
        done = self.finished.get(SPECULATIVE)
        if done and done.why_plain:
            found.append(f"This ran without speculation: {done.why_plain}.")
        if cached := max((way.cached_tokens for way in self.finished.values()), default=0):
            found.append(f"{cached} tokens of the prompt were still in the cache of earlier turns and not run again.")
        if done and done.choices:
            found.append(summary(done.choices))
            if PLAIN in self.finished and done.seconds > self.finished[PLAIN].seconds:
                found.append("That was slower than plain generate, so auto will measure this machine anew.")
        return found

    def figures(self, way: str) -> Figures:
        """Of one way, as far as it has come."""
        if way in self.finished:
            done = self.finished[way]
            return Figures(len(done.tokens), done.seconds, True)
        if way == PLAIN:
            return Figures(len(self.plain), self.plain[-1].seconds if self.plain else 0.0, False)
        return Figures(len(self.ids), self.cycles[-1].seconds if self.cycles else 0.0, False)

    @property
    def identical(self) -> bool | None:
        """Whether both ways wrote the same token ids; `None` until both are through."""
        if not {PLAIN, SPECULATIVE} <= self.finished.keys():
            return None
        return self.finished[PLAIN].tokens == self.finished[SPECULATIVE].tokens

    @property
    def first_difference(self) -> int | None:
        """Index of the first token that differs, once both are through and differ."""
        if self.identical is not False:
            return None
        plain, ours = self.finished[PLAIN].tokens, self.finished[SPECULATIVE].tokens
        return common_prefix_length(plain, ours)

    @property
    def speedup(self) -> float | None:
        """Seconds per token, plain over speculative; `None` until both are through with something."""
        plain, ours = self.figures(PLAIN), self.figures(SPECULATIVE)
        if not (plain.is_finished and ours.is_finished and plain.num_tokens and ours.num_tokens):
            return None
        return metrics.speedup(plain.seconds / plain.num_tokens, ours.seconds / ours.num_tokens)

    @property
    def acceptance_length(self) -> float | None:
        """tau so far; `None` before the first cycle."""
        cycles = self.speculated
        return metrics.acceptance_length(sum(len(c.tokens) for c in cycles), len(cycles)) if cycles else None


def depths_of(parents: list[int]) -> list[int]:
    """Of each node of a tree; node 0 is the root, and a parent comes before its children."""
    depths = [0] * len(parents)
    for node in range(1, len(parents)):
        depths[node] = depths[parents[node]] + 1
    return depths
