"""`adapt`: a draft learns from the answers that its target writes in ordinary use.

Answers are collected as they come (token ids only, a bounded number); training happens when [`Adaptation.step`] is
called, in the pauses between calls. The text never depends on the draft, so it stays as it is. Does not know the
loop or the objective.
"""

import copy
import math
import random
import time
from collections import deque

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .data.collator import Eagle3DataCollator
from .generation.observed import OBSERVERS
from .modeling_eagle3 import Eagle3DraftModel
from .target.parts import unwrapped
from .target.target import Target
from .training.objective import ObjectiveConfig, count_positions
from .training.unrolled import positions_of, unrolled_objective


BETAS, CLIPPING = (0.9, 0.95), 0.5  # EAGLE-3, section 4
LORA_MODULES = ["fc", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CHECKED_TOKENS = 32  # of the first answer, to check the head


class Adaptation:
    """
    What [`adapt`] returns.

    Attributes:
        num_answers: Answers seen.
        num_steps: Optimiser steps.
        training_seconds: Time spent in `step`.
        losses: Loss of each step, weighted over training-time-test steps.
    """

    def __init__(self, draft: Eagle3DraftModel, target: PreTrainedModel, options: dict):
        self.draft, self.target, self.options = draft, target, options
        self.num_answers, self.num_steps, self.training_seconds = 0, 0, 0.0
        self.losses: list[float] = []
        self._parts = Target(target, draft.config)
        self._answers: deque[tuple[Tensor, Tensor]] = deque()  # (token ids, loss mask), on the CPU
        self._random = random.Random(0)  # not the generator that sampling uses
        self._is_checked = False
        self._trained, self._model = _trainable(draft, options["lora_rank"])
        parameters = [p for p in self._model.parameters() if p.requires_grad]
        self._optimiser = torch.optim.AdamW(parameters, lr=options["learning_rate"], betas=BETAS, weight_decay=0.0)
        self._collate = Eagle3DataCollator(max_length=options["max_length"], vocab_size=draft.config.vocab_size)
        self._objective = ObjectiveConfig()
        OBSERVERS[target] = self

    def __enter__(self) -> "Adaptation":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        """Collect no more answers; the draft keeps what it has learned."""
        if OBSERVERS.get(self.target) is self:
            del OBSERVERS[self.target]
        self._answers.clear()

    @property
    def num_tokens(self) -> int:
        """Tokens of the answers that are held, prompts included."""
        return sum(len(ids) for ids, _ in self._answers)

    # What the loop asks, see `generation/observed.py`

    def accepts(self, draft) -> bool:
        """Whether `draft` is the adapted one, or a view of it."""
        return isinstance(draft, Eagle3DraftModel) and draft.fc is self.draft.fc

    def see(self, ids: Tensor, num_prompt_tokens: int) -> None:
        """Keep an answer; the oldest ones make room."""
        ids = ids[: self.options["max_length"]].to("cpu", copy=True)
        mask = torch.ones_like(ids)
        mask[:num_prompt_tokens] = 0
        self.num_answers += 1
        if not mask[2:].any():  # a draft never predicts the first two tokens
            return
        self._answers.append((ids, mask))
        while self.num_tokens > self.options["max_tokens"] and len(self._answers) > 1:
            self._answers.popleft()

    def step(self, num_steps: int = 1) -> float | None:
        """
        Train for `num_steps` optimiser steps, each on a random part of the answers that are held, and use the new
        weights from here on. Call it between calls of `generate`, as often as there is time.

        Returns:
            The loss of the last step; `None` if there is no answer yet.

        Raises:
            FloatingPointError: a non-finite loss. The draft keeps the weights that it had.
        """
        if not self._answers:
            return None
        start = time.perf_counter()
        for _ in range(num_steps):
            self.losses.append(self._one_step())
        self._publish()
        self.num_steps += num_steps
        self.training_seconds += time.perf_counter() - start
        return self.losses[-1]

    def _one_step(self) -> float:
        batch = {name: value.to(self.target.device) for name, value in self._collate(self._some_answers()).items()}
        ids, is_token = batch["input_ids"], (batch["document_ids"] >= 0).long()
        with torch.no_grad(), torch.autocast(ids.device.type, enabled=False):
            if not self._is_checked:
                self._parts.check_head(ids[:1, : min(CHECKED_TOKENS, int(is_token[0].sum()))])
                self._is_checked = True
            features, hidden = self._parts.read(ids, is_token)
        steps = self.options["training_time_test_steps"]
        counts = count_positions(self._objective, positions_of(batch, self._objective), steps)
        with torch.enable_grad():
            loss = unrolled_objective(
                self._trained,
                self._parts,
                self._objective,
                steps,
                batch,
                features.to(self.draft.device),
                hidden,
                counts.clamp_min(1).to(ids.device),
            ).loss
            if not math.isfinite(found := float(loss.detach())):
                raise FloatingPointError(
                    f"The loss is {found} after {self.num_steps} steps; lower `learning_rate` "
                    f"({self.options['learning_rate']})."
                )
            loss.backward()
        nn.utils.clip_grad_norm_([p for p in self._model.parameters() if p.requires_grad], CLIPPING)
        self._optimiser.step()
        self._optimiser.zero_grad()
        return found

    def _some_answers(self) -> list[dict[str, Tensor]]:
        """Random answers of about `batch_tokens` tokens together, at least one."""
        chosen, tokens = [], 0
        for index in self._random.sample(range(len(self._answers)), len(self._answers)):
            ids, mask = self._answers[index]
            if chosen and tokens + len(ids) > self.options["batch_tokens"]:
                break
            chosen.append({"input_ids": ids, "loss_mask": mask})
            tokens += len(ids)
        return chosen

    @torch.no_grad()
    def _publish(self) -> None:
        """Write the trained weights into the draft that is in use, in place: views of it and its storage stay."""
        if self._model is self._trained:
            for used, trained in zip(self.draft.parameters(), self._trained.parameters(), strict=True):
                if trained.requires_grad:
                    used.copy_(trained)
            return
        used = dict(self.draft.named_modules())
        for name, module in self._trained.named_modules():
            if name in used and "base_layer" in dict(module.named_children()):
                used[name].weight.copy_(module.base_layer.weight + module.get_delta_weight("default"))


def _trainable(draft: Eagle3DraftModel, lora_rank: int | None) -> tuple[Eagle3DraftModel, nn.Module]:
    """(a float32 copy of the draft, it or its PEFT wrapper, whose parameters that require gradients are trained)."""
    copied = copy.deepcopy(draft).float()
    copied.requires_grad_(True)
    if copied.embed_tokens is not None:
        copied.embed_tokens.requires_grad_(False)
    if lora_rank is None:
        return copied, copied
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng():  # the adapter's first weights must not change what is sampled next
        config = LoraConfig(r=lora_rank, lora_alpha=2 * lora_rank, target_modules=LORA_MODULES)
        return copied, get_peft_model(copied, config)


def adapt(
    draft: Eagle3DraftModel,
    target: PreTrainedModel,
    *,
    lora_rank: int | None = None,
    learning_rate: float = 5e-5,
    batch_tokens: int = 2048,
    max_tokens: int = 65536,
    max_length: int = 2048,
    training_time_test_steps: int = 7,
) -> Adaptation:
    """
    Let `draft` learn from the answers that `target` writes with it, in ordinary use.

    From here on, every answer of `target.generate(...)` with this draft (as `assistant_model` or attached) is kept as
    token ids, the newest `max_tokens` of them. Nothing is trained until [`Adaptation.step`] is called. Calls with
    images or embeddings are not kept. The text does not depend on the draft, so that it is the same as without;
    sampled text too, since no random number is drawn from torch's generators.

    Args:
        draft: The draft in use. A float32 copy of it is trained (16 bytes per parameter with AdamW's states); after
            each `step` the draft gets its weights, in its own dtype.
        target: Its target, which is only read.
        lora_rank: Train a LoRA adapter of this rank instead of all weights (needs `peft`): less memory.
        learning_rate: Constant. A higher one learns the new text faster and forgets the old one.
        batch_tokens: Tokens per optimiser step, prompts included.
        max_tokens: Most tokens that are held; the oldest answers make room.
        max_length: Longer answers are cut.
        training_time_test_steps: As in training.

    Raises:
        ValueError: `draft` is no EAGLE-3 draft, does not fit the target, or the target is adapted already.

    Example:
        `with hf_eagle3.adapt(draft, target) as adaptation: target.generate(**inputs, assistant_model=draft);
        adaptation.step()`
    """
    target = unwrapped(target)
    if not isinstance(draft, Eagle3DraftModel):
        raise ValueError(f"`draft` is a {type(draft).__name__}; only an `Eagle3DraftModel` can be adapted.")
    if target in OBSERVERS:
        raise ValueError("`target` has an adaptation already; `close()` it first.")
    options = {
        "learning_rate": learning_rate,
        "batch_tokens": batch_tokens,
        "max_tokens": max_tokens,
        "max_length": max_length,
        "training_time_test_steps": training_time_test_steps,
    }
    for name, value in options.items():
        if not value > 0:
            raise ValueError(f"`{name}` is {value!r}; it must be above 0.")
    size = target.config.get_text_config(decoder=True).vocab_size
    if draft.config.vocab_size != size:
        raise ValueError(
            f"`draft` was made for {draft.config.vocab_size} tokens (`vocab_size`), the target has {size}; adapt what "
            "`hf_eagle3.fitting.fit_to(draft, target)` returns, and generate with it."
        )
    return Adaptation(draft, target, options | {"lora_rank": lora_rank})
