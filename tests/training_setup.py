"""What the tests of training share: a tiny target, text that it wrote, and a trainer over both."""

import functools

import torch
from datasets import Dataset
from models import VOCAB, tiny_target

from hf_eagle3.training import Eagle3Trainer, Eagle3TrainingArguments, count_tokens, new_draft


PROMPT, NEW = 4, 20
DRAFT_SIZES = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48}


@functools.cache
def written(count: int = 48, seed: int = 0) -> Dataset:
    """Samples of different lengths that the tiny Llama drew itself."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    prompts = torch.randint(3, VOCAB, (count, PROMPT), generator=generator)
    ids = tiny_target().generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=NEW, do_sample=True, temperature=0.6
    )
    lengths = torch.randint(PROMPT + 9, PROMPT + NEW + 1, (count,), generator=generator).tolist()
    return Dataset.from_dict(
        {
            "input_ids": [row[:length] for row, length in zip(ids.tolist(), lengths, strict=True)],
            "loss_mask": [[0] * PROMPT + [1] * (length - PROMPT) for length in lengths],
        }
    )


SETTINGS = {
    "max_steps": 6,
    "learning_rate": 3e-3,
    "per_device_train_batch_size": 8,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "num_generation_prompts": 0,
}


def fresh_draft(target=None, size: int = 14, **options):
    target, counts = target or tiny_target(), count_tokens(written(), VOCAB)
    torch.manual_seed(1)  # after what draws numbers of its own, or only once
    return new_draft(target, size, counts, **DRAFT_SIZES | options)


def trainer(folder, target=None, draft=None, data=None, eval_data=None, trainer_options=None, **arguments):
    """A trainer with settings that make tiny runs move."""
    target = target if target is not None else tiny_target()
    return Eagle3Trainer(
        model=draft if draft is not None else fresh_draft(target),
        target_model=target,
        args=Eagle3TrainingArguments(str(folder), **SETTINGS | {"training_time_test_steps": 3} | arguments),
        train_dataset=data if data is not None else written(),
        eval_dataset=eval_data,
        **trainer_options or {},
    )


def losses(run) -> list[float]:
    """Logged training losses of a trainer."""
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def curve(folder, **options) -> list[float]:
    run = trainer(folder, **options)
    run.train()
    return losses(run)
