"""Generated tokens as HTML, coloured by origin. Does not know models: a tokenizer is anything that decodes."""

import math
from dataclasses import dataclass
from html import escape

from hf_eagle3 import CycleRecord
from hf_eagle3.token_ids import Decoder, IncrementalDecoder


DEEPEST = 8  # further levels share a colour
VISIBLE = {" ": "·", "\n": "⏎", "\t": "⇥"}


@dataclass
class Span:
    """One token of the page; `depth` 0 is the target's own. `draft_probability` given the path before it."""

    text: str
    depth: int
    cycle: int
    draft_probability: float | None = None
    target_probability: float | None = None

    def html(self) -> str:
        """The token, escaped, with its hint."""
        origin = f"d{min(self.depth, DEEPEST)}" if self.depth else "own"
        hint = escape(self.hint())
        return f'<span class="{origin}" tabindex="-1" data-hint="{hint}">{escape(self.text)}</span>'

    def hint(self) -> str:
        """What hovering shows."""
        if self.cycle < 0:
            lines = ["the target's own, before any cycle"]
        elif self.depth:
            lines = [f"accepted draft token, depth {self.depth}", f"cycle {self.cycle + 1}"]
        else:
            lines = ["the target's own", f"cycle {self.cycle + 1}"]
        if self.draft_probability is not None:
            lines.append(f"draft: {percent(self.draft_probability)}")
        if self.target_probability is not None:
            lines.append(f"target: {percent(self.target_probability)}")
        return " | ".join(lines)


class ColouredText:
    """The speculative way's text; tokens are told apart by the cycles that brought them."""

    def __init__(self, tokenizer: Decoder):
        self.decoder = IncrementalDecoder(tokenizer)
        self.spans: list[Span] = []
        self._html: list[str] = []

    def add(self, record: CycleRecord) -> None:
        """Appends a cycle's tokens."""
        for place, token in enumerate(record.tokens):
            is_draft = place < record.num_accepted_tokens
            span = Span(
                self.decoder.add(token),
                depth=place + 1 if is_draft else 0,
                cycle=record.cycle,
                draft_probability=node_probability(record, record.accepted_nodes[place]) if is_draft else None,
            )
            self.spans.append(span)
            self._html.append(span.html())

    def add_probabilities(self, values: list[float]) -> None:
        """The target's, of all tokens; a text that came without cycles has no spans to give them to."""
        for span, value in zip(self.spans, values, strict=False):
            span.target_probability = value
        self._html = [span.html() for span in self.spans]

    def html(self) -> str:
        """All tokens so far."""
        return "".join(self._html)

    @property
    def text(self) -> str:
        """The same without colours."""
        return "".join(span.text for span in self.spans)


class PlainText:
    """Plain generate's text, escaped."""

    def __init__(self, tokenizer: Decoder):
        self.decoder = IncrementalDecoder(tokenizer)
        self.text = ""

    def add(self, token: int) -> None:
        """Appends a token."""
        self.text += self.decoder.add(token)

    def html(self) -> str:
        """The text so far."""
        return escape(self.text)


def node_probability(record: CycleRecord, node: int) -> float:
    """Of a node given its parent, as the draft ranked it: a softmax under shared noise where the run samples."""
    scores = record.tree_scores
    return min(1.0, math.exp(scores[node] - scores[record.tree_parents[node]]))


def percent(probability: float) -> str:
    """Rounded; small ones are "<1%"."""
    return f"{probability:.0%}" if probability >= 0.01 else "<1%"


def visible(text: str) -> str:
    """A token's text with its white space shown; an empty one is part of a character."""
    return "".join(VISIBLE.get(character, character) for character in text) or "…"


LEGEND = (
    '<div class="legend"><span class="own">target\'s own</span> accepted, by depth: '
    + " ".join(f'<span class="d{depth}">{depth}{"+" if depth == DEEPEST else ""}</span>' for depth in range(1, 9))
    + "</div>"
)
