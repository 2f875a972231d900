"""What the real target is asked: prompts of six kinds, of one turn or several, none of them from a held-out set.

Sources, all free to use: gsm8k's training problems and GPTeacher's code and role play (MIT; `embedded.text` has their
addresses), the Rust book (MIT or Apache-2.0) as texts to be summarised, what the target itself asks (`asked`), and our
own words (`follow_ups`). Does not know who answers.
"""

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..embedded import text
from .follow_ups import FOLLOW_UPS, SUMMARISE, TOPICS, WRITE


KINDS = ("math", "code", "completion", "writing", "question", "summary")
# Conversations of each kind at most, so that none outweighs the others in the order of `mixed`.
MOST = {"math": 2400, "code": 1800, "completion": 1000, "writing": 2000, "question": 4000, "summary": 2000}
TURNS, TURN_SHARES = (1, 2, 3), (0.55, 0.3, 0.15)
BOOK = "rust_book.md"
BOOK_WORDS, REPLY_WORDS = (120, 420), 60  # of a passage; of a reply that is worth a summary
SHINGLE = 13  # words in a row that two texts share by quoting, not by chance (GPT-3, appendix C)
PYTHON_FUNCTION = re.compile(r"^(?:from .+\n|import .+\n|\n)*def \w+\([^\n]*\).*:\n", re.MULTILINE)
COMPLETE = "Complete the code I provided.\n\n"


class HeldOut:
    """
    The prompts of evaluation sets, compared by their words alone: case, punctuation and spaces do not count.

    Args:
        folder: *.jsonl with `turns` or `prompt` on each line.
    """

    def __init__(self, folder: Path):
        files = sorted(folder.glob("*.jsonl"))
        if not files:
            raise ValueError(f"`--held-out` {folder} holds no .jsonl file; name the folder of the evaluation prompts.")
        self.texts: set[str] = set()
        self.shingles: set[tuple[str, ...]] = set()
        for file in files:
            for line in file.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                turns = row["turns"] if "turns" in row else [row["prompt"]]
                for turn in turns:
                    self.texts.add(" ".join(words(turn)))
                    self.shingles.update(shingles(turn))

    def match(self, turns: Iterable[str]) -> str | None:
        """ "equal" if a turn is one of the prompts, "overlap" if it shares `SHINGLE` words in a row, else `None`."""
        turns = list(turns)
        if any(" ".join(words(turn)) in self.texts for turn in turns):
            return "equal"
        return "overlap" if any(not self.shingles.isdisjoint(shingles(turn)) for turn in turns) else None


def words(text: str) -> list[str]:
    """Letters and digits, in lower case."""
    return re.findall(r"\w+", text.casefold())


def shingles(text: str) -> Iterator[tuple[str, ...]]:
    """Every `SHINGLE` words in a row."""
    found = words(text)
    return (tuple(found[i : i + SHINGLE]) for i in range(len(found) - SHINGLE + 1))


def build(folder: Path, asked: Iterable[str], held_out: HeldOut, seed: int = 0) -> tuple[list[dict], dict]:
    """
    ({"prompt": turns, "kind"} in an order of which every beginning is a mix of all kinds, counts).

    Args:
        folder: The texts.
        asked: Questions by the target itself.
        held_out: What must not be among the prompts.
        seed: Of the order and of what follows what.
    """
    draw = random.Random(seed)
    kinds = {kind: unique(prompts) for kind, prompts in first_turns(folder, asked, draw).items()}
    dropped: Counter[str] = Counter()
    rows: dict[str, list[dict]] = {}
    for kind in KINDS:
        draw.shuffle(kinds[kind])
        chats = (with_further_turns(kind, turns, kinds[kind], draw) for turns in kinds[kind])
        rows[kind] = []
        for turns in chats:
            if (why := held_out.match(turns)) is not None:
                dropped[f"{kind}: {why}"] += 1
            elif len(rows[kind]) < MOST[kind]:
                rows[kind].append({"prompt": turns, "kind": kind})
    counts = {
        "conversations": {kind: len(found) for kind, found in rows.items()},
        "turns": {kind: sum(len(row["prompt"]) for row in found) for kind, found in rows.items()},
        "dropped as held out": dict(dropped),
    }
    return mixed(rows, draw), counts


