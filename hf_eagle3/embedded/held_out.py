"""The held-out prompts that ship with the pair: none whose answer the target knows by heart.

A target this small can have a frequent beginning by heart; speed measured on that would say nothing.
"""

import json
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import text


PROMPTS_PER_DOMAIN, LONGEST_PROMPT = 12, 420  # characters
REPEATED = 32  # tokens: no greedy answer may begin with so many of the training text


class Repetition:
    """Which answers begin as some training text goes; the text is that of `folder`."""

    def __init__(self, target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path):
        self.target, self.tokenizer = target, tokenizer
        training = text.conversations(folder, held_out=False)
        self.training = "\n".join(message["content"] for _, messages in training for message in messages)

    def __call__(self, prompt: str) -> bool:
        """Whether the first 32 tokens of the greedy answer to `prompt` stand somewhere in the training text."""
        inputs = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        ids = self.target.generate(**inputs, max_new_tokens=REPEATED, do_sample=False)[0]
        beginning = self.tokenizer.decode(ids[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return beginning.strip() in self.training


def write_held_out(folder: Path, path: Path, repetition: Repetition) -> None:
    """The first short held-out prompts of every domain whose answers repeat nothing, the domains in turn."""
    found: dict[str, list[str]] = {domain: [] for domain in text.SOURCES}
    for domain, messages in text.conversations(folder, held_out=True):
        prompt = messages[0]["content"]
        if len(found[domain]) == PROMPTS_PER_DOMAIN or len(prompt) >= LONGEST_PROMPT or repetition(prompt):
            continue
        found[domain].append(prompt)
    rows = [{"domain": domain, "prompt": found[domain][i]} for i in range(PROMPTS_PER_DOMAIN) for domain in found]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
