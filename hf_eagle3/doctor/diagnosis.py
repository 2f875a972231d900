"""Finds out whether a draft is sound, and if not, which repairs raise its acceptance.

A repair counts if it accepts more at the same positions, and gives the target's tokens a significantly higher
likelihood. The best one is applied, and the others are tried on top of it, as faults come together. Does not know how
answers are made or how the result is shown.
"""

from dataclasses import dataclass, field

import torch
from transformers import PreTrainedConfig

from ..draft_model import DraftModel
from .measure import Acceptance, Evidence
from .repairs import Repair, repairs_for


SIGNIFICANT = 4.0  # standard errors; about a dozen repairs are tried, and neighbouring positions are correlated
LEAST_GAIN = 0.02  # of the acceptance length: smaller ones are not worth an override
MOST_REPAIRS = 3
# Acceptance of the first draft token. Published EAGLE-3 drafts reach 0.6 to 0.8 (EAGLE-3, figure 7; vLLM's pull
# request 32628), heads whose files name wrong layers about 0.01 (vLLM's issue 50170).
UNSOUND, WEAK = 0.25, 0.45


@dataclass
class Diagnosis:
    """
    The result.

    Attributes:
        before, after: Acceptance as loaded, and with all repairs.
        repairs: Those that help, with the acceptance after each, in the order they were applied.
        tried: Every repair tried on the draft as loaded: (kind, what, acceptance length).
    """

    before: Acceptance
    after: Acceptance
    repairs: list[tuple[Repair, Acceptance]] = field(default_factory=list)
    tried: list[tuple[str, str, float]] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Whether no repair helps and the draft accepts enough."""
        return not self.repairs and self.before.rates[0] >= UNSOUND

    @property
    def verdict(self) -> str:
        """In words."""
        first = self.after.rates[0]
        if self.repairs:
            kinds = " and ".join(dict.fromkeys(repair.kind for repair, _ in self.repairs))
            rest = "" if first >= UNSOUND else f" Even so only {first:.0%} of first tokens are accepted."
            return (
                f"Not sound: {kinds}. The acceptance length is {self.before.acceptance_length:.2f}, with the repair "
                f"{self.after.acceptance_length:.2f}.{rest}"
            )
        if first < UNSOUND:
            return (
                f"Not sound: {first:.0%} of first tokens are accepted, and no usual repair helps. The draft belongs "
                "to another target or chat template, is hardly trained, or its weights are damaged."
            )
        if first < WEAK:
            return (
                f"Sound but weak: {first:.0%} of first tokens are accepted (published drafts: 60 to 80 %). No usual "
                "repair helps; prompts unlike the training data, or a small draft."
            )
        return f"Sound: {first:.0%} of first tokens are accepted, and no usual repair accepts more."


def gain(before: Acceptance, after: Acceptance) -> tuple[float, float]:
    """(relative gain in tokens per cycle, gain in log-likelihood in standard errors) at the same positions."""
    difference = (after.log_likelihoods - before.log_likelihoods).double()
    error = float(difference.square().sum().sqrt())
    return (after.mean - before.mean) / (1 + before.mean), float(difference.sum()) / error if error else 0.0


def is_better(before: Acceptance, after: Acceptance) -> bool:
    """Whether `after` accepts more, beyond chance."""
    relative, errors = gain(before, after)
    return relative >= LEAST_GAIN and errors >= SIGNIFICANT


@torch.no_grad()
def diagnose(draft: DraftModel, target: PreTrainedConfig, evidence: Evidence) -> Diagnosis:
    """
    Measure `draft` and the usual repairs.

    Args:
        draft: As loaded, on its device.
        target: The target's configuration.
        evidence: Its answers.
    """
    before = current = evidence.measure(draft)
    found = Diagnosis(before, before)
    while len(found.repairs) < MOST_REPAIRS:
        measured = [(repair, evidence.measure(repair.draft)) for repair in repairs_for(draft, target)]
        if not found.tried:
            found.tried = [(repair.kind, repair.what, after.acceptance_length) for repair, after in measured]
        better = [(repair, after) for repair, after in measured if is_better(current, after)]
        if not better:
            break
        repair, current = max(better, key=lambda pair: pair[1].mean)
        found.repairs.append((repair, current))
        draft, found.after = repair.draft, current
    return found
