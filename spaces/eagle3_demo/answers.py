"""Both ways' texts, and the turns of a chat, as HTML. Everything that a visitor or a model wrote is escaped."""

from collections.abc import Sequence
from html import escape

from tokens import LEGEND


def answers_html(ours: str, plain: str, compare: bool) -> str:
    """Both texts side by side, under one another on a phone; `ours` and `plain` are HTML, plain only in a race."""
    parts = [f'<section><h4>With the draft</h4><div class="answer" data-way="ours">{ours}</div>{LEGEND}</section>']
    if compare:
        section = f'<section><h4>Plain generate</h4><div class="answer" data-way="plain">{plain}</div></section>'
        parts.insert(0, section)
    return f'<div class="texts">{"".join(parts)}</div>'


def chat_html(messages: Sequence[dict[str, str]]) -> str:
    """The turns so far, the newest in view: its box is laid out from the bottom, so turns come last first."""
    turns = [f'<div class="turn {turn["role"]}">{escape(turn["content"])}</div>' for turn in reversed(messages)]
    return f'<div class="chat" role="log" aria-label="chat">{"".join(turns) or "<small>No turns yet.</small>"}</div>'
