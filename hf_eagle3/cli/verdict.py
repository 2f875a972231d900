"""What the measured figures of a draft mean, in words. Pure functions; do not know how figures are measured."""

from collections.abc import Sequence


GUIDE = "docs/make_draft.md"
# One cycle costs 1.2 to 1.7 steps of plain generation (docs/performance.md), so a lower tau cannot pay.
BREAK_EVEN, GOOD = 1.5, 2.2
# Of the speedup: less is within what the same machine measures on another day.
WORTHWHILE, EVEN = 1.1, 0.97
TRANSFORMERS_OWN = ("lookup", "assisted")  # methods without a draft of ours


def more_data(answer_tokens: int | None) -> str:
    """The remedy for a draft that proposes badly."""
    found = "" if answer_tokens is None else f" (it was trained on {answer_tokens:,} answer tokens)"
    return f"try more data of the kind it is used for, or more epochs{found}; see {GUIDE}"


def verdict_of_tau(tau: float, tree: str, answer_tokens: int | None) -> str:
    """One sentence about an acceptance length whose speedup is not measured yet."""
    start = f"Verdict: tau {tau:.2f} with {tree}: "
    if tau < BREAK_EVEN:
        return (
            f"{start}too few tokens are accepted, it would be slower than plain generate; {more_data(answer_tokens)}."
        )
    if tau < GOOD:
        return f"{start}about break-even; whether it is faster depends on the machine; {more_data(answer_tokens)}."
    return f"{start}enough to be worth measuring."


def verdict_of_benchmark(rows: Sequence[dict], answer_tokens: int | None) -> tuple[str, bool]:
    """
    (one paragraph, whether the draft is worth using) from the rows of a benchmark file.

    Args:
        rows: Of one task at batch size 1; the lowest temperature decides.
        answer_tokens: On how many the draft was trained.
    """
    lowest = min(row["temperature"] for row in rows)
    measured = [row for row in rows if row["speedup"] is not None]
    own = [row for row in measured if not row["method"].startswith(TRANSFORMERS_OWN)]
    if not any(row["temperature"] == lowest for row in own):
        return "Verdict: the text differs from plain generate's, so that no speedup counts; see the table.", False
    best = max((row for row in own if row["temperature"] == lowest), key=lambda row: row["speedup"])
    speedup = best["speedup"]
    # The static trees' tau describes the draft; "auto" drafts less where it does not pay.
    tau = max(row["acceptance_length"] or 1.0 for row in own if row["temperature"] == lowest)
    sampled = [row["speedup"] for row in own if row["temperature"] > lowest]
    text = f"Verdict: tau {tau:.2f}, {speedup:.2f}x plain generate ({best['method']})"
    text += f", {max(sampled):.2f}x when sampling: " if sampled else ": "
    is_certain = best.get("speedup_interval") is None or best["speedup_interval"][0] > 1
    is_worth = speedup >= WORTHWHILE and is_certain
    if is_worth:
        text += "worth using here."
    else:
        text += "slower than plain here; " if speedup < EVEN else "no faster than plain here; "
        if tau < GOOD:
            text += f"{more_data(answer_tokens)}."
        else:
            text += "the draft is good, but passes over several tokens are too expensive on this machine: measure it "
            text += "where they are cheaper (a GPU, bfloat16, a larger target)."
    lookup = [
        row["speedup"] for row in measured if row["method"].startswith("lookup") and row["temperature"] == lowest
    ]
    if lookup and lookup[0] > speedup:
        text += f" Prompt lookup, which needs no draft, reaches {lookup[0]:.2f}x on these prompts."
    return text, is_worth
