"""What commands print as tables, by rich.

In a terminal they fit its width and are in colour; elsewhere they are plain text.
"""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table


# In a notebook rich would display HTML beside what it prints.
PLAIN = {"markup": False, "emoji": False, "highlight": False, "force_jupyter": False}
WIDE = 10_000  # files and pipes have no width: a line per row


def show(content: Table) -> None:
    """Print `content`. Brackets are text, not rich's markup; nothing stands behind the last letter of a line."""
    console = Console(**PLAIN)
    if not console.is_terminal:
        console = Console(**PLAIN, width=WIDE)
    with console.capture() as captured:
        console.print(content)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def show_pairs(rows: Iterable[tuple[str, str]]) -> None:
    """Names and values; a name that repeats the one above it is left out."""
    table, last = Table.grid(padding=(0, 2, 0, 0)), None
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in rows:
        table.add_row("" if name == last else name, value)
        last = name
    show(table)


def show_table(header: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> None:
    """A table with a header; all columns but the first are figures, to the right."""
    if title:
        print(title)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    show(table)


def show_markdown(text: str) -> None:
    """Markdown: drawn in a terminal, as it is elsewhere."""
    console = Console(**PLAIN)
    if console.is_terminal:
        console.print(Markdown(text))
    else:
        print(text)
