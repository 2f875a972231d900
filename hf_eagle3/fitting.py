"""Adapts a draft to a target with resized embeddings, and reports what else differs from its own target.

Resizing embeddings keeps the ids of existing tokens. The fitted draft proposes the tokens that both vocabularies have;
verification keeps the output the target's own. Does not know generation or training.

Shape letters: V target vocabulary, D draft vocabulary, H hidden.
"""

import copy

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from . import vocabulary
from .configuration_eagle3 import Eagle3Config, hub_identity
from .modeling_eagle3 import Eagle3DraftModel


logger = logging.get_logger(__name__)


class SelectedOutputs(nn.Module):
    """Selected outputs of a head whose weight cannot be indexed (quantised, or with an adapter)."""

    def __init__(self, head: nn.Module, places: torch.Tensor):
        super().__init__()
        self.head, self.places = head, places

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Logits (..., D) of states (..., H)."""
        return self.head(states)[..., self.places]


def fit_notes(target: PreTrainedConfig, draft: Eagle3Config, name: str | None = None) -> list[str]:
    """
    Mismatches that do not prevent the draft from running, one message each. `name` is the target's Hub id, if `target`
    does not have it.
    """
    notes = []
    name, made_for = name or hub_identity(target)[0], draft.target_name_or_path
    if name and made_for and name.lower() != made_for.lower():
        notes.append(
            f"The draft was made for `{made_for}`, the target is `{name}`. The output is still the target's own; if "
            "few tokens are accepted, this is the likely cause."
        )
    size = target.get_text_config(decoder=True).vocab_size
    if size != draft.vocab_size:
        notes.append(
            f"The draft was made for a target of {draft.vocab_size} tokens, this one has {size}: assumed to be the "
            "same target with resized embeddings and unchanged token ids. If it is not, few tokens will be accepted."
        )
    return notes


def fit_to(draft: Eagle3DraftModel, target: PreTrainedModel) -> Eagle3DraftModel:
    """`draft` fitted to the vocabulary of `target`; logs each mismatch once."""
    for note in fit_notes(target.config, draft.config):
        logger.warning_once(note)
    return fitted(draft, target.config.get_text_config(decoder=True).vocab_size)


@torch.no_grad()
def fitted(draft: Eagle3DraftModel, vocab_size: int) -> Eagle3DraftModel:
    """
    `draft`, or a view that shares its weights, for a target of `vocab_size` tokens (V).

    Raises:
        ValueError: the target has none of the draft's tokens.
    """
    config = draft.config
    if vocab_size == config.vocab_size:
        return draft
    ids = draft.target_token_ids
    if ids is None:
        ids = torch.arange(config.draft_vocab_size, device=draft.fc.weight.device)
    # `mapping_from_target_ids` sorts, so the head's outputs are reordered alike.
    ids, places = ids.sort()
    kept = ids < vocab_size
    ids, places = ids[kept], places[kept]
    if not len(ids):
        raise ValueError(f"The target has {vocab_size} tokens, none of which the draft can propose.")
    view = copy.copy(draft)
    view._modules, view._buffers = dict(draft._modules), dict(draft._buffers)
    changes = {"vocab_size": vocab_size, "draft_vocab_size": len(ids)}
    if draft.lm_head is not None:
        view._modules["lm_head"] = _selected(draft.lm_head, places)
    if draft.embed_tokens is not None:
        is_used = config.embed_trained or config.hidden_size != config.target_hidden_size
        changes["has_embed_tokens"] = is_used
        view._modules["embed_tokens"] = _with_rows(draft.embed_tokens, vocab_size) if is_used else None
    view.config = config.changed(changes)
    view._buffers.pop("d2t", None)
    view._buffers.pop("t2d", None)
    if view.config.has_vocabulary_mapping:
        for name, values in zip(("d2t", "t2d"), vocabulary.mapping_from_target_ids(ids, vocab_size), strict=True):
            view._buffers[name] = values.to(ids.device)
    return view


def _selected(head: nn.Module, places: torch.Tensor) -> nn.Module:
    """A head with the outputs `places` (D,) of `head`, without a copy if they are the first D."""
    first = torch.equal(places, torch.arange(len(places), device=places.device))
    if first and len(places) == head.out_features:
        return head
    if type(head) is not nn.Linear:
        return SelectedOutputs(head, places)
    weight = head.weight[: len(places)] if first else head.weight[places.to(head.weight.device)]
    out = nn.Linear(head.in_features, len(places), bias=False, device="meta")
    out.weight = nn.Parameter(weight, requires_grad=head.weight.requires_grad)
    return out


def _with_rows(embedding: nn.Embedding, count: int) -> nn.Embedding:
    """The first `count` rows without a copy, or all rows followed by zeros for added ids."""
    rows = embedding.weight[:count]
    if len(rows) < count:
        rows = torch.cat((rows, rows.new_zeros(count - len(rows), rows.shape[1])))
    return nn.Embedding.from_pretrained(rows)
