"""From nothing to training data: prompts of six kinds, answered by the real target through a vLLM server.

    python -m hf_eagle3.smollm2.data --text TEXT --held-out PROMPTS --output DIR --vllm VENV/bin/python

`TEXT` holds (or receives) gsm8k's training problems and GPTeacher's files, see `embedded.text`, and may hold
rust_book.md; `PROMPTS` holds the evaluation prompts, which are left out. Each step is skipped where `DIR` has its
result, so the same command again continues: target/ (`fetch`), asked.jsonl (`asked`), prompts.jsonl (`prompts`),
answers.jsonl (`hf-eagle3 prepare regenerate`: greedy and sampled in turn), vocabulary.json (`hf-eagle3 prepare
vocabulary`), report.json. The answers can be used while they grow: every beginning of the file mixes all kinds.
"""

import argparse
import json
import sys
from contextlib import nullcontext
from pathlib import Path

import httpx
from transformers import AutoTokenizer, GenerationConfig

from ..cli import main as command
from ..embedded import text
from ..engines.vllm_server import served_model, serving
from .asked import ask
from .fetch import FetchError, fetch
from .question_sets import HeldOut, build
from .report import report


TEMPERATURES = (0.0, 1.0)
MAX_NEW_TOKENS = 384
CONTEXT = 4096  # tokens; three turns with a passage of a book take half of it
TIMEOUT = 7200  # seconds; where other programs have the cores, an answer takes long
STEPS = ("answers", "report")


def write_prompts(output: Path, given: argparse.Namespace, url: str, model: str, tokenizer) -> None:
    """prompts.jsonl, once: the answers are numbered by its lines."""
    asked = ask(url, model, tokenizer, output / "asked.jsonl", given.asked)
    rows, counts = build(given.text, asked, HeldOut(given.held_out), given.seed)
    print(json.dumps(counts), flush=True)
    (output / "prompts.json").write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    unfinished = output / "prompts.unfinished"
    unfinished.write_text(lines, encoding="utf-8")
    unfinished.replace(output / "prompts.jsonl")


def run(*arguments: str) -> None:
    """One command of the package; the program ends where it fails."""
    print("+ hf-eagle3", *arguments, flush=True)
    if code := command(list(arguments)):
        sys.exit(code)


def answer(output: Path, given: argparse.Namespace, url: str, model: str) -> None:
    """answers.jsonl: what it lacks of the prompts."""
    limit = ("--limit", str(given.limit)) if given.limit else ()
    run(
        *("prepare", "regenerate", "--data", str(output / "prompts.jsonl"), *limit, "--target", model),
        *("--endpoint", url, "--output", str(output / "answers.jsonl"), "--seed", str(given.seed)),
        *("--temperature", *map(str, TEMPERATURES), "--max-new-tokens", str(MAX_NEW_TOKENS)),
        *("--concurrency", str(given.concurrency), "--timeout", str(TIMEOUT)),
    )


def write_report(output: Path, target: Path) -> None:
    """vocabulary.json and report.json, of the answers so far."""
    answers = output / "answers.jsonl"
    counts = ("prepare", "vocabulary", "--data", str(answers), "--target", str(target), "--max-length", str(CONTEXT))
    run(*counts, "--output", str(output / "vocabulary.json"))
    stops = GenerationConfig.from_pretrained(target).eos_token_id
    stops = [stops] if isinstance(stops, int) else stops
    found = report(output / "prompts.jsonl", answers, TEMPERATURES, AutoTokenizer.from_pretrained(target), stops)
    (output / "report.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found))


def main(arguments: list[str] | None = None) -> int:
    """The command line; 1 where the target or the server is not available."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for all results")
    parser.add_argument("--text", type=Path, help="folder of source texts")
    parser.add_argument("--held-out", type=Path, help="folder of evaluation prompts (*.jsonl)")
    parser.add_argument("--vllm", metavar="PYTHON", help="interpreter with vLLM; a server is run meanwhile")
    parser.add_argument("--endpoint", help="or the address of a server of the target, e.g. http://localhost:8000/v1")
    parser.add_argument("--port", type=int, default=8765, help="of the server that is run (default: 8765)")
    parser.add_argument("--concurrency", type=int, default=64, help="conversations at once (default: 64)")
    parser.add_argument("--asked", type=int, default=3000, help="questions by the target itself (default: 3000)")
    parser.add_argument("--limit", type=int, help="answer only the first so many prompts")
    parser.add_argument("--seed", type=int, default=0, help="of prompts, their order and the answers (default: 0)")
    parser.add_argument("--only", choices=STEPS, help="report: of the answers so far; answers: without a report")
    given = parser.parse_args(arguments)
    if given.only != "report" and (not given.text or not given.held_out or bool(given.vllm) == bool(given.endpoint)):
        parser.error("give --text, --held-out and either --vllm or --endpoint (or --only report)")
    try:
        make(given)
    except (FetchError, ValueError, OSError, httpx.HTTPError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    return 0


def make(given: argparse.Namespace) -> None:
    """All steps that are asked for."""
    output, target = given.output, given.output / "target"
    output.mkdir(parents=True, exist_ok=True)
    if given.only != "report":
        fetch(target)
        text.fetch(given.text)
        server = nullcontext(given.endpoint)
        if given.vllm:
            log = output / "server.log"
            sizes = {
                "--max-num-seqs": given.concurrency,
                "--max-model-len": CONTEXT,
                "--max-num-batched-tokens": CONTEXT,
            }
            options = [part for name, value in sizes.items() for part in (name, str(value))]
            server = serving(given.vllm, target, given.port, log, "--dtype", "bfloat16", *options)
        with server as url:
            model = served_model(url)
            if not (output / "prompts.jsonl").exists():
                write_prompts(output, given, url, model, AutoTokenizer.from_pretrained(target))
            answer(output, given, url, model)
    if given.only != "answers":
        write_report(output, target)


if __name__ == "__main__":
    sys.exit(main())
