"""Statistics of a run as HTML: both methods, speedup, and whether the token ids are identical."""

from html import escape

from progress import Figures, Progress
from race import PLAIN, SPECULATIVE


def scoreboard(progress: Progress, where: str = "on this machine, this run") -> str:
    """The complete board; unknown values are dashes, and `where` is what the speedup holds for."""
    cells = []
    if progress.compare:
        cells.append(_way("plain generate", "plain", progress.figures(PLAIN)))
    cells.append(_way("with the draft", "ours", progress.figures(SPECULATIVE)))
    tau = progress.acceptance_length
    cells.append(_cell("acceptance length τ", "—" if tau is None else f"{tau:.2f}", "tokens per pass of the target"))
    if progress.compare:
        speedup = progress.speedup
        cells.append(_cell("speedup", "—" if speedup is None else f"{speedup:.2f}×", where))
    notes = "".join(f"<p>{escape(note)}</p>" for note in progress.notes)
    return f'<div class="board">{"".join(cells)}</div>{badge(progress)}<div class="notes">{notes}</div>'


def badge(progress: Progress) -> str:
    """Whether both methods generated the same token ids."""
    if not progress.compare:
        return ""
    if progress.identical is None:
        text = "stopped, nothing to compare" if progress.is_stopped else "compared when both have finished"
        return f'<span class="badge waiting" data-identical="unknown">{text}</span>'
    if progress.identical:
        count = len(progress.ids)
        return f'<span class="badge yes" data-identical="yes">✓ identical output, {count} of {count} token ids</span>'
    where = progress.first_difference
    return (
        f'<span class="badge no" data-identical="no">✗ outputs differ from token {where + 1} '
        "(near-ties may flip in half precision)</span>"
    )


def message(text: str) -> str:
    """A message for the user, or nothing."""
    return f'<div class="notice" role="alert">{escape(text)}</div>' if text else ""


def _way(title: str, kind: str, figures: Figures) -> str:
    if figures.rate is None:
        return _cell(title, "—", "tokens/s", kind)
    more = "" if figures.is_finished else "…"
    value = f"{figures.rate:.0f} <i>tokens/s</i>"
    return _cell(title, value, f"{figures.num_tokens} in {figures.seconds:.2f} s{more}", kind)


def _cell(title: str, value: str, unit: str, kind: str = "") -> str:
    return f'<div class="cell {kind}"><b>{title}</b><strong>{value}</strong><small>{unit}</small></div>'
