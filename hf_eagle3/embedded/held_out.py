"""Selection of the held-out prompts shipped with the pair: none whose answer the target has memorised.

A target this small can memorise frequent openings, and acceptance measured on those would be meaningless.
"""

import json
from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import text


PROMPTS_PER_DOMAIN, LONGEST_PROMPT = 12, 420  # characters
REPEATED = 32  # tokens; an answer that starts with so many from the training text counts as memorised


class MemorisationCheck:
    """Detects memorised answers: those that start with a passage of the training text in `folder`."""

    def __init__(self, target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path):
        self.target, self.tokenizer = target, tokenizer
        training = text.conversations(folder, held_out=False)
        self.training = "\n".join(message["content"] for _, messages in training for message in messages)

    def __call__(self, prompt: str) -> bool:
        """Whether the first 32 tokens of the greedy answer to `prompt` occur in the training text."""
        inputs = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        ids = self.target.generate(**inputs, max_new_tokens=REPEATED, do_sample=False)[0]
        opening = self.tokenizer.decode(ids[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return opening.strip() in self.training


def write_held_out(folder: Path, path: Path, is_memorised: Callable[[str], bool]) -> None:
    """Write the first short held-out prompts of each domain whose answers are not memorised, domains interleaved."""
    found: dict[str, list[str]] = {domain: [] for domain in text.SOURCES}
    for domain, messages in text.conversations(folder, held_out=True):
        prompt = messages[0]["content"]
        if len(found[domain]) == PROMPTS_PER_DOMAIN or len(prompt) >= LONGEST_PROMPT or is_memorised(prompt):
            continue
        found[domain].append(prompt)
    rows = [{"domain": domain, "prompt": found[domain][i]} for i in range(PROMPTS_PER_DOMAIN) for domain in found]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
