"""What adaptation in use gains, loses and costs: `python tests/measure_adaptation.py [--answers 200] [--lora-rank N]`.

The embedded pair meets a new domain: questions in capitals, which its draft was not trained on. They are answered in
batches, and after each one there is a pause of a few optimiser steps. tau of chains of 5, greedy, before and after, on
new questions and on the prompts that ship. Times are CPU times of one thread; collecting is measured in turns with and
without it. One JSON line.
"""

import argparse
import json
import random
import time

import torch

import hf_eagle3
from hf_eagle3 import embedded
from hf_eagle3.generation.observed import OBSERVERS


TOPICS = [
    *("DRAGON", "RIVER", "CASTLE", "GARDEN", "WINTER", "SHIP", "KING", "FOREST", "MUSIC"),
    *("BREAD", "TRAIN", "MIRROR", "TEACHER", "WINDOW", "ISLAND", "CLOCK", "DOG", "BRIDGE"),
]
QUESTIONS = (
    "WHAT IS A {}? EXPLAIN.",
    "WHY DO PEOPLE LIKE A {}?",
    "TELL ME SOMETHING NEW ABOUT A {}.",
    "HOW WOULD YOU DESCRIBE A {} TO A CHILD?",
    "WHERE CAN ONE FIND A {} TODAY?",
    "WHAT DOES A {} COST?",
    "WRITE DOWN WHAT YOU KNOW OF A {}.",
    "WHO NEEDS A {} AND WHY?",
    "COMPARE A {} WITH A HOUSE.",
    "WHAT IS THE HISTORY OF THE {}?",
    "IS A {} USEFUL? GIVE REASONS.",
    "WHAT HAPPENS IF A {} IS LOST?",
)
NUM_TESTED, NUM_OLD, NUM_TURNS = 16, 40, 4


def chats(tokenizer, prompts: list[str]) -> dict:
    """Inputs of a batch of questions."""
    conversations = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return tokenizer.apply_chat_template(
        conversations, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
    )


def tau(pair, prompts: list[str], max_new_tokens: int) -> float:
    """Acceptance length over the answers to `prompts`."""
    target, view, tokenizer = pair
    with hf_eagle3.record() as stats:
        answer(target, view, chats(tokenizer, prompts), max_new_tokens)
    return stats.acceptance_length


def answer(target, view, inputs: dict, max_new_tokens: int) -> float:
    """CPU seconds of a call."""
    start = time.process_time()
    target.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, assistant_model=view)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--answers", type=int, default=200)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=10, help="answers between pauses")
    parser.add_argument("--steps", type=int, default=2, help="optimiser steps in a pause")
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--batch-tokens", type=int, default=512)
    parser.add_argument("--lora-rank", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    target, draft, tokenizer = embedded.load_pair()
    tokenizer.padding_side = "left"
    view = draft.with_tree("chain", tree_depth=5)
    pair, length = (target, view, tokenizer), arguments.max_new_tokens
    new = [question.format(topic) for topic in TOPICS for question in QUESTIONS]
    random.Random(0).shuffle(new)
    tested, used = new[:NUM_TESTED], new[NUM_TESTED:][: arguments.answers]
    old = [row["prompt"] for row in embedded.prompts()[:NUM_OLD]]
    found = {"new_before": tau(pair, tested, length), "old_before": tau(pair, old, length)}

    options = {name: vars(arguments)[name] for name in ("learning_rate", "batch_tokens", "lora_rank")}
    adaptation = hf_eagle3.adapt(draft, target, **options)
    collected = plain = 0.0
    for prompt in tested[:NUM_TURNS]:  # answers that are seen here are forgotten below
        inputs = chats(tokenizer, [prompt])
        collected += answer(target, view, inputs, length)
        OBSERVERS.pop(target)
        plain += answer(target, view, inputs, length)
        OBSERVERS[target] = adaptation
    adaptation.close()
    adaptation = hf_eagle3.adapt(draft, target, **options)
    training = generating = 0.0
    for first in range(0, len(used), arguments.batch_size):
        inputs = chats(tokenizer, used[first : first + arguments.batch_size])
        generating += answer(target, view, inputs, length)
        start = time.process_time()
        adaptation.step(arguments.steps)
        training += time.process_time() - start
    adaptation.close()
    found |= {"new_after": tau(pair, tested, length), "old_after": tau(pair, old, length)}
    found |= {
        "gain": found["new_after"] / found["new_before"] - 1,
        "loss": 1 - found["old_after"] / found["old_before"],
        "overhead": collected / plain - 1,
        "training_by_generating": training / generating,
        "answers": adaptation.num_answers,
        "num_steps": adaptation.num_steps,
        "last_losses": adaptation.losses[-3:],
    }
    print(json.dumps(found | vars(arguments)))


if __name__ == "__main__":
    main()
