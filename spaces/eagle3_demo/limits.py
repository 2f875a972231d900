"""Limits of a request, and its validation. Does not know models or pages.

Every request is validated by `checked`, since API clients can bypass the sliders. Error messages contain field, value
and bounds, but never the prompt.
"""

import math
import os
from dataclasses import dataclass, fields


TREES = ("auto", "static", "chain")
DRAFTERS = {"eagle3": "EAGLE-3", "suffix": "suffix", "eagle3+suffix": "EAGLE-3 + suffix"}  # with their titles


@dataclass(frozen=True)
class Limits:
    """
    Attributes:
        prompt_characters: Characters of a prompt or chat message.
        new_tokens: Tokens of an answer.
        draft_tokens: Nodes of a draft tree.
        seconds: Duration of a run, plain and speculative together, after which it is stopped.
        sessions: Users whose last run and chat are kept; the least recently used is dropped first.
        caches: How many of these also keep the keys and values of their chat; others are prefilled again.
        waiting: Runs in the queue.
    """

    prompt_characters: int = 4000
    new_tokens: int = 256
    draft_tokens: int = 128
    seconds: int = 120
    sessions: int = 64
    caches: int = 4
    waiting: int = 64

    @classmethod
    def from_environment(cls) -> "Limits":
        """Defaults, each overridden by `HF_EAGLE3_MAX_<NAME>`, for instance `HF_EAGLE3_MAX_NEW_TOKENS=512`."""
        found = {}
        for field in fields(cls):
            name = f"HF_EAGLE3_MAX_{field.name.upper()}"
            if value := os.environ.get(name):
                if not value.isdigit() or int(value) < 1:
                    raise ValueError(f"{name} is {value!r}; use an integer of at least 1.")
                found[field.name] = int(value)
        return cls(**found)


@dataclass(frozen=True)
class Request:
    """A validated request. Temperature 0 is greedy; top-k 0 and top-p 1 are off."""

    prompt: str
    compare: bool = True
    max_new_tokens: int = 96
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    drafter: str = "eagle3"
    tree: str = "auto"
    num_draft_tokens: int = 24
    tree_depth: int = 6
    tree_top_k: int = 6

    @property
    def options(self) -> dict:
        """Arguments of `generate` common to plain and speculative generation."""
        options = {"max_new_tokens": self.max_new_tokens, "do_sample": self.temperature > 0}
        if options["do_sample"]:
            options |= {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        return options

    @property
    def tree_sizes(self) -> dict[str, int]:
        """Arguments of `with_tree`; none in the mode "auto"."""
        if self.tree == "auto":
            return {}
        if self.tree == "chain":
            return {"tree_depth": self.tree_depth}
        return {
            "num_draft_tokens": self.num_draft_tokens,
            "tree_depth": self.tree_depth,
            "tree_top_k": self.tree_top_k,
        }


def checked(limits: Limits, prompt: str, compare: bool = True, **values) -> Request:
    """
    Validate a request; ValueError with a message for the user.

    Args:
        limits: Limits of this Space.
        prompt, compare, values: Fields of [`Request`] from the page or an API client.
    """
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError("The prompt is empty. Enter one or choose an example.")
    if len(prompt) > limits.prompt_characters:
        raise ValueError(
            f"The prompt has {len(prompt)} characters, the limit is {limits.prompt_characters}. Shorten it."
        )
    if values.get("tree", "auto") not in TREES:
        raise ValueError(f"Tree must be one of {', '.join(TREES)}.")
    if values.get("drafter", "eagle3") not in DRAFTERS:
        raise ValueError(f"Drafter must be one of {', '.join(DRAFTERS)}.")
    bounds = {
        "max_new_tokens": ("Max new tokens", 1, limits.new_tokens, int),
        "temperature": ("Temperature", 0, 2, float),
        "top_p": ("Top-p", 0.01, 1, float),
        "top_k": ("Top-k", 0, 1000, int),
        "seed": ("Seed", 0, 2**31 - 1, int),
        "num_draft_tokens": ("Draft tokens", 1, limits.draft_tokens, int),
        "tree_depth": ("Tree depth", 1, 16, int),
        "tree_top_k": ("Tree top-k", 1, 16, int),
    }
    if unknown := values.keys() - bounds.keys() - {"tree", "drafter"}:
        raise ValueError(f"Unknown field: {', '.join(sorted(unknown))}.")
    numbers = {name: _number(values[name], *bound) for name, bound in bounds.items() if name in values}
    names = {name: values[name] for name in ("tree", "drafter") if name in values}
    return Request(prompt=prompt, compare=bool(compare), **names, **numbers)


def _number(value, label: str, low: float, high: float, kind: type) -> float:
    """`value` as a `kind` from `low` to `high`; ValueError for booleans, text, NaN and missing values."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not low <= value <= high or kind(value) != value:
        what = "an integer" if kind is int else "a number"
        raise ValueError(f"{label} is {value if is_number else 'not a number'}; use {what} from {low} to {high}.")
    return kind(value)
