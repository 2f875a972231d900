"""Progress of training in one line per log, instead of transformers' dictionaries, which go to its loggers only."""

from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerState


LOGGED = 0.05  # a line every 5 % of all steps


class ProgressLines(ProgressCallback):
    """transformers' progress bar, and lines above it."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        """A line; see `progress_line`."""
        if state.is_world_process_zero and (line := progress_line(logs or {}, state)) is not None:
            tqdm.write(line)


class Lines(PrinterCallback):
    """Lines without a bar."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        """A line; see `progress_line`."""
        if state.is_world_process_zero and (line := progress_line(logs or {}, state)) is not None:
            print(line, flush=True)


def print_lines(trainer: Trainer) -> None:
    """Replace what `trainer` prints while it trains."""
    for kind in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(kind)
    trainer.add_callback(Lines if trainer.args.disable_tqdm else ProgressLines)


def progress_line(logs: dict, state: TrainerState) -> str | None:
    """
    E.g. " 35 %  step 350 of 1000  loss 1.234  accuracy 0.61 to 0.58  learning rate 1.2e-03": the accuracy of the first
    and the last training-time-test step. For an evaluation loss and tau. `None` for other logs.
    """
    prefix = "eval_" if "eval_loss" in logs else ""
    if f"{prefix}loss" not in logs:
        return None
    share = state.global_step / max(state.max_steps, 1)
    line = f"{share:4.0%}  step {state.global_step} of {state.max_steps}  "
    line += f"{'evaluation: ' if prefix else ''}loss {logs[f'{prefix}loss']:.3f}"
    steps = sum(name.startswith(f"{prefix}accuracy_") for name in logs)
    if steps:
        first, last = logs[f"{prefix}accuracy_0"], logs[f"{prefix}accuracy_{steps - 1}"]
        line += f"  accuracy {first:.2f}" + (f" to {last:.2f}" if steps > 1 else "")
    if f"{prefix}acceptance_length" in logs:
        line += f"  tau {logs[f'{prefix}acceptance_length']:.2f}"
    return line if prefix else f"{line}  learning rate {logs.get('learning_rate', 0):.1e}"