def first_turns(folder: Path, asked: Iterable[str], draw: random.Random) -> dict[str, list[list[str]]]:
    """What conversations of each kind begin with; most begin with one turn."""
    kinds: dict[str, list[list[str]]] = defaultdict(list)
    names = {"math": "math", "code": "code", "roleplay": "writing"}
    for domain, (question, answer) in text.conversations(folder, held_out=False):
        kinds[names[domain]].append([question["content"]])
        if domain == "code" and (code := completion(question["content"], answer["content"])):
            kinds["completion"].append([code])
        if domain == "roleplay" and len(answer["content"].split()) >= REPLY_WORDS:
            kinds["summary"].append([f"Summarize: {answer['content']}"])
    draw.shuffle(kinds["summary"])
    del kinds["summary"][MOST["summary"] // 2 :]  # passages and articles are longer, and closer to news
    if (folder / BOOK).exists():
        kinds["summary"] += [[f"Summarize: {passage}"] for passage in passages(folder / BOOK)]
    kinds["summary"] += [[write.format(topic=topic), draw.choice(SUMMARISE)] for topic in TOPICS for write in WRITE]
    kinds["question"] = [[question] for question in asked]
    return kinds


def completion(question: str, answer: str) -> str | None:
    """The head of the answer's first Python function with the question as its docstring, to be completed."""
    found = PYTHON_FUNCTION.search(answer)
    if found is None or '"""' in question:
        return None
    task = "\n    ".join(line for line in question.splitlines() if line.strip())
    return f'{COMPLETE}{found.group().strip()}\n    """ {task}\n    """\n'


def passages(path: Path) -> list[str]:
    """Paragraphs in a row of a book, as long as a short article."""
    found, passage = [], []
    for paragraph in path.read_text(encoding="utf-8").split("\n\n"):
        is_prose = paragraph[:1].isalpha() and not paragraph.startswith(("http", "{{"))
        size = sum(len(part.split()) for part in passage)
        if is_prose and size + len(paragraph.split()) <= BOOK_WORDS[1]:
            passage.append(" ".join(paragraph.split()))
        if paragraph.startswith("#") or size + len(paragraph.split()) > BOOK_WORDS[1]:
            if size >= BOOK_WORDS[0]:
                found.append("\n".join(passage))
            passage = []
    return found


def with_further_turns(kind: str, turns: list[str], others: list[list[str]], draw: random.Random) -> list[str]:
    """The conversation with as many turns as drawn: remarks on the answer, now and then a new prompt of the kind."""
    remarks = FOLLOW_UPS["code" if kind == "completion" else kind]
    wanted = draw.choices(TURNS, TURN_SHARES)[0]
    further = draw.sample(remarks, max(TURNS))
    out = list(turns)
    while len(out) < wanted:
        is_new = kind != "summary" and draw.random() < 0.25
        out.append(draw.choice(others)[0] if is_new else further[len(out) - 1])
    return out


def unique(prompts: list[list[str]]) -> list[list[str]]:
    """The first of those that are the same by their words."""
    return list({" / ".join(" ".join(words(turn)) for turn in turns): turns for turns in reversed(prompts)}.values())


def mixed(rows: dict[str, list[dict]], draw: random.Random) -> list[dict]:
    """Every kind spread evenly over the whole, so that each beginning holds the kinds in the same shares."""
    placed = [((i + draw.random()) / len(found), row) for found in rows.values() for i, row in enumerate(found)]
    return [row for _, row in sorted(placed, key=lambda pair: pair[0])]
