"""One process of a run that test_distributed.py starts: trains the tiny pair and prints its losses.

`python tests/distributed_run.py FOLDER JSON_OF_ARGUMENTS [crash|resume]`
"""

import json
import os
import signal
import sys

import torch
from transformers import TrainerCallback


torch.set_num_threads(1)
sys.path.insert(0, os.path.dirname(__file__))
from training_setup import losses, trainer


class Crash(TrainerCallback):
    """Dies as a machine does, in the middle of a step after a checkpoint."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    folder, options, mode = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3:]
    callbacks = [Crash()] if mode == ["crash"] else []
    run = trainer(folder, trainer_options={"callbacks": callbacks}, **options)
    run.train(resume_from_checkpoint=mode == ["resume"])
    run.save_model(os.path.join(folder, "final"))
    if run.is_world_process_zero():
        sys.stdout.write("LOSSES " + json.dumps(losses(run)) + "\n")
    sys.stdout.flush()
    run.accelerator.wait_for_everyone()
    os._exit(0)  # gloo's own threads now and then abort or hang a process on its way out


if __name__ == "__main__":
    main()
