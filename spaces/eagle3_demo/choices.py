"""Descriptions of the choices of the tree mode "auto". Does not know models or pages."""

from collections.abc import Sequence
from typing import Protocol


class Choice(Protocol):
    """One entry of `SpeculationStats.choices`; costs in plain steps, `None` before they are measured."""

    levels: int
    nodes: int
    expected_tokens: float
    verification: float | None
    drafting: float | None


def why(choice: Choice) -> str:
    """One cycle: expected tokens, and their cost if it was already measured."""
    if not choice.levels:
        return "Auto chose a plain step, to measure its cost or because drafting did not pay off recently."
    expected = min(choice.expected_tokens, choice.levels + 1)  # a sum over nodes, including siblings
    text = f"Auto expected {expected:.1f} tokens"
    verify, draft = choice.verification, choice.drafting
    if verify is None:
        return f"{text} while measuring the cost of forward passes."
    return f"{text} at the cost of {verify + draft:.1f} plain steps: {verify:.1f} to verify, {draft:.1f} to draft."


def summary(choices: Sequence[Choice]) -> str:
    """A complete run; empty in other tree modes."""
    if not choices:
        return ""
    drafted = [choice.nodes for choice in choices if choice.levels]
    plain = len(choices) - len(drafted)
    parts = []
    if drafted:
        least, most = min(drafted), max(drafted)
        sizes = f"{least}" if least == most else f"{least} to {most}"
        parts.append(f"{sizes} draft tokens in {len(drafted)} cycle{'s' * (len(drafted) != 1)}")
    if plain:
        parts.append(f"{plain} plain step{'s' * (plain != 1)}")
    return f"Auto chose {' and '.join(parts)}."
