"""`DraftTrainer`: a `transformers.Trainer` whose model is a draft, whatever that draft is.

Only what differs from `Trainer` is here: inputs from the frozen target, denominators over accumulated batches and
processes, metrics, and evaluation by speculative generation. Optimiser, schedules, precision, launchers, checkpoints
and logging are the Trainer's. Does not know drafts or losses: subclasses have a draft's objective.
"""

import logging
from collections.abc import Mapping, Sized
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer

from ..checkpoint import ADAPTER_CONFIG, share_weights
from ..compat.training import prepared_inputs, use_one_device
from ..data.collator import Eagle3DataCollator
from ..data.features import CachedTarget
from ..data.loading import is_tokenised, tokenised
from ..draft_model import DraftModel
from ..generation.stats import record
from ..target.parts import unwrap_peft
from .arguments import Eagle3TrainingArguments
from .best import OverTrainingNotice
from .figures import TrainingFigures
from .target_reader import TargetReader


logger = logging.getLogger(__name__)
LOW_COVERAGE, LOW_AGREEMENT = 0.9, 0.25  # warn below
PLAIN_TEXT_PROMPT = 32  # prompt tokens for evaluation where a sample has no prompt


class DraftTrainer(Trainer):
    """
    Trains a draft model for a target model; subclasses name the draft's class and compute its objective.

    Args:
        model: The draft.
        target_model: The frozen target, however loaded, or a [`CachedTarget`] over offline features.
        args: [`Eagle3TrainingArguments`].
        train_dataset, eval_dataset: Conversations, text or tokens (see `hf_eagle3.data.conversations`).
        processing_class: The target's tokenizer; required unless the data is tokenised.
        peft_config: A PEFT configuration, e.g. a `LoraConfig`, to train an adapter of the draft; only it is saved.
        kwargs: Further arguments of `Trainer`.

    Raises:
        ValueError: draft, target and data do not fit, or no token has loss.
        FloatingPointError: during training, a non-finite loss.
    """

    draft_class: type[DraftModel]
    recorded: tuple[str, ...]  # arguments of the objective that `training.json` names

    def __init__(
        self,
        model: DraftModel,
        target_model: PreTrainedModel | CachedTarget,
        args: Eagle3TrainingArguments | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset] | None = None,
        processing_class=None,
        data_collator: Eagle3DataCollator | None = None,
        peft_config=None,
        **kwargs,
    ):
        args = args if args is not None else Eagle3TrainingArguments(output_dir="eagle3-draft")
        draft = unwrap_peft(model)
        if not isinstance(draft, self.draft_class):
            raise TypeError(
                f"`model` is a {type(draft).__name__}; it must be the draft, an `{self.draft_class.__name__}`."
            )
        if not isinstance(unwrap_peft(target_model), (CachedTarget, PreTrainedModel)):
            raise TypeError(
                f"`target_model` is a {type(target_model).__name__}; it must be the loaded target, or a "
                "`CachedTarget` over precomputed features."
            )
        self.reader = (
            target_model if isinstance(target_model, CachedTarget) else TargetReader(target_model, draft.config)
        )
        if isinstance(self.reader, CachedTarget):
            self.reader.check_fits(draft.config)
        self.check_draft(draft, args)
        for name in ("compute_metrics", "compute_loss_func", "preprocess_logits_for_metrics"):
            if kwargs.get(name) is not None:
                raise ValueError(f"`{name}` is not supported: the trainer computes the draft's metrics itself.")
        if args.chat_template_kwargs:
            draft.config.chat_template_kwargs = dict(args.chat_template_kwargs)
        if args.n_gpu > 1:
            logger.warning("Training on one of %d GPUs; `accelerate launch` uses all.", args.n_gpu)
            use_one_device(args)  # the Trainer would wrap the draft in DataParallel
        model = self._prepare_draft(model, draft, args, peft_config)
        self._vocab_size = draft.config.vocab_size
        train_dataset = self._tokenised(train_dataset, processing_class, args, "Training data")
        if isinstance(eval_dataset, dict):
            eval_dataset = {
                name: self._tokenised(part, processing_class, args, f"Evaluation data {name!r}")
                for name, part in eval_dataset.items()
            }
        else:
            eval_dataset = self._tokenised(eval_dataset, processing_class, args, "Evaluation data")
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator
            or Eagle3DataCollator(max_length=args.max_length, packing=args.packing, vocab_size=self._vocab_size),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self.add_callback(OverTrainingNotice)
        # `compute_loss` gets the denominators of all accumulated batches, so the Trainer must not divide again.
        self.model_accepts_loss_kwargs = True
        self.reader.to(self.args.device)
        self._figures: dict[bool, TrainingFigures | None] = {True: None, False: None}  # by `model.training`
        self._warned: set[str] = set()

    @staticmethod
    def _prepare_draft(model, draft: DraftModel, args: Eagle3TrainingArguments, peft_config):
        if draft.embed_tokens is not None:
            draft.embed_tokens.requires_grad_(False)
        if draft.lm_head is not None and not args.train_lm_head:
            draft.lm_head.requires_grad_(False)
        if draft.dtype != torch.float32 and peft_config is None:
            logger.warning(
                "The draft's weights are %s, in which small updates are lost to rounding. Load it with "
                "dtype=torch.float32 and train with `bf16=True`.",
                draft.dtype,
            )
        if peft_config is not None:
            from peft import get_peft_model

            if not draft.name_or_path:  # the adapter's `base_model_name_or_path`
                draft.name_or_path = str(Path(args.output_dir) / "base")
                if args.should_save:
                    draft.save_pretrained(draft.name_or_path)
            model = get_peft_model(model, peft_config)
        elif model is not draft and not draft.name_or_path:
            logger.warning(
                "The saved adapter will not name its base model, because the draft inside it was never saved or "
                "loaded. Pass the plain draft as `model` and a `peft_config`: the base is then saved to `base/` in "
                "`output_dir`."
            )
        return model

    def save_model(self, output_dir: str | None = None, **kwargs) -> None:
        """`Trainer.save_model` for a draft or its adapter, with file permissions that follow the umask."""
        super().save_model(output_dir, **kwargs)
        folder = Path(output_dir or self.args.output_dir)
        if self.args.should_save and (folder / ADAPTER_CONFIG).is_file():
            share_weights(folder, ADAPTER_CONFIG)

    def _tokenised(self, dataset, tokenizer, args: Eagle3TrainingArguments, name: str):
        if not isinstance(dataset, (Dataset, IterableDataset)):  # offline features, or a torch dataset of tokens
            if isinstance(dataset, Sized) and not has_loss_tokens(dataset):
                raise ValueError(
                    f"{name}: none of {len(dataset)} samples has a token to learn from; check `loss_mask`."
                )
            return dataset
        if is_tokenised(dataset, args.max_length, self._vocab_size):
            return dataset
        kwargs = args.chat_template_kwargs
        return tokenised(
            dataset, tokenizer, args.max_length, name=name, template_kwargs=kwargs, vocab_size=self._vocab_size
        )

    # What a kind of draft brings along

    def check_draft(self, draft: DraftModel, args: Eagle3TrainingArguments) -> None:
        """Raises ValueError where draft and arguments do not go together."""

    def prepare_batch(self, batch: dict[str, Tensor]) -> None:
        """Add to a batch what `counts` and `objective_of` are both to see: whatever is drawn at random."""

    def counts(self, batch: dict[str, Tensor]) -> Tensor:
        """Denominators of a batch's losses, (S,); additive over batches and processes."""
        raise NotImplementedError

    def objective_of(self, draft: DraftModel, batch, features: Tensor, hidden: Tensor, denominators: Tensor) -> Any:
        """
        The objective of a batch, with `loss` and `step_losses` (S,).

        Args:
            batch: The collator's, after `prepare_batch`.
            features, hidden: Of the tapped layers (B, L, F), and inputs of the target's head (B, L, H_target).
            denominators: Sums of `counts` over all accumulated batches, (S,).
        """
        raise NotImplementedError

    def add_figures(self, figures: TrainingFigures, measured: Any, batch: dict[str, Tensor]) -> None:
        """Add a batch to the metrics."""
        raise NotImplementedError

    def num_steps(self) -> int:
        """How many losses a batch has (S)."""
        raise NotImplementedError

    # Loss

    def get_batch_samples(self, epoch_iterator, num_batches: int, device: torch.device):
        """The batches of one optimiser step, and the denominators of the step losses over all of them, (S,)."""
        batches = list(islice(epoch_iterator, num_batches))
        return batches, self._denominators(batches, device) if batches else None

    def _denominators(self, batches: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        for batch in batches:
            self.prepare_batch(batch)
        counts = sum(self.counts(batch).to(device) for batch in batches)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            # DDP averages gradients over processes, so the mean count is right, not the sum.
            counts = self.accelerator.reduce(counts, "mean")
        return counts.clamp_min(1)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ):
        """The loss of one batch; `num_items_in_batch` are the denominators of `get_batch_samples`, (S,)."""
        if num_items_in_batch is None:
            num_items_in_batch = self._denominators([inputs], self.args.device)
        if "target_features" in inputs:
            features, hidden = inputs["target_features"], inputs["last_hidden_states"]
        else:
            features, hidden = self.reader.read(inputs)
        measured = model(
            procedure=self._measure,
            batch=inputs,
            features=features,
            hidden=hidden,
            denominators=num_items_in_batch,
        )["measured"]
        self._check_finite(measured)
        self._record_figures(measured, inputs, model.training)
        return (measured.loss, {"measured": measured}) if return_outputs else measured.loss

    def _measure(self, draft: DraftModel, **inputs) -> dict[str, Any]:
        return {"measured": self.objective_of(draft, **inputs)}

    def target_head(self, hidden: Tensor) -> Tensor:
        """Logits (n, V) of the target's last hidden states (n, H_target), on the draft's device."""
        return self.reader.head(hidden).to(self.args.device)

    def _check_finite(self, measured: Any) -> None:
        if not torch.isfinite(measured.loss):
            raise FloatingPointError(
                f"The loss is {measured.loss.item()} at optimiser step {self.state.global_step} (per "
                f"training-time-test step: {[round(x, 4) for x in measured.step_losses.tolist()]}). Lower "
                f"`learning_rate` ({self.args.learning_rate}), use bf16 instead of fp16, or check the target for "
                "non-finite hidden states."
            )

    # Figures

    def _record_figures(self, measured: Any, batch: dict[str, Tensor], training: bool) -> None:
        device = measured.loss.device
        if self._figures[training] is None:
            self._figures[training] = TrainingFigures.zeros(self.num_steps(), device)
        self.add_figures(self._figures[training], measured, batch)

    def draft(self) -> DraftModel:
        """The draft, without wrappers."""
        return unwrap_peft(self.accelerator.unwrap_model(self.model))

    def _take_figures(self, training: bool) -> TrainingFigures | None:
        figures, self._figures[training] = self._figures[training], None
        if figures is None:
            return None
        figures = figures.reduced(self.accelerator)
        if figures.coverage < LOW_COVERAGE:
            self._warn_once(
                "coverage",
                f"The draft vocabulary contains only {figures.coverage:.1%} of the target's argmax tokens; the others "
                "can never be accepted. Choose it from the target's own text (`hf-eagle3 prepare vocabulary`) or "
                "increase `draft_vocab_size`.",
            )
        if figures.agreement < LOW_AGREEMENT:
            self._warn_once(
                "agreement",
                f"Only {figures.agreement:.1%} of the training text's tokens are the target's argmax. Check that the "
                "chat template and tokenizer are the target's; if they are, train on answers that the target "
                "generates (`hf-eagle3 prepare regenerate`).",
            )
        return figures

    def _warn_once(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            logger.warning(message)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """`Trainer.log`, with the metrics since the last training log."""
        if "loss" in logs and (figures := self._take_figures(training=True)) is not None:
            logs.update(figures.ratios())
        super().log(logs, start_time)

    def train(self, *args, **kwargs):
        """`Trainer.train`, discarding metrics of an earlier run."""
        self._figures[True] = None
        return super().train(*args, **kwargs)

    # Evaluation

    def evaluate(self, eval_dataset=None, *args, **kwargs):
        """`Trainer.evaluate`, which also accepts conversations."""
        return super().evaluate(self._tokenised_for_evaluation(eval_dataset), *args, **kwargs)

    def predict(self, test_dataset, *args, **kwargs):
        """`Trainer.predict`, which returns the metrics of `evaluate` and no predictions."""
        return super().predict(self._tokenised_for_evaluation(test_dataset), *args, **kwargs)

    def _tokenised_for_evaluation(self, dataset):
        return self._tokenised(dataset, self.processing_class, self.args, "Evaluation data")

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The loss only; metrics are accumulated by `compute_loss`."""
        inputs = prepared_inputs(self, inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
        return loss.detach(), None, None

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        """`Trainer.evaluation_loop`, with the draft's metrics and true acceptance length added."""
        self._figures[False] = None
        output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        figures = self._take_figures(training=False)
        found = figures.ratios() if figures is not None else {}
        if self.args.num_generation_prompts:
            found |= self.generation_figures(dataloader.dataset)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in found.items()})
        return output

    @torch.no_grad()
    def generation_figures(self, dataset) -> dict[str, float]:
        """
        `acceptance_length`: tau of greedy speculative generation from the prompts of the first samples of `dataset`.
        Empty without a loaded target (offline features) or with a sharded draft (FSDP, DeepSpeed ZeRO-3).
        """
        if isinstance(self.reader, CachedTarget) or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return {}
        draft = self.draft()
        sizes = self.args.generation_tree_sizes()
        view = draft.with_tree(sizes[0], **sizes[1]) if sizes else draft
        device = self.reader.base.device
        own_indices = range(self.args.process_index, self.args.num_generation_prompts, self.args.world_size)
        with record() as stats, torch.autocast(device.type, enabled=False):
            for index, sample in enumerate(dataset):
                if index >= self.args.num_generation_prompts:
                    break
                if index in own_indices:
                    prompt = torch.tensor([generation_prompt(sample)], device=device)
                    self.reader.base.generate(
                        input_ids=prompt,
                        attention_mask=torch.ones_like(prompt),
                        max_new_tokens=self.args.generation_max_new_tokens,
                        do_sample=False,
                        assistant_model=view,
                    )
        counts = torch.tensor([stats.num_committed_tokens, stats.num_cycles], device=self.args.device)
        committed, cycles = self.accelerator.reduce(counts, "sum").tolist()
        return {"acceptance_length": round(committed / cycles, 4)} if cycles else {}


def has_loss_tokens(samples) -> bool:
    """Whether any sample has a token with loss. Stops at the first one, so that few features are read from disk."""
    for index in range(len(samples)):
        sample = samples[index]
        if (
            not isinstance(sample, Mapping) or "loss_mask" not in sample
        ):  # no mask means loss everywhere; or a custom collator's samples
            return True
        if torch.as_tensor(sample["loss_mask"])[2:].any():  # a draft never predicts the first two tokens
            return True
    return not len(samples)


def generation_prompt(sample: dict) -> list[int]:
    """The tokens before the first answer, or the start of plain text."""
    ids, mask = list(sample["input_ids"]), list(sample["loss_mask"])
    start = mask.index(1) if 1 in mask else 0
    return ids[:start] if start > 1 else ids[: min(PLAIN_TEXT_PROMPT, max(len(ids) // 2, 1))]
