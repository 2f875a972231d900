"""What adaptation in use gains, loses and costs: `python tests/measure_adaptation.py [--answers 200] [--lora-rank N]`.

The embedded pair meets a new domain: questions in capitals, which its draft was not trained on. After every few
answers there is a pause of one optimiser step. tau of chains of 5, greedy, before and after, on new questions and on
the prompts that ship. Times are CPU times of one thread; collecting is measured in turns with and without it. One JSON
line.
"""

import argparse
import json
import random
import time

import torch

import hf_eagle3
from hf_eagle3 import embedded


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
NUM_TESTED, NUM_OLD, NUM_TURNS = 14, 12, 12


def chat(tokenizer, prompt: str) -> dict:
    """Inputs of one question."""
    messages = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")


def tau(pair, prompts: list[str], max_new_tokens: int) -> float:
    """Acceptance length over the answers to `prompts`."""
    target, view, tokenizer = pair
    with hf_eagle3.record() as stats:
        for prompt in prompts:
            answer(target, view, chat(tokenizer, prompt), max_new_tokens)
    return stats.acceptance_length


def answer(target, view, inputs: dict, max_new_tokens: int) -> tuple[torch.Tensor, float]:
    """(sequence, CPU seconds)."""
    start = time.process_time()
    out = target.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, assistant_model=view)
    return out, time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--answers", type=int, default=200)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--every", type=int, default=4, help="answers between pauses")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--lora-rank", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    target, draft, tokenizer = embedded.load_pair()
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
        inputs = chat(tokenizer, prompt)
        for _ in range(2):
            collected += answer(target, view, inputs, length)[1]
            accepts, adaptation.accepts = adaptation.accepts, lambda draft: False
            plain += answer(target, view, inputs, length)[1]
            adaptation.accepts = accepts
    adaptation.close()
    adaptation = hf_eagle3.adapt(draft, target, **options)
    training = generating = 0.0
    for number, prompt in enumerate(used, start=1):
        generating += answer(target, view, chat(tokenizer, prompt), length)[1]
        if number % arguments.every == 0:
            start = time.process_time()
            adaptation.step()
            training += time.process_time() - start
    adaptation.close()
    found |= {"new_after": tau(pair, tested, length), "old_after": tau(pair, old, length)}
    found |= {
        "gain": found["new_after"] / found["new_before"] - 1,
        "loss": 1 - found["old_after"] / found["old_before"],
        "overhead": collected / plain - 1,
        "training_by_generating": training / generating,
        "answers": adaptation.num_answers,
        "steps": adaptation.num_steps,
        "last_losses": adaptation.losses[-3:],
    }
    print(json.dumps(found | vars(arguments)))


if __name__ == "__main__":
    main()
