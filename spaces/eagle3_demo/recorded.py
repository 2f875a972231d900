"""A run recorded earlier, which the page shows before its first own one. Does not know models or pages.

Recorded by `python spaces/eagle3_demo/recorded.py [PAIR]`, see `hf_eagle3.pairs`; the default is "embedded".
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from types import SimpleNamespace

from limits import Request
from progress import Progress
from race import Event, Finished, PlainToken, Probabilities
from scoreboard import scoreboard

from hf_eagle3 import CycleRecord
from hf_eagle3.token_ids import Decoder


FILE = Path(__file__).parent / "recorded.json"
KINDS = {kind.__name__: kind for kind in (PlainToken, CycleRecord, Finished, Probabilities)}
PROMPT = "In JavaScript, write a function that adds up the numbers of an array."
NEW_TOKENS = 96


class Recorded:
    """
    Attributes:
        description: Pair, sizes, dtype and device.
        prompt: What was asked.
        events: As from `race.run`.
        progress: State after all of them.
    """

    def __init__(self, file: Path = FILE):
        stored = json.loads(file.read_text("utf-8"))
        self.description, self.prompt = stored["description"], stored["prompt"]
        self._texts = {int(token): text for token, text in stored["texts"].items()}
        self.events = [_event(kind, fields) for kind, fields in stored["events"]]
        self.progress = Progress()
        for event in self.events:
            self.progress.add(event)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        """The text of recorded tokens, without the tokenizer; special tokens have an empty one."""
        return "".join(self._texts[token] for token in token_ids)


def recorded_board(recorded: Recorded) -> str:
    """The scoreboard of the recorded run, named as such."""
    name = recorded.description.partition(":")[0]
    note = (
        f'<p class="recorded"><b>Recorded earlier, on another machine</b>, with {escape(name)}: '
        f"“{escape(recorded.prompt)}” <b>Run</b> replaces it by a run of your own.</p>"
    )
    return note + scoreboard(recorded.progress, "as recorded")


def _event(kind: str, fields: dict) -> Event:
    if choices := fields.get("choices"):
        fields["choices"] = [SimpleNamespace(**choice) for choice in choices]
    return KINDS[kind](**fields)


def stored(description: str, prompt: str, events: Sequence[Event], tokenizer: Decoder) -> dict:
    """The content of the file. Texts are stored token by token, so the answer must be of ASCII characters."""
    tokens: set[int] = set()
    for event in events:
        if isinstance(event, CycleRecord):
            tokens.update(event.tokens, event.tree_tokens)
        elif isinstance(event, PlainToken):
            tokens.add(event.token)
    texts = {token: tokenizer.decode([token], skip_special_tokens=True) for token in sorted(tokens)}
    rows = [(type(event).__name__, _rounded(asdict(event))) for event in events]
    return {"description": description, "prompt": prompt, "texts": texts, "events": rows}


def _rounded(value):
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def main(name: str) -> None:
    """Record the second run, when the costs of passes are known."""
    import pair as pairs
    from conversation import prompt_ids
    from race import run

    loaded = pairs.load(pairs.PairSettings(pair=name, device="cpu"))
    pairs.warm_up(loaded)
    ids = prompt_ids(loaded.tokenizer, PROMPT)
    for _ in range(2):
        batches = run(loaded, ids, Request(PROMPT, max_new_tokens=NEW_TOKENS), seconds=600)
        events = [event for batch in batches for event in batch]
    FILE.write_text(json.dumps(stored(loaded.description, PROMPT, events, loaded.tokenizer)) + "\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "embedded")
