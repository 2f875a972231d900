"""The frozen target in online training: features, last hidden states, embedding rows, head.

Packed sequences are split into documents for the target's pass, so that any architecture can be the target. Does not
know the draft's weights. Shape letters: B batch, L sequence, H hidden, F tapped features, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from ..compat.models import is_placed
from ..configuration_eagle3 import Eagle3Config
from ..target.parts import unwrap_peft
from ..target.target import Target
from .attention import Segments


CHECKED_TOKENS = 32  # of the first sample, to check the head


def segments_of(document_ids: Tensor) -> Segments:
    """The documents of packed sequences from ids (B, L), -1 at padding; `None` if no sequence has more than one."""
    if not (document_ids > 0).any():
        return None
    segments = []
    for sequence, ids in enumerate(document_ids.tolist()):
        start = 0
        for end in range(1, len(ids) + 1):
            if end == len(ids) or ids[end] != ids[start]:
                if ids[start] >= 0:
                    segments.append((sequence, start, end))
                start = end
    return tuple(segments)


def grouped_by_length(segments: Segments) -> list[Segments]:
    """The documents in passes of similar lengths, so that padding is at most a third of what is read."""
    groups: list[list] = []
    for segment in sorted(segments, key=lambda segment: segment[1] - segment[2]):  # longest first
        length = segment[2] - segment[1]
        if not groups or 3 * length < 2 * (groups[-1][0][2] - groups[-1][0][1]):
            groups.append([])
        groups[-1].append(segment)
    return [tuple(group) for group in groups]


class TargetReader:
    """
    The frozen target of a training run.

    Args:
        model: The target, in any precision, quantised, sharded by `device_map` or inside PEFT (the draft then learns
            the active adapter).
        draft_config: The draft's configuration.

    Raises:
        ValueError: draft and target do not fit.
    """

    def __init__(self, model: PreTrainedModel, draft_config: Eagle3Config):
        self.model = model
        self.base = unwrap_peft(model)
        self.target = Target(self.base, draft_config)
        if draft_config.vocab_size != self.target.config.vocab_size:
            raise ValueError(
                f"The draft was made for {draft_config.vocab_size} target tokens (`vocab_size`), the target has "
                f"{self.target.config.vocab_size}. If its embeddings were resized, train what "
                "`hf_eagle3.fitting.fit_to(draft, target)` returns."
            )
        self.head_checked = False
        model.eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)

    def to(self, device: torch.device) -> None:
        """Move the target, unless a device map placed it or it is quantised."""
        if not is_placed(self.base) and self.base.device != device:
            self.model.to(device)

    def read(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(tapped features (B, L, F), last hidden states (B, L, H)) of the collator's batch, without gradient."""
        ids, documents = batch["input_ids"], batch["document_ids"]
        # The caller's autocast is for the draft; the target runs in its own precision.
        with torch.autocast(ids.device.type, enabled=False):
            if not self.head_checked:
                first = ids[:1, : int((documents[0] == 0).sum())]
                self.target.check_head(first[:, :CHECKED_TOKENS])
                self.head_checked = True
            segments = segments_of(documents)
            if segments is None:
                return self.target.read(ids, (documents >= 0).long())
            # One sequence per document: not every architecture takes packed ones.
            packed = None
            for group in grouped_by_length(segments):
                unpacked = [ids[sequence, start:end] for sequence, start, end in group]
                mask = pad_sequence([torch.ones_like(document) for document in unpacked], batch_first=True)
                outputs = self.target.read(pad_sequence(unpacked, batch_first=True), mask)
                if packed is None:
                    packed = [output.new_zeros(*ids.shape, output.shape[-1]) for output in outputs]
                for whole, output in zip(packed, outputs, strict=True):
                    for index, (sequence, start, end) in enumerate(group):
                        whole[sequence, start:end] = output[index, : end - start]
        return packed[0], packed[1]

    def embedding_rows(self, ids: Tensor) -> Tensor:
        """The target's embedding rows, (..., H), without gradient."""
        return self.target.embedding_rows(ids).detach()

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (n, V) of last hidden states (n, H), on their device."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.target.head(hidden).to(hidden.device)

    def head_rows(self, ids: Tensor | None) -> Tensor:
        """Rows of the head for `ids` (D,), or all rows, (D, H)."""
        return self.target.head_rows(ids).detach()
