"""The training text of the embedded pair: permissively licensed public files as conversations.

A conversation is a list of messages ({"role", "content"}), user first. Does not know tokenizers or models.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlretrieve


HELD_OUT_EVERY = 40  # every 40th conversation is held out from training
CALCULATOR_NOTES = re.compile(r"<<[^>]*>>")  # gsm8k's "48/2 = <<48/2=24>>24"


@dataclass(frozen=True)
class Source:
    """A file of conversations: its local name, URL and licence, and the fields of a record."""

    file: str
    url: str
    licence: str
    fields: tuple[str, str, str]  # question, further input ("": none), answer


SOURCES = {
    "math": Source(
        "gsm8k_train.jsonl",
        "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data/train.jsonl",
        "MIT",
        ("question", "", "answer"),
    ),
    "code": Source(
        "gpteacher_codegen.json",
        "https://raw.githubusercontent.com/teknium1/GPTeacher/main/Codegen/codegen-instruct.json",
        "MIT",
        ("instruction", "input", "response"),
    ),
    "roleplay": Source(
        "gpteacher_roleplay.json",
        "https://raw.githubusercontent.com/teknium1/GPTeacher/main/Roleplay/"
        "roleplay-simple-deduped-roleplay-instruct.json",
        "MIT",
        ("instruction", "input", "response"),
    ),
}


def fetch(folder: Path) -> None:
    """Download the sources that are missing from `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in SOURCES.values():
        if not (folder / source.file).exists():
            urlretrieve(source.url, folder / source.file)


def conversations(folder: Path, held_out: bool) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """(domain, messages) of the held-out conversations, or of all others, in file order."""
    for domain, source in SOURCES.items():
        text = (folder / source.file).read_text(encoding="utf-8")
        records = json.loads(text) if source.file.endswith(".json") else map(json.loads, text.splitlines())
        question, further, answer = source.fields
        for index, record in enumerate(records):
            if (index % HELD_OUT_EVERY == 0) != held_out:
                continue
            prompt = "\n".join(record[name].strip() for name in (question, further) if name and record[name].strip())
            reply = CALCULATOR_NOTES.sub("", record[answer]).strip()
            if prompt and reply:
                yield domain, [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]
