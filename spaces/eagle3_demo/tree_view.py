"""The draft tree of a cycle as SVG: levels from left to right, the accepted path in colour, rejected nodes in grey.

Text is escaped; colours are defined in the style sheet. Does not know models.
"""

from html import escape

from progress import depths_of
from tokens import node_probability, percent, visible

from hf_eagle3 import CycleRecord
from hf_eagle3.token_ids import Decoder


COLUMN, ROW, MARGIN = 120, 26, 8  # px per level, px per leaf, px around
BOX_WIDTH, BOX_HEIGHT = 96, 20
MAX_LABEL = 8  # characters shown of a token; hovering shows all


def tree_html(record: CycleRecord, tokenizer: Decoder, num_cycles: int, why: str = "") -> str:
    """The tree with a caption: `num_cycles` of the run, and `why` the tree has this size."""
    head = f"Cycle {record.cycle + 1} of {num_cycles}: "
    nodes, accepted, kept = len(record.tree_tokens) - 1, record.num_accepted_tokens, len(record.tokens)
    if nodes == 0:
        text = "nothing was drafted."
    else:
        text = f"{nodes} drafted, {accepted} accepted, {kept} committed including the target's own."
        if kept == accepted:
            text = f"{nodes} drafted, {accepted} accepted; the answer ended there."
    return f'<p class="caption">{head}{text} {escape(why)}</p><div class="tree">{tree_svg(record, tokenizer)}</div>'


def tree_svg(record: CycleRecord, tokenizer: Decoder) -> str:
    """Nodes with token and conditional probability; the target's own token is dashed, at the end of the path."""
    parents, path = list(record.tree_parents), list(record.accepted_nodes)
    labels = [tokenizer.decode([token], skip_special_tokens=False) for token in record.tree_tokens]
    own = len(labels)
    has_own = len(record.tokens) > len(path)
    if has_own:
        parents.append(path[-1] if path else 0)
        labels.append(tokenizer.decode([record.tokens[-1]], skip_special_tokens=False))
    depths, rows = placed(parents, first=[0, *path, own] if has_own else [0, *path])
    width = (max(depths) + 1) * COLUMN - (COLUMN - BOX_WIDTH) + 2 * MARGIN
    height = (max(rows) + 1) * ROW - (ROW - BOX_HEIGHT) + 2 * MARGIN
    on_path = {0, *path}
    edges, boxes = [], []
    for node, label in enumerate(labels):
        kind = "own" if node == own else "accepted" if node in on_path else "rejected"
        x, y = MARGIN + depths[node] * COLUMN, MARGIN + rows[node] * ROW
        if node:
            edges.append(_edge(parents[node], node, depths, rows, kind))
        note, hint = "", "the last committed token"
        if node == own:
            hint = "the target's own token"
        elif node:
            probability = percent(node_probability(record, node))
            note, hint = probability, f"{kind}, draft: {probability} given the path before it"
        boxes.append(_box(x, y, kind, label, note, hint))
    return (
        f'<svg role="img" aria-label="draft tree" width="{width}" height="{height:g}" '
        f'viewBox="0 0 {width} {height:g}">{"".join(edges)}{"".join(boxes)}</svg>'
    )


def placed(parents: list[int], first: list[int]) -> tuple[list[int], list[float]]:
    """
    (depth, row) of every node. Each leaf has its own row, and a parent has the row of its first child.

    Args:
        parents: Parent of every node; node 0 is the root, whose entry is ignored. Parents precede their children.
        first: Nodes that come first among their siblings: the accepted path, to draw it as a straight line on top.
    """
    depths = depths_of(parents)
    children: list[list[int]] = [[] for _ in parents]
    for node in range(1, len(parents)):
        children[parents[node]].append(node)
    favoured = set(first)
    rows = [0.0] * len(parents)
    leaf = 0
    stack = [0]
    order = []
    while stack:  # depth first, favoured children on top
        node = stack.pop()
        order.append(node)
        stack += sorted(children[node], key=lambda n: (n not in favoured, n), reverse=True)
    for node in order:
        if not children[node]:
            rows[node] = leaf
            leaf += 1
    for node in reversed(order):
        if children[node]:
            rows[node] = min(rows[child] for child in children[node])
    return depths, rows


def _edge(parent: int, node: int, depths: list[int], rows: list[float], kind: str) -> str:
    x1, y1 = MARGIN + depths[parent] * COLUMN + BOX_WIDTH, MARGIN + rows[parent] * ROW + BOX_HEIGHT / 2
    x2, y2 = MARGIN + depths[node] * COLUMN, MARGIN + rows[node] * ROW + BOX_HEIGHT / 2
    middle = (x1 + x2) / 2
    return f'<path class="edge {kind}" d="M{x1:g} {y1:g}C{middle:g} {y1:g} {middle:g} {y2:g} {x2:g} {y2:g}"/>'


def _box(x: float, y: float, kind: str, label: str, note: str, hint: str) -> str:
    shown = visible(label)
    short = shown if len(shown) <= MAX_LABEL else shown[: MAX_LABEL - 1] + "…"
    right = f'<text class="note" x="{BOX_WIDTH - 6}" y="14" text-anchor="end">{note}</text>' if note else ""
    return (
        f'<g class="node {kind}" transform="translate({x:g} {y:g})"><title>{escape(shown)} | {escape(hint)}</title>'
        f'<rect width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="5"/><text x="7" y="14">{escape(short)}</text>{right}</g>'
    )
