"""What a block drafter learns from: blocks behind sampled anchors, their attention in linear memory, their loss.

    text: the cat sat on a mat     anchor "sat"     keys: the, cat (features)     block: sat <mask> <mask>  -->  on, a

Pure functions of tensors and the draft. Does not know the Trainer or how the target ran.

Shape letters: B batch, L sequence, N anchors of a sequence, K positions of a block, T tokens it predicts, M positions
with loss, H hidden, V vocabulary, F tapped features.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ...generation.ops.grouped_attention import grouped_attention
from ...generation.ops.transfer import additive
from ...training.losses import StepTerms, TargetDistribution
from ...training.training_time_test import same_dtype
from .modeling import BlockDraftModel, seen_in_block


QUERIES = 256  # per part of the attention, whose mask and scores are made anew in the backward pass


@dataclass(frozen=True)
class BlockObjective:
    """The objective's options; fields as in `TrainingOptions`, documented there."""

    block_loss: str
    block_loss_decay: float
    block_temperature: float
    num_anchors: int
    head_chunk_size: int


@dataclass
class Blocks:
    """
    Blocks of a batch.

    Attributes:
        anchors: Index of each block's anchor, ascending, (B, N).
        indices: Indices of the tokens that a block predicts, (B, N, T); 0 where there is none.
        weights: Of their losses, (B, N, T) float32; 0 where there is none.
    """

    anchors: Tensor
    indices: Tensor
    weights: Tensor


def sample_anchors(
    loss_mask: Tensor, document_ids: Tensor, position_ids: Tensor, count: int, generator: torch.Generator | None = None
) -> Tensor:
    """
    Up to `count` anchors per sequence, (B, N), ascending, -1 where there are fewer: tokens with loss whose next token
    has loss, as in generation, where an anchor was generated. Arguments as in the collator's batch, (B, L).
    """
    valid = loss_mask[:, :-1].bool() & loss_mask[:, 1:].bool() & (document_ids[:, :-1] == document_ids[:, 1:])
    valid &= position_ids[:, :-1] > 0  # without any past there is no feature
    order = torch.rand(valid.shape, generator=generator).to(valid.device).masked_fill(~valid, 2.0).argsort(dim=1)
    count = min(count, int(valid.sum(dim=1).max()))
    chosen = order[:, :count]
    return chosen.where(valid.gather(1, chosen), -1).sort(dim=1).values


def blocks_of(anchors: Tensor, loss_mask: Tensor, document_ids: Tensor, num_predictions: int, decay: float) -> Blocks:
    """
    The tokens that blocks at `anchors` (B, N) predict, and their weights exp(-(level - 1) / decay); 0: all 1. A block
    ends with its document, and before the first token without loss.
    """
    level = torch.arange(num_predictions, device=anchors.device)
    indices = anchors[:, :, None] + 1 + level
    exists = (indices < loss_mask.shape[1]) & (anchors >= 0)[:, :, None]
    indices = indices.where(exists, 0)
    flat, anchors = indices.flatten(1), anchors.clamp(min=0)
    exists &= loss_mask.gather(1, flat).view_as(indices).bool()
    exists &= document_ids.gather(1, flat).view_as(indices) == document_ids.gather(1, anchors)[:, :, None]
    weights = exists.long().cumprod(dim=2).float()
    return Blocks(anchors, indices, weights * torch.exp(-level / decay) if decay else weights)


