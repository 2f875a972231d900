"""The page's three paragraphs: what is done, what is shown, what it does not say."""

from pair import Pair


INTRODUCTION = """\
# EAGLE-3: the same text, sooner

A small *draft model* proposes a tree of next tokens; the *target model* checks the whole tree in one pass and keeps
the longest path that it would have written itself. **Run** writes the same prompt with the same seed twice, first with
plain `generate`, then with `generate(..., assistant_model=draft)`, and compares the token ids.

Colours tell where each token came from: accepted draft tokens by their depth in the tree, and the target's own, one
per pass. Hover over one, or tap it, for its probability and cycle. The plots follow the run; below them is the draft
tree of any cycle, the accepted path in colour and what was rejected in grey.

**What this does not say:** this page runs {description}. {caveat} Both runs share the machine with this page and its
other visitors.
"""
TOY = (
    "It writes like the toy it is, and its speedup holds for this machine only: "
    "it says nothing about an 8B model on a GPU, where drafting, passes and acceptance all cost and gain differently."
)
REAL = "Speedup depends on the prompt, the temperature and the machine; one run is an anecdote, not a benchmark."


def introduction(pair: Pair) -> str:
    """As Markdown."""
    return INTRODUCTION.format(description=pair.description, caveat=TOY if pair.is_toy else REAL)
