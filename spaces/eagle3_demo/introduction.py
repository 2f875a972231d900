"""The introduction of the page: the method, the display, and the limits of the comparison."""

from pair import Pair


INTRODUCTION = """\
# EAGLE-3: the same text, faster

A small *draft model* proposes a tree of next tokens; the *target model* verifies the whole tree in one forward pass
and keeps the longest path that it would have generated itself. **Run** generates from the same prompt with the same
seed twice, first with plain `generate`, then with `generate(..., assistant_model=draft)`, and compares the token ids.

Colours show the origin of each token: accepted draft tokens by their depth in the tree, and the target's own tokens,
one per forward pass. Hover over a token, or tap it, for its probabilities and cycle. The plots are updated during the
run; below them is the draft tree of any cycle, with the accepted path in colour and rejected nodes in grey.

**Limits of this comparison:** this page runs {description}. {caveat} Both runs share the machine with this page and
its other users.
"""
TOY = (
    "Its text is that of a toy, and its speedup holds for this machine only: it says nothing about an 8B model on a "
    "GPU, where costs and acceptance differ."
)
REAL = "Speedup depends on the prompt, the temperature and the machine; one run is an anecdote, not a benchmark."


def introduction(pair: Pair) -> str:
    """The introduction as Markdown."""
    note = f"{pair.note}\n\n" if pair.note else ""
    return note + INTRODUCTION.format(description=pair.description, caveat=TOY if pair.is_toy else REAL)
