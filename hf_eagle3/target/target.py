"""A target model for one `generate` call or one training run: tapped features, embedding, head, forward options.

Does not know trees, the batch or the draft's weights.

Shape letters: B batch, L sequence, H hidden, V vocabulary, F width of the tapped features (taps x H).
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.utils import logging

from ..compat.calls import optimised_for_decoding
from ..compat.models import optional_field
from ..configuration_eagle3 import Eagle3Config, default_target_layer_ids, num_decoder_layers
from .layer_inputs import (
    NO_POSITION_IDS,
    POSITION_IDS_BY_KEYWORD,
    LayerInputs,
)
from .multi_token import StepParts, mixers, stepping
from .parts import (
    decoder_layers,
    decoder_of,
    embedding_weight,
    head_options,
    head_rows,
    int8_outliers,
    is_compiled,
    one_stream,
    shaped_logits,
)
from .taps import Taps


logger = logging.get_logger(__name__)

MOST_RESIZED = 1024  # embeddings resized by fine-tuning or padding differ by at most this, or by a factor of 2


class Target:
    """
    A target model for one `generate` call or training run.

    Args:
        model: The target.
        draft_config: The draft's configuration; its tapped layers are resolved against the target. `None`: no layer is
            tapped.

    Raises:
        ValueError: draft and target do not fit; the message gives both sizes.
    """

    def __init__(self, model: PreTrainedModel, draft_config: Eagle3Config | None):
        self.model = model
        self.config = model.config.get_text_config(decoder=True)
        self.layer_ids = [] if draft_config is None else check_fit(self.config, draft_config)
        num_layers = num_decoder_layers(self.config)
        width = model.get_input_embeddings().weight.shape[1]
        if self.layer_ids and width != draft_config.hidden_size and not draft_config.has_embed_tokens:
            raise ValueError(
                f"The target's embedding rows are {width} wide, the draft is {draft_config.hidden_size} wide with no "
                "`embed_tokens` of its own; use a draft that has them."
            )
        self.keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.takes_positions = model.config.model_type not in NO_POSITION_IDS
        self.counts_padding = model.config.model_type in POSITION_IDS_BY_KEYWORD
        if int8_outliers(model):
            logger.warning_once(
                f"The target is loaded in 8 bits with `llm_int8_threshold={int8_outliers(model)}`: a token's logits "
                "depend on the other tokens of its pass, so the text may differ, as it does with the batch size. "
                "`llm_int8_threshold=0.0` makes tokens independent."
            )
        self._handles: list = []
        layers = decoder_layers(model)
        self.uses_hooks = layers is not None and not is_compiled(model)
        if not self.uses_hooks:
            self._refuse_last_layer()
        # Layers that share other layers' keys run the prompt's last token only, unless `output_hidden_states` is set.
        num_shared = optional_field(self.config, "num_kv_shared_layers") or 0
        self.prefill_options = (
            {"output_hidden_states": True}
            if not self.uses_hooks or (num_shared and max(self.layer_ids, default=-1) >= num_layers - num_shared)
            else {}
        )
        decoder = decoder_of(model, layers)
        if num_layers in self.layer_ids and decoder is model:
            raise ValueError(
                f"The draft reads the input of the target's head, which {type(model).__name__} does not show: its "
                "`get_decoder()` does not run its layers. Use a draft that taps layers, such as an EAGLE-3 draft."
            )
        # After the last layer comes the decoder as a whole: its output is the head's input.
        tapped = {i: decoder if i == num_layers else layers[i] for i in self.layer_ids} if self.uses_hooks else {}
        self.taps = Taps(decoder, tapped, self.config)
        self.layer_inputs = LayerInputs(model, self.config, layers)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks on the tapped layers inside the block; they are removed on errors too."""
        self._handles = self.layer_inputs.register()
        try:
            if self.uses_hooks:
                self._handles += self.taps.register()
            yield
        finally:
            self._detach()

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()

    def read_outputs(self) -> None:
        """From now on, take features from the outputs' `hidden_states`: compiled passes run no hooks."""
        self._refuse_last_layer()
        self._detach()
        self.uses_hooks = False

    def _refuse_last_layer(self) -> None:
        if max(self.layer_ids, default=-1) == num_decoder_layers(self.config) - 1:
            raise ValueError(
                f"The draft taps the last layer ({max(self.layer_ids)}) before the final norm, but without hooks only "
                "`hidden_states` can be read, which has it after the norm. Pass the uncompiled target, no "
                "`cache_implementation='static'`, and a tree mode other than 'host_chain'."
            )

    def capturing(self):
        """Capture the tapped layers' outputs of passes inside the block."""
        return self.taps.capturing()

    def features(self, outputs) -> torch.Tensor:
        """Tapped layers' outputs of the captured passes, concatenated, (B, L, F); F is 0 if none is tapped."""
        if not self.layer_ids:
            return outputs.logits[..., :0]
        return _side_by_side(self.taps.take()) if self.uses_hooks else self.output_features(outputs)

    def output_features(self, outputs) -> torch.Tensor:
        """
        The same from the `hidden_states` of one pass.

        Raises:
            ValueError: there is not one per layer.
        """
        shown, num_layers = len(outputs.hidden_states), num_decoder_layers(self.config)
        if shown != num_layers + 1:
            raise ValueError(
                f"{type(self.model).__name__} returns {shown} hidden states for {num_layers} layers, so the tapped "
                "ones cannot be identified. Pass the uncompiled target, no `cache_implementation='static'`, and a "
                "tree mode other than 'host_chain'."
            )
        # The last one is after the final norm, so that it is also the head's input, whose id is `num_layers`.
        places = [min(i + 1, num_layers) for i in self.layer_ids]
        return _side_by_side([one_stream(outputs.hidden_states[i], self.config) for i in places])

    def on_input_device(self, ids: torch.Tensor) -> torch.Tensor:
        """`ids` on the device of the model's inputs; a fully offloaded model accepts any device."""
        return ids if self._device.type == "meta" else ids.to(self._device)

    @cached_property
    def _device(self) -> torch.device:
        return self.model.device

    @cached_property
    def embedding_weight(self) -> torch.Tensor:
        """Raw embedding rows (V, H), neither scaled nor normalised."""
        return embedding_weight(self.model)

    def embedding_rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of `ids` (any shape), (..., H), on the embedding's device."""
        weight = self.embedding_weight
        return F.embedding(ids.to(weight.device), weight)

    def head_rows(self, ids: torch.Tensor | None) -> torch.Tensor:
        """Rows of the output head for `ids` (D,), for drafts that store no head of their own, (D, H)."""
        return head_rows(self.model, self.config.hidden_size, ids)

    def run_decoder(self, input_ids: torch.Tensor, attention_mask: torch.Tensor):
        """One pass without head or cache; `last_hidden_state` of the output is the head's input."""
        return self.model.get_decoder()(
            input_ids=input_ids,
            attention_mask=attention_mask,
            use_cache=False,
            output_hidden_states=not self.uses_hooks,
            return_dict=True,
        )

    def read(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(tapped features (B, L, F), last hidden states (B, L, H)) of right-padded sequences, without gradient."""
        with torch.no_grad(), self.attached():
            with self.capturing():
                outputs = self.run_decoder(input_ids, attention_mask)
            return self.features(outputs), outputs.last_hidden_state

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (..., V) of last hidden states (..., H); `check_head` verifies that the head does no more."""
        return shaped_logits(self.model.get_output_embeddings()(hidden), head_options(self.config))

    @torch.no_grad()
    def check_head(self, input_ids: torch.Tensor) -> None:
        """
        Compare `head` with the model's own logits on one short sequence, (1, L).

        Raises:
            ValueError: the head does something unknown (another scale, cap or projection).
        """
        mask = torch.ones_like(input_ids)
        expected = self.model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits.float()
        found = self.head(self.run_decoder(input_ids, mask).last_hidden_state).to(expected.device).float()
        scale = expected.std().clamp_min(1e-6)  # a relative error would explode at logits near zero
        difference = float((found - expected).abs().max() / scale) if found.shape == expected.shape else float("inf")
        if not difference < (1e-3 if self.model.dtype == torch.float32 else 0.1):
            raise ValueError(
                f"The head of {type(self.model).__name__} is not a projection of the last hidden states with a known "
                f"scale or soft cap: its logits differ by {difference:.3g} standard deviations. Training applies the "
                "head alone; please report the architecture."
            )

    def stepping(self):
        """Make multi-token passes inside the block equal to single steps."""
        return stepping(self._step_parts)

    @cached_property
    def state_modules(self) -> list[torch.nn.Module]:
        """Modules that hold recurrent or convolution states."""
        return mixers(self.model)

    @cached_property
    def _step_parts(self) -> StepParts:
        return StepParts.of(self.model)

    def decoding_optimised(self):
        """Inside the block, experts run as in the single steps of plain `generate`."""
        return optimised_for_decoding(self.model)


def _side_by_side(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([part.to(parts[0].device) for part in parts], dim=-1)


def check_fit(config, draft: Eagle3Config) -> list[int]:
    """
    The tapped layers of `draft`, resolved for a target's text configuration; the number of layers stands for the input
    of the target's head.

    Raises:
        ValueError: hidden size, vocabulary or tapped layers do not fit; the message gives both sizes.
    """
    if config.hidden_size != draft.target_hidden_size:
        raise ValueError(
            f"The draft reads hidden states of width {draft.target_hidden_size} (`target_hidden_size`), the target's "
            f"are {config.hidden_size} wide; this draft belongs to another target."
        )
    fewer, more = sorted((config.vocab_size, draft.vocab_size))
    if more - fewer > max(fewer, MOST_RESIZED):
        raise ValueError(
            f"The draft was made for {draft.vocab_size} target tokens (`vocab_size`), the target has "
            f"{config.vocab_size}: too far apart for resized embeddings; this draft belongs to another target."
        )
    if draft.hidden_size != draft.target_hidden_size and not draft.has_embed_tokens:
        raise ValueError(
            f"The draft is {draft.hidden_size} wide, the target {draft.target_hidden_size}, and the draft has no "
            "`embed_tokens` of its own; embedding rows of the target do not fit it."
        )
    num_layers = num_decoder_layers(config)
    if draft.reads_head_input:
        return [num_layers]
    ids = draft.target_layer_ids
    if ids is None:
        ids = default_target_layer_ids(num_layers)
        if len(set(ids)) != len(ids) or min(ids) < 0:
            raise ValueError(
                f"The checkpoint names no tapped layers, and the default ones of a target with {num_layers} layers "
                f"are not distinct ({ids}); pass `target_layer_ids=[...]` to `Eagle3DraftModel.from_pretrained`."
            )
    if max(ids) == num_layers and min(ids) > 0:
        # Indices into `hidden_states`, which starts with the embedding, where others count layers (NVIDIA's gpt-oss
        # drafts; SGLang 0.5.23 detects them in the same way).
        ids = [i - 1 for i in ids]
    if max(ids) > num_layers - 1:
        raise ValueError(
            f"The draft taps layers {list(ids)} (zero-based), the target has {num_layers}; this draft belongs to "
            "another target."
        )
    only_with_images = sorted(set(ids) & set(optional_field(config, "cross_attention_layers") or ()))
    if only_with_images:
        raise ValueError(
            f"The draft taps layers {list(ids)}, of which the target runs {only_with_images} on images only; use a "
            "draft with other `target_layer_ids`."
        )
    return list(ids)
