"""The introduction of the page: the method, the display, and the limits of the comparison."""

from pair import Pair


HEADLINE = """\
# EAGLE-3: the same text, faster

{note}A small draft model proposes, the target model verifies: **Run** generates twice, plainly and with the draft, and
compares the token ids. This page runs {description}.
"""
DETAILS_TITLE = "How it works, and its limits"
DETAILS = """\
A small *draft model* proposes a tree of next tokens; the *target model* verifies the whole tree in one forward pass
and keeps the longest path that it would have generated itself. **Run** generates from the same prompt with the same
seed twice, first with plain `generate`, then with `generate(..., assistant_model=draft)`, and compares the token ids.
Afterwards both are replayed side by side, at the speed at which they ran.

Colours show the origin of each token: accepted draft tokens by their depth in the tree, and the target's own tokens,
one per forward pass. Hover over a token, or tap it, for its probabilities and cycle. The plots are updated during the
run; below them is the draft tree of any cycle, with the accepted path in colour and rejected nodes in grey.

**Limits of this comparison:** {caveat} Both runs share the machine with this page and its other users.
"""
TOY = (
    "The text of this pair is that of a toy, and its speedup holds for this machine only: it says nothing about an 8B "
    "model on a GPU, where costs and acceptance differ."
)
REAL = "Speedup depends on the prompt, the temperature and the machine; one run is an anecdote, not a benchmark."


def headline(pair: Pair) -> str:
    """Title, claim and pair as Markdown."""
    return HEADLINE.format(note=f"{pair.note}\n\n" if pair.note else "", description=pair.description)


def details(pair: Pair) -> str:
    """What is folded away, as Markdown."""
    return DETAILS.format(caveat=TOY if pair.is_toy else REAL)
