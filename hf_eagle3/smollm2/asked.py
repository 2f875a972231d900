"""Questions that the target asks itself: it continues the chat where a user's turn begins (Magpie, arXiv 2406.08464).

Instruction data whose licence is the target's own. Some begin freely, some with a word of `OPENINGS`. Needs a server
with OpenAI's /completions; does not know what becomes of the questions.
"""

import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from transformers import PreTrainedTokenizerBase


OPENINGS = ("What", "How", "Why", "Who", "When", "Give", "Name", "List", "Explain", "Describe", "Write", "Compose")
OPENINGS += ("Generate", "Create", "Suggest", "Compare", "Rewrite", "Tell")
FREE_SHARE = 0.4
TEMPERATURE, TOP_P = 0.9, 0.95  # below 1: a small model's rarest tokens make no sense as questions
MOST_TOKENS, FEWEST_WORDS = 120, 4
PER_REQUEST, AT_ONCE = 8, 8
ROUND = 32  # requests before the next count; the server runs empty at its end
MARK = "\x00"


def ask(url: str, model: str, tokenizer: PreTrainedTokenizerBase, path: Path, count: int) -> list[str]:
    """
    `count` different questions; those in the file `path` first, what comes new is appended there.

    Args:
        url: Of the server, up to the version.
        model: Its name there.
        tokenizer: The target's.
        path: One JSON string on each line.
        count: How many.
    """
    questions = dict.fromkeys(json.loads(line) for line in read_lines(path))
    head = opening_of_a_turn(tokenizer)
    # Each request has seeds of its own, also after an interruption: one round gives at least one question.
    first = len(questions) * ROUND * PER_REQUEST
    with httpx.Client(base_url=url.rstrip("/"), timeout=1800) as client, ThreadPoolExecutor(AT_ONCE) as pool:
        while len(questions) < count:
            seeds = range(first, first + ROUND * PER_REQUEST, PER_REQUEST)
            first = seeds.stop
            for answered in pool.map(lambda seed: request(client, model, head, seed), seeds):
                new = [question for question in answered if question not in questions]
                questions |= dict.fromkeys(new)
                with path.open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps(question) + "\n" for question in new)
    return list(questions)[:count]


def read_lines(path: Path) -> list[str]:
    """Whole lines of a file that may not be there yet; a line cut off by an interruption is cut off the file too."""
    if not path.exists():
        return []
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        with path.open("r+b") as file:
            file.truncate(end)
    return content[:end].decode().splitlines()


def opening_of_a_turn(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat up to where a user's first words stand."""
    chat = tokenizer.apply_chat_template([{"role": "user", "content": MARK}], tokenize=False)
    return chat.split(MARK)[0]


def request(client: httpx.Client, model: str, head: str, seed: int) -> list[str]:
    """The usable questions of one request."""
    draw = random.Random(seed)
    opening = "" if draw.random() < FREE_SHARE else draw.choice(OPENINGS)
    body = {"model": model, "prompt": head + opening, "n": PER_REQUEST, "max_tokens": MOST_TOKENS}
    # A server draws the same noise for the same seed, whatever the prompt: words would recur.
    response = client.post("/completions", json=body | {"temperature": TEMPERATURE, "top_p": TOP_P, "seed": seed})
    response.raise_for_status()
    found = [opening + choice["text"] for choice in response.json()["choices"] if choice["finish_reason"] == "stop"]
    return [question.strip() for question in found if is_usable(question.strip())]


def is_usable(question: str) -> bool:
    """Whether it is a question in English that stands by itself; the draft's text is English."""
    return question.isascii() and question.isprintable() and len(question.split()) >= FEWEST_WORDS
