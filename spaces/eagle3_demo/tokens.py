"""Generated tokens as HTML, coloured by origin. Does not know models; a tokenizer only needs `decode`."""

import math
from dataclasses import dataclass
from html import escape

from hf_eagle3 import CycleRecord
from hf_eagle3.token_ids import Decoder, IncrementalDecoder


MAX_DEPTH = 8  # deeper levels share a colour
VISIBLE = {" ": "·", "\n": "⏎", "\t": "⇥"}


@dataclass
class Span:
    """
    One token, `seconds` after the start of the call; `depth` 0 is the target's own. `draft_probability` is conditional
    on the path before it.
    """

    text: str
    depth: int
    cycle: int
    seconds: float = 0.0
    draft_probability: float | None = None
    target_probability: float | None = None

    def html(self) -> str:
        """The escaped token with its hint."""
        origin = f"d{min(self.depth, MAX_DEPTH)}" if self.depth else "own"
        hint = escape(self.hint())
        place = f'class="{origin}" tabindex="-1" data-at="{self.seconds:.3f}" data-hint="{hint}"'
        return f"<span {place}>{escape(self.text)}</span>"

    def hint(self) -> str:
        """Text shown on hovering."""
        if self.cycle < 0:
            lines = ["the target's own token, from prefill"]
        elif self.depth:
            lines = [f"accepted draft token, depth {self.depth}", f"cycle {self.cycle + 1}"]
        else:
            lines = ["the target's own token", f"cycle {self.cycle + 1}"]
        if self.draft_probability is not None:
            lines.append(f"draft: {percent(self.draft_probability)}")
        if self.target_probability is not None:
            lines.append(f"target: {percent(self.target_probability)}")
        return " | ".join(lines)


class ColouredText:
    """Text of speculative generation, coloured by the cycle records."""

    def __init__(self, tokenizer: Decoder):
        self.decoder = IncrementalDecoder(tokenizer)
        self.spans: list[Span] = []
        self._html: list[str] = []

    def add(self, record: CycleRecord) -> None:
        """Append the tokens of a cycle."""
        for place, token in enumerate(record.tokens):
            is_draft = place < record.num_accepted_tokens
            span = Span(
                self.decoder.add(token),
                depth=place + 1 if is_draft else 0,
                cycle=record.cycle,
                seconds=record.seconds,
                draft_probability=node_probability(record, record.accepted_nodes[place]) if is_draft else None,
            )
            self.spans.append(span)
            self._html.append(span.html())

    def add_probabilities(self, values: list[float]) -> None:
        """Add the target's probability to each span."""
        for span, value in zip(self.spans, values, strict=False):
            span.target_probability = value
        self._html = [span.html() for span in self.spans]

    def html(self) -> str:
        """All tokens so far."""
        return "".join(self._html)

    @property
    def text(self) -> str:
        """The text without markup."""
        return "".join(span.text for span in self.spans)


class PlainText:
    """Text of plain generate."""

    def __init__(self, tokenizer: Decoder):
        self.decoder = IncrementalDecoder(tokenizer)
        self.text = ""
        self._html: list[str] = []

    def add(self, token: int, seconds: float = 0.0) -> None:
        """Append a token, generated `seconds` after the start of the call."""
        piece = self.decoder.add(token)
        self.text += piece
        self._html.append(f'<span data-at="{seconds:.3f}">{escape(piece)}</span>')

    def html(self) -> str:
        """The escaped text so far."""
        return "".join(self._html)


def node_probability(record: CycleRecord, node: int) -> float:
    """The draft's probability of a node given its parent; with shared noise a softmax of noisy scores."""
    scores = record.tree_scores
    return min(1.0, math.exp(scores[node] - scores[record.tree_parents[node]]))


def percent(probability: float) -> str:
    """Rounded percentage; "<1%" for small values."""
    return f"{probability:.0%}" if probability >= 0.01 else "<1%"


def visible(text: str) -> str:
    """A token's text with visible white space; an ellipsis for an incomplete character."""
    return "".join(VISIBLE.get(character, character) for character in text) or "…"


LEGEND = (
    '<div class="legend"><span class="own">target\'s own</span> accepted, by depth: '
    + " ".join(f'<span class="d{depth}">{depth}{"+" if depth == MAX_DEPTH else ""}</span>' for depth in range(1, 9))
    + "</div>"
)
