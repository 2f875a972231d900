"""What `generate` returns beside tokens: per-step scores, logits, hidden states and attentions, as plain generate
shapes them, collected from the nodes that were accepted.

Sequences reach a step in different cycles, so each step's tensors are filled sequence by sequence, with zeros behind
its end. Shape letters: B sequences, A active ones, N drafted nodes, V vocabulary.
"""

from dataclasses import dataclass

import torch
from transformers import GenerationConfig

from ..compat.outputs import DecoderOnlyOutput, cache_field
from ..target.parts import batch_axis
from .stats import SpeculationStats
from .walk import Walk


@dataclass
class GenerateEagle3Output(DecoderOnlyOutput):
    """
    Transformers' `GenerateDecoderOnlyOutput`, and what speculation did.

    Args:
        speculation ([`SpeculationStats`]): Cycles, accepted tokens, phases.
    """

    speculation: SpeculationStats | None = None


class StepOutputs:
    """
    Args:
        config: The call's generation configuration: what to keep.
        num_sequences: B.
        target_config: The target's text configuration.
    """

    def __init__(self, config: GenerationConfig, num_sequences: int, target_config):
        wanted = bool(config.return_dict_in_generate)
        self.num_sequences, self.config = num_sequences, target_config
        self.scores = [] if wanted and config.output_scores else None
        self.logits = [] if wanted and config.output_logits else None
        self.hidden_states = [] if wanted and config.output_hidden_states else None
        self.attentions = [] if wanted and config.output_attentions else None

    @property
    def is_wanted(self) -> bool:
        """Whether anything per step was asked for."""
        return any(x is not None for x in (self.scores, self.logits, self.hidden_states, self.attentions))

    @property
    def needs_steps(self) -> bool:
        """Whether the walk must keep each step's scores and logits."""
        return self.scores is not None or self.logits is not None

    def add_prefill(self, walk: Walk, outputs) -> None:
        """Step 0: the prompt's own hidden states and attentions, whole."""
        if self.scores is not None:
            self.scores.append(walk.scores[0])
        if self.logits is not None:
            self.logits.append(walk.logits[0])
        if self.hidden_states is not None:
            self.hidden_states.append(outputs.hidden_states)
        if self.attentions is not None:
            self.attentions.append(outputs.attentions)

    def add(self, numbers: list[int], steps: list[int], counts: list[int], walk: Walk, outputs, slots) -> None:
        """
        A cycle's accepted nodes.

        Args:
            numbers, steps, counts: Of each sequence its original number, the step of its first token, and how many
                tokens it committed.
            outputs: The target's.
            slots: Function (active place, nodes of the path) -> slots a node attends to, for attentions.
        """
        if not self.is_wanted:
            return
        all_nodes = walk.nodes.tolist()
        for a, (number, step, count) in enumerate(zip(numbers, steps, counts, strict=True)):
            nodes = all_nodes[a][:count]
            for i in range(count):
                if self.scores is not None:
                    self._put(self.scores, step + i, number, walk.scores[i][a])
                if self.logits is not None:
                    self._put(self.logits, step + i, number, walk.logits[i][a])
                if self.hidden_states is not None:
                    self._put_hidden_states(step + i, number, outputs.hidden_states, a, nodes[i])
                if self.attentions is not None:
                    self._put_attentions(step + i, number, outputs.attentions, a, nodes[: i + 1], slots)

    def _put_hidden_states(self, step: int, number: int, layers, a: int, node: int) -> None:
        axes = [batch_axis(layer, self.config) for layer in layers]
        parts = [layer.select(axis + 1, node).select(axis, a) for layer, axis in zip(layers, axes, strict=True)]
        if len(self.hidden_states) <= step:  # (B, 1, H) of each layer, with streams before B or behind 1
            self.hidden_states.append(
                tuple(
                    part.new_zeros(*part.shape[:axis], self.num_sequences, 1, *part.shape[axis:])
                    for part, axis in zip(parts, axes, strict=True)
                )
            )
        for whole, part, axis in zip(self.hidden_states[step], parts, axes, strict=True):
            whole.select(axis, number).select(axis, 0).copy_(part)

    def _put_attentions(self, step, number, attentions, a, path, slots) -> None:
        if not attentions or attentions[0] is None:  # sdpa computes none; plain generate gives the same
            if len(self.attentions) <= step:
                self.attentions.append(attentions)
            return
        seen = slots(a, torch.tensor(path)).to(attentions[0].device)
        if any(int(seen.max()) >= layer.shape[-1] for layer in attentions):
            raise ValueError(
                "`output_attentions` with layers that do not attend to every token (windows, pooled or recurrent "
                "ones) does not go with a draft; leave one of the two out."
            )
        self._put_layers(self.attentions, step, number, [layer[a, :, path[-1]][:, None, seen] for layer in attentions])

    def _put(self, steps: list, step: int, number: int, value: torch.Tensor) -> None:
        if len(steps) <= step:
            steps.append(value.new_zeros(self.num_sequences, *value.shape))
        steps[step][number] = value

    def _put_layers(self, steps: list, step: int, number: int, values: list[torch.Tensor]) -> None:
        if len(steps) <= step:
            steps.append(tuple(value.new_zeros(self.num_sequences, *value.shape) for value in values))
        for whole, value in zip(steps[step], values, strict=True):
            whole[number] = value

    def pack(self, sequences: torch.Tensor, num_steps: int, cache, stats: SpeculationStats) -> GenerateEagle3Output:
        """The output of a call of `num_steps` steps; `sequences` (B, P + num_steps)."""

        def kept(steps):
            return None if steps is None else tuple(steps[:num_steps])

        return GenerateEagle3Output(
            sequences=sequences,
            scores=kept(self.scores),
            logits=kept(self.logits),
            attentions=kept(self.attentions),
            hidden_states=kept(self.hidden_states),
            speculation=stats,
            **cache_field(cache),
        )
