"""The generated texts and the turns of a chat as HTML. Text from users and models is escaped."""

from collections.abc import Sequence
from html import escape

from tokens import LEGEND


def answers_html(ours: str, plain: str, compare: bool) -> str:
    """Both texts (HTML) side by side, or stacked on a phone; `plain` is shown only if `compare`."""
    parts = [f'<section><h4>With the draft</h4><div class="answer" data-way="ours">{ours}</div>{LEGEND}</section>']
    if compare:
        section = f'<section><h4>Plain generate</h4><div class="answer" data-way="plain">{plain}</div></section>'
        parts.insert(0, section)
    return f'<div class="texts">{"".join(parts)}</div>'


def chat_html(messages: Sequence[dict[str, str]]) -> str:
    """The turns so far. The box is laid out from the bottom to keep the newest in view, so turns are reversed."""
    turns = [f'<div class="turn {turn["role"]}">{escape(turn["content"])}</div>' for turn in reversed(messages)]
    return f'<div class="chat" role="log" aria-label="chat">{"".join(turns) or "<small>No turns yet.</small>"}</div>'
