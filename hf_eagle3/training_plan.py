"""Training options by the amount of data: what `hf-eagle3 make-draft` uses where the user says nothing.

Pure functions of counts; do not know models, files or the Trainer. Sources:

    paper       EAGLE-3, section 4: half a million conversations, learning rate 5e-5
    SpecForge   git a6b6b023: the same amount, 1e-4, cosine, warm-up 1.5 % of the steps
    embedded    embedded/README.md: 11,000 answers of at most 200 tokens, target 192 wide, 2e-3, then 1.2e-3, cosine,
                2,750 steps of 16 answers, about 5 passes over the data
    problems    200 word problems, the same target: tau 1.2 after 2 epochs at 5e-5, 3.7 after 8 epochs at 2e-3
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


COVERAGE = 0.995  # of the answers' tokens; a chain of 5 then loses at most 2.5 % of its cycles to the vocabulary
SMALLEST_VOCABULARY = 4096  # then 8k, 16k, 32k, ...; the original code always takes 32,000
LONGEST = 2048  # original code
LENGTH_STEP = 256
LENGTH_SHARE = 0.99  # of the samples are not truncated
MIN_STEPS = 400  # "problems" and "embedded" had not converged before
SMALLEST_BATCH, LARGEST_BATCH = 512, 16384  # tokens per step; 16,384: the original code's 8 sequences of 2,048
PASS = 8192  # tokens per forward pass, the original code's 4 sequences of 2,048; larger steps accumulate gradients
WIDE = 1024  # hidden size; above it, little data does not need a higher rate but a lower one


@dataclass(frozen=True)
class Row:
    """Defaults up to an amount of data."""

    below: float  # answer tokens
    epochs: int
    learning_rate: float


ROWS = (
    Row(100_000, 16, 2e-3),  # "problems": 8 epochs were not too many; the best checkpoint is kept, so more do no harm
    Row(1_000_000, 8, 2e-3),  # "problems", "embedded"
    Row(10_000_000, 4, 1e-3),  # "embedded": 5 passes
    Row(100_000_000, 2, 3e-4),  # between "embedded" and SpecForge, on a logarithmic scale
    Row(float("inf"), 2, 1e-4),  # SpecForge
)
WARM_UP = 0.03  # of all steps; SpecForge has 0.015 of many more


@dataclass(frozen=True)
class Amount:
    """
    How much data there is.

    Args:
        samples, tokens: Training samples, and their tokens, prompts included.
        answer_tokens: Those with loss.
        long_sample: Length in tokens that 99 % of the samples do not exceed.
    """

    samples: int
    tokens: int
    answer_tokens: int
    long_sample: int


@dataclass(frozen=True)
class Plan:
    """
    Options of `hf-eagle3 train`: `batch_samples`, with `batch_tokens` in the mean, are packed into sequences of
    `max_length` tokens; a step accumulates the gradients of `accumulation` such batches.
    """

    epochs: int
    learning_rate: float
    batch_samples: int
    batch_tokens: int
    accumulation: int
    max_length: int
    warm_up: float


def plan(amount: Amount, hidden_size: int, epochs: int | None = None, learning_rate: float | None = None) -> Plan:
    """
    Training options for an amount of data.

    Args:
        amount: The data.
        hidden_size: Of the draft. Wider ones get a lower rate, proportional to 1 / width (arXiv 2203.03466, table 3),
            except where there is as much data as the rate was chosen with.
        epochs, learning_rate: The user's choices.
    """
    row = next(row for row in ROWS if amount.answer_tokens < row.below)
    epochs = epochs or row.epochs
    is_small = row is not ROWS[-1]
    scale = min(1.0, WIDE / hidden_size) if is_small else 1.0
    rate = learning_rate if learning_rate is not None else max(row.learning_rate * scale, ROWS[-1].learning_rate)
    length = math.ceil(min(amount.long_sample, LONGEST) / LENGTH_STEP) * LENGTH_STEP
    wanted = min(max(epochs * amount.tokens / MIN_STEPS, SMALLEST_BATCH), LARGEST_BATCH)
    mean = amount.tokens / amount.samples
    accumulation = math.ceil(wanted / PASS)
    batch_samples = max(1, min(round(wanted / accumulation / mean), amount.samples))
    batch_tokens = round(batch_samples * mean)
    return Plan(epochs, float(f"{rate:.2g}"), batch_samples, batch_tokens, accumulation, length, WARM_UP)


def vocabulary_size(counts: Sequence[int], vocab_size: int) -> int:
    """
    The smallest of 4k, 8k, 16k, ... tokens that covers `COVERAGE` of the answers; never more than `vocab_size`.

    Args:
        counts: How often each token of the target occurs in answers, (V,).
        vocab_size: V.
    """
    ordered = sorted(counts, reverse=True)
    size, total = SMALLEST_VOCABULARY, sum(ordered)
    while size < vocab_size and sum(ordered[:size]) < COVERAGE * total:
        size *= 2
    return min(size, vocab_size)