def block_states(
    draft: BlockDraftModel,
    embed: Callable[[Tensor], Tensor],
    batch: dict[str, Tensor],
    features: Tensor,
    anchors: Tensor,
) -> Tensor:
    """
    Normed states that predict a token, (B, N, T, H), of the blocks at `anchors` (B, N).

    Args:
        embed: Token ids -> embedding rows.
        batch: The collator's.
        features: Outputs of the tapped layers, (B, L, F).
    """
    config, ids, dtype = draft.config, batch["input_ids"], features.dtype
    size, count = config.block_size, anchors.shape[1]
    tokens = torch.full((*anchors.shape, size), config.mask_token_id, device=ids.device)
    tokens[:, :, 0] = ids.gather(1, anchors)
    offsets = torch.arange(size, device=ids.device)
    positions = batch["position_ids"].expand_as(ids)
    block_positions = positions.gather(1, anchors)[:, :, None] + offsets
    known = draft.keys_and_values(features, draft.rotary(positions, dtype))
    rotary = draft.rotary(block_positions.flatten(1), dtype)
    step = max(1, QUERIES // size)
    ends = [int(part.max()) for part in anchors.split(step, dim=1)]  # no key behind its last anchor is needed

    def attend(query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        query, key, value = same_dtype(query, key, value)
        parts = []
        for start, end in zip(range(0, count, step), ends, strict=True):
            part = slice(start * size, (start + step) * size)
            context = [x[:, :, :end].to(query.dtype) for x in known[layer]]
            given = (query[:, :, part], key[:, :, part], value[:, :, part], *context)
            masked = (config, layer, anchors[:, start : start + step], batch["document_ids"][:, :end])
            masked = (*masked, batch["document_ids"])
            if torch.is_grad_enabled():
                parts.append(checkpoint(_attended, *given, *masked, use_reentrant=False))
            else:
                parts.append(_attended(*given, *masked))
        return torch.cat(parts, dim=2)

    states = draft.decode(embed(tokens).to(dtype).flatten(1, 2), rotary, attend)
    return draft.predictions(states.unflatten(1, (count, size)))


def _attended(query, key, value, past_key, past_value, config, layer, anchors, past_documents, documents) -> Tensor:
    """Attention of some blocks (B, heads, n * K, d) to the past of their anchors (B, n), and within each block."""
    size = config.block_size
    queries = (anchors[:, :, None] + torch.arange(size, device=anchors.device)).flatten(1)
    owner = torch.arange(anchors.shape[1], device=anchors.device).repeat_interleave(size)
    index = torch.arange(past_documents.shape[1], device=anchors.device).expand(len(anchors), -1)
    mine = documents.gather(1, anchors).repeat_interleave(size, dim=1)
    # Before the anchor: the target has not computed the anchor's features when its block is drafted.
    past = (index[:, None] < anchors.repeat_interleave(size, dim=1)[:, :, None]) & (
        past_documents[:, None] == mine[:, :, None]
    )
    own = (owner[:, None] == owner).expand(len(anchors), -1, -1)
    seen = torch.cat((past, own), dim=2) & seen_in_block(config, layer, queries, torch.cat((index, queries), dim=1))
    mask = additive(seen, query.dtype)[:, None]
    return grouped_attention(query, torch.cat((past_key, key), dim=2), torch.cat((past_value, value), dim=2), mask)


@dataclass
class BlockLosses:
    """
    Loss and statistics of a batch.

    Attributes:
        loss: Scalar with gradient.
        step_losses: What each level adds to it, (T,), detached.
        terms: Of the M positions with loss.
        levels: Level of each, from 0, (M,).
        labels: The text's token at each, (M,).
    """

    loss: Tensor
    step_losses: Tensor
    terms: StepTerms
    levels: Tensor
    labels: Tensor


def compute_losses(
    config: BlockObjective,
    states: Tensor,
    blocks: Blocks,
    input_ids: Tensor,
    target_hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    denominator: Tensor,
) -> BlockLosses:
    """
    The loss of a batch: cross-entropy with the text's tokens (DFlash), or KL(p || q) with the target's distribution at
    a temperature, times its square (JetSpec); weighted, over the sum of the weights.

    Args:
        states: (B, N, T, H).
        target_hidden: Inputs of the target's head, (B, L, H); that before a token predicts it.
        head: The target's, also the draft's: (n, H) -> (n, V).
        denominator: Sum of the weights of all accumulated batches, (1,).
    """
    present = blocks.weights > 0
    sequence = torch.arange(len(states), device=states.device)[:, None, None].expand_as(present)[present]
    indices, weights = blocks.indices[present], blocks.weights[present]
    levels = torch.arange(states.shape[2], device=states.device).expand_as(present)[present]
    labels, temperature = input_ids[sequence, indices], config.block_temperature
    chosen, hidden = states[present], target_hidden[sequence, indices - 1]

    def terms_of(states: Tensor, hidden: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            target = TargetDistribution.from_logits(head(hidden) / temperature, None)
        logits = head(states.to(hidden.dtype)).float()
        terms = StepTerms.measure("kl", target, logits / temperature)
        loss = terms.divergence * temperature**2
        if config.block_loss == "cross_entropy":
            loss = F.cross_entropy(logits, labels, reduction="none")
        return loss, terms.acceptance, terms.correct, terms.best

    collected = []
    chunk = config.head_chunk_size or max(len(labels), 1)
    # Without positions, one empty chunk keeps the loss a function of the draft: DDP waits for its gradients.
    for start in range(0, max(len(labels), 1), chunk):
        given = [x[start : start + chunk] for x in (chosen, hidden, labels)]
        if torch.is_grad_enabled() and config.head_chunk_size:
            collected.append(checkpoint(terms_of, *given, use_reentrant=False))
        else:
            collected.append(terms_of(*given))
    terms = StepTerms(*(torch.cat(parts) for parts in zip(*collected, strict=True)))
    values = terms.divergence * weights / denominator
    by_level = values.new_zeros(states.shape[2]).index_add(0, levels, values.detach())
    return BlockLosses(values.sum(), by_level, terms, levels, labels)
