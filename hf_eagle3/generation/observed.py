"""Observers of answers: what a target wrote with a draft is shown to whoever registered for it, after the call.

Nothing is stored on the target. Does not know what observers do with tokens.
"""

import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from .stats import new_stats, publish, record


# Inputs that text alone has; calls with others (images, embeddings) are not shown.
TEXT_INPUTS = ("attention_mask", "cache_position", "position_ids", "token_type_ids")


class Observer(Protocol):
    """Sees answers of one target."""

    def accepts(self, draft: Any) -> bool:
        """Whether answers written with `draft` are to be shown."""

    def see(self, ids: torch.Tensor, num_prompt_tokens: int) -> None:
        """One answer: the tokens of prompt and answer (L,), without padding, and how many are the prompt's."""


OBSERVERS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # target -> Observer


def observed(
    target: PreTrainedModel, draft: Any, input_ids: torch.Tensor, model_kwargs: dict, decode: Callable[[], Any]
) -> Any:
    """
    `decode()`, whose sequences the target's observer sees.

    Args:
        input_ids: Prompts, (B, P), left padded.
        model_kwargs: Further inputs; an `attention_mask` (B, P) says what is padding.
    """
    observer = OBSERVERS.get(target)
    if observer is None or not observer.accepts(draft) or not is_text(input_ids, model_kwargs):
        return decode()
    mask = model_kwargs.get("attention_mask")
    mask = torch.ones_like(input_ids) if mask is None else mask[:, -input_ids.shape[1] :]
    with record(synchronize=new_stats().synchronize) as stats:
        out = decode()
    publish(stats)
    sequences, length = out if isinstance(out, torch.Tensor) else out.sequences, input_ids.shape[1]
    for row, generated in enumerate(stats.generated_lengths):
        prompt = sequences[row, :length][mask[row].bool().to(sequences.device)]
        observer.see(torch.cat((prompt, sequences[row, length : length + generated])), len(prompt))
    return out


def is_text(input_ids: torch.Tensor, model_kwargs: dict) -> bool:
    """Whether the call has token ids and nothing else to read, with a mask of one value per token."""
    mask = model_kwargs.get("attention_mask")
    has_others = any(isinstance(x, torch.Tensor) and name not in TEXT_INPUTS for name, x in model_kwargs.items())
    return input_ids.shape[1] > 0 and not has_others and (mask is None or mask.dim() == 2)
