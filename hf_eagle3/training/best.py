"""Which checkpoint to keep: the one with the highest true acceptance length (tau), and a notice of over-training.

Does not know how tau is measured: it reads the figure that the Trainer logs at every evaluation.
"""

import logging
from collections.abc import Container, Iterable, Mapping

from transformers import Trainer, TrainerCallback


logger = logging.getLogger(__name__)
TAU = "acceptance_length"
EVALUATIONS = 0.1  # of all steps: ten evaluations
NUM_KEPT = 2  # checkpoints on disk: the best one, and the last one to resume from
NOTICEABLE = 0.05  # relative loss of tau; 8 prompts of 64 tokens do not resolve less


def keep_best(trainer: Trainer, given: Container[str]) -> bool:
    """
    Let `trainer` evaluate and save ten times, or as often as its arguments say, and end with the checkpoint of the
    highest tau.

    Args:
        trainer: Before training.
        given: Names of the training arguments that the user has set; none of them is changed.

    Returns:
        Whether it will. `False` without evaluation data, where tau cannot be measured (precomputed features, sharded
        drafts, no evaluation prompts), or where the user's arguments choose otherwise.
    """
    args = trainer.args
    if trainer.eval_dataset is None or any(
        name in given for name in ("load_best_model_at_end", "metric_for_best_model")
    ):
        return False
    chosen = {name: vars(args)[name] for name in ("eval_strategy", "save_strategy") if name in given}
    strategy = next(iter(chosen.values()), "steps")
    if strategy not in ("steps", "epoch") or any(other != strategy for other in chosen.values()):
        return False
    steps = {name: vars(args)[name] for name in ("eval_steps", "save_steps") if name in given}
    eval_steps = steps.get("eval_steps", steps.get("save_steps", EVALUATIONS))
    save_steps = steps.get("save_steps", eval_steps)
    if strategy == "steps" and not is_multiple(save_steps, eval_steps):
        return False
    if not trainer.generation_figures(trainer.eval_dataset):
        return False
    # After construction: only now is it known whether there is evaluation data and whether tau can be measured.
    args.eval_strategy, args.save_strategy = type(args.eval_strategy)(strategy), type(args.save_strategy)(strategy)
    args.eval_steps, args.save_steps, args.do_eval = eval_steps, save_steps, True
    args.load_best_model_at_end, args.metric_for_best_model, args.greater_is_better = True, TAU, True
    if not any(name in given for name in ("save_total_limit", "save_steps", "save_strategy")):
        args.save_total_limit = NUM_KEPT
    return True


def is_multiple(save_steps: float, eval_steps: float) -> bool:
    """Whether every save follows an evaluation; both are counts, or both are shares of all steps (below 1)."""
    if (save_steps < 1) != (eval_steps < 1):
        return False
    ratio = save_steps / eval_steps
    return ratio >= 1 and abs(ratio - round(ratio)) < 1e-6


def evaluations(history: Iterable[Mapping]) -> list[tuple[int, float]]:
    """(step, tau) of every evaluation in a Trainer's `state.log_history`."""
    return [(entry["step"], entry[f"eval_{TAU}"]) for entry in history if f"eval_{TAU}" in entry]


def over_training(history: Iterable[Mapping]) -> str | None:
    """
    One line if tau has fallen since its best evaluation while the training loss went on falling; else `None`.

    Args:
        history: A Trainer's `state.log_history`.
    """
    history = list(history)
    found = evaluations(history)
    if len(found) < 2:
        return None
    (best_step, best), (last_step, last) = max(found, key=lambda each: each[1]), found[-1]
    before, after = (_loss_at(history, step) for step in (best_step, last_step))
    if last >= best * (1 - NOTICEABLE) or before is None or after is None or after >= before:
        return None
    return (
        f"Over-training: tau fell from {best:.2f} at step {best_step} to {last:.2f} at step {last_step} while the "
        f"training loss fell from {before:.3f} to {after:.3f}; train for about {best_step} steps, or on more data."
    )


def _loss_at(history: list[Mapping], step: int) -> float | None:
    """The last training loss logged up to `step`."""
    return next((entry["loss"] for entry in reversed(history) if "loss" in entry and entry["step"] <= step), None)


class OverTrainingNotice(TrainerCallback):
    """Logs `over_training` at the end, with the step of the checkpoint that is kept."""

    def on_train_end(self, args, state, control, **kwargs):
        """At the end of training; see the class."""
        if state.is_world_process_zero and (line := over_training(state.log_history)) is not None:
            kept = f" The checkpoint of step {state.best_global_step} is kept." if args.load_best_model_at_end else ""
            logger.warning(line + kept)
