"""The generated texts and the turns of a chat as HTML. Text from users and models is escaped."""

import re
from collections.abc import Mapping, Sequence
from html import escape

from tokens import LEGEND


CODE = re.compile(
    r"""```|^\s*(?:def\s+\w+\(|class\s+\w+[:({]|import\s+\w+;?$|from\s+\S+\s+import\s|return\b.*[;)\]\w]$"""
    r"""|(?:for|if|while)\b.*[:{]$|\#include\b|function\s+\w+\()""",
    re.MULTILINE,
)


def answers_html(
    ours: str, plain: str, compare: bool, is_code: bool = False, seconds: Mapping[str, float] | None = None
) -> str:
    """
    Both texts (HTML) side by side, or stacked on a phone.

    Args:
        ours, plain: The texts; `plain` is shown only if `compare`.
        is_code: Whether to use a monospaced font.
        seconds: Duration of finished calls, by "ours" and "plain"; shown as clocks, which a replay runs.
    """
    parts = []
    for way, title, text, more in (("plain", "Plain generate", plain, ""), ("ours", "With the draft", ours, LEGEND)):
        if way == "plain" and not compare:
            continue
        end = (seconds or {}).get(way)
        clock = "" if end is None else f'<small class="clock done" data-seconds="{end:.3f}">{end:.2f} s</small>'
        code = " code" * is_code
        parts.append(
            f'<section><h4>{title}{clock}</h4><div class="answer{code}" data-way="{way}">{text}</div>{more}</section>'
        )
    return f'<div class="texts">{"".join(parts)}</div>'


def looks_like_code(text: str) -> bool:
    """Whether a text has a fence or a line of a programming language."""
    return CODE.search(text) is not None


def chat_html(messages: Sequence[dict[str, str]]) -> str:
    """The turns so far. The box is laid out from the bottom to keep the newest in view, so turns are reversed."""
    turns = [
        f'<div class="turn {turn["role"]}{" code" * looks_like_code(turn["content"])}">{escape(turn["content"])}</div>'
        for turn in reversed(messages)
    ]
    return f'<div class="chat" role="log" aria-label="chat">{"".join(turns) or "<small>No turns yet.</small>"}</div>'
