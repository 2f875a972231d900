"""The documentation does what it says: the blocks of README and guides run; commands, options, files and links exist.

in the README   hf-eagle3 train --target Qwen/Qwen3-1.7B --train-data answers.jsonl ...
runs here       hf-eagle3 train --target hf_eagle3/embedded/target --train-data answers.jsonl ... --max-steps 2
"""

import argparse
import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from hf_eagle3 import embedded
from hf_eagle3.cli import COMMANDS, main, parser
from hf_eagle3.cli.train import parents


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
# Read in this order, as sharing needs what training made; docs/serving.md has servers, which run until stopped.
GUIDES = "\n".join(
    (ROOT / "docs" / f"{name}.md").read_text("utf-8")
    for name in ("training", "using", "sharing", "trees", "quickstart", "adapting")
)
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
PAGES = [
    *(
        path
        for pattern in ("*.md", "docs/*.md", "notebooks/*.md", "notebooks/*.ipynb", "spaces/*/*.md")
        for path in ROOT.glob(pattern)
    ),
    ROOT / "hf_eagle3" / "embedded" / "README.md",
]
# What README and guides name that is not here, and what stands in for it. Each must still be named there.
STAND_INS = {
    "Qwen/Qwen3-1.7B": embedded.TARGET.as_posix(),
    "draft_vocab_size=32000": "draft_vocab_size=896",
    '"cuda"': '"cpu"',
}
SERVES = {"serve", "space"}  # run until they are stopped; tests of their own
# What makes a command end soon (or stay at home); put behind it.
SHORTER = {
    "demo": "--num-prompts 1 --max-new-tokens 8",
    "generate": "--max-new-tokens 8 --device cpu",
    "prepare": "--limit 6 --max-new-tokens 12 --device cpu",
    "make-draft": "--max-new-tokens 12 --epochs 1 --device cpu --skip benchmark",
    "train": "--max-steps 2 --eval-steps 1 --num-generation-prompts 1 --generation-max-new-tokens 4 "
    "--report-to none --disable-tqdm true",
    "benchmark": "--limit 1 --repetitions 1 --warm-up 0 --max-new-tokens 6 --methods chain:3 --temperatures 0 "
    "--no-plots --dtype float32 --device cpu",
    "paper": "--pieces table-1 --drafts eagle3 --steps 2 --batch-size 2 --limit 1 --max-new-tokens 6 --device cpu",
    "convert": "--target-name user/target",  # the stand-in is a directory
    "push": "--dry-run repository",
}


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, code) of the fenced blocks, in order."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(code: str) -> list[list[str]]:
    """The words behind each `hf-eagle3` of a shell block or a code span."""
    code = re.sub(r"\\\n", " ", code)
    lines = re.findall(r"(?:^|[\s/])(?:hf-eagle3|-m hf_eagle3\.cli)[ \n]((?:\"[^\"]*\"|'[^']*'|[^&|;#\n])*)", code)
    return [shlex.split(line) for line in lines]


# The blocks of README and guides


@pytest.fixture
def newcomer(tmp_path, monkeypatch):
    """A folder with prompts of one's own and nothing else, as the README's reader has it."""
    pytest.importorskip("datasets")
    pytest.importorskip("accelerate")
    monkeypatch.chdir(tmp_path)
    rows = [json.dumps({"prompt": row["prompt"]}) + "\n" for row in embedded.prompts("math")]
    (tmp_path / "prompts.jsonl").write_text("".join(rows[:6]), encoding="utf-8")
    (tmp_path / "held-out.jsonl").write_text("".join(rows[6:]), encoding="utf-8")
    return tmp_path


def test_all_blocks_run_in_order(newcomer, capsys):
    """Python in one namespace, commands in one folder: what one block makes, the next ones use."""
    namespace, ran = {"__name__": "readme"}, []
    for language, code in blocks(README + GUIDES):
        for name, stand_in in STAND_INS.items():
            code = code.replace(name, stand_in)
        if language == "python":
            exec(compile(code, "documentation", "exec"), namespace)
        elif language == "bash":
            for words in commands(code):
                status = main([*words, *shlex.split(SHORTER.get(words[0], ""))])
                # The draft is hardly trained: the doctor's status says that it is not sound.
                assert status == (1 if words[0] == "doctor" else 0), capsys.readouterr().err
                ran.append(words[0])
        else:
            assert language in ("", "bibtex"), f"a block of {language!r} that nobody runs"
    assert set(ran) == COMMANDS.keys() - SERVES, "every command is shown in a block"
    assert namespace["stats"].num_cycles > 0
    assert (newcomer / "repository" / "README.md").is_file()


def test_stand_ins_are_needed():
    for name in STAND_INS:
        assert any(name in code for _, code in blocks(README + GUIDES)), f"nobody names {name} any more"


# Commands and options, wherever they are named


def texts(page: Path) -> Iterator[str]:
    """What a page says; of a notebook every cell."""
    if page.suffix == ".ipynb":
        yield from ("".join(cell["source"]) for cell in json.loads(page.read_text("utf-8"))["cells"])
    else:
        yield page.read_text("utf-8")


def snippets(text: str) -> Iterator[str]:
    """Fenced blocks and code spans; a span may go over the end of a line."""
    yield from (code for _, code in blocks(text))
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose))


def parsers_of(command: str) -> dict[str, argparse.ArgumentParser]:
    """The parser of a command, and of its tasks where it has some, by name."""
    chosen = subcommands(parser(command, parents() if command == "train" else None))[command]
    return {command: chosen} | {f"{command} {task}": part for task, part in subcommands(chosen).items()}


def subcommands(of: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return next((a.choices for a in of._actions if isinstance(a, argparse._SubParsersAction)), {})


def options_of(of: argparse.ArgumentParser) -> set[str]:
    return {name for action in of._actions for name in action.option_strings}


@pytest.fixture(scope="module")
def every_parser():
    pytest.importorskip("accelerate")  # for the options of `train`
    found = {}
    for command in COMMANDS:
        found |= parsers_of(command)
    return found


def test_named_commands_and_options_exist(every_parser):
    """In a command line they belong to the command; alone, as in "`--explain` shows both", to any."""
    known = {name for part in (parser(), *every_parser.values()) for name in options_of(part)} | {"--config"}
    num_commands = num_options = 0
    for page in PAGES:
        for text in texts(page):
            for snippet in snippets(text):
                for words in commands(snippet):
                    where = f"{page.name}: hf-eagle3 {shlex.join(words)}"
                    name = words[0] if words else "<command>"
                    if name in ("<command>", "WORDS"):
                        continue
                    assert name in COMMANDS, where
                    if " ".join(words[:2]) in every_parser:
                        name = " ".join(words[:2])
                    wrong = {w for w in words if w.startswith("--")} - options_of(every_parser[name]) - {"--config"}
                    assert not wrong, where
                    num_commands += 1
                if snippet.startswith("--"):
                    option = re.split(r"[ =]", snippet)[0]
                    assert option in known, f"{page.name}: `{snippet}`"
                    num_options += 1
    assert num_commands > 20
    assert num_options > 10


def test_extras_that_are_named_exist():
    declared = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE))
    named = [
        name for page in PAGES for text in texts(page) for name in re.findall(r"(?:hf-eagle3|\.)\[([\w,]+)\]", text)
    ]
    assert len(named) > 5
    assert {part for name in named for part in name.split(",")} <= declared


def test_modules_that_are_named_exist():
    named = {m for page in PAGES for text in texts(page) for m in re.findall(r"python3? -m (hf_eagle3[\w.]*)", text)}
    assert named
    for module in named:
        assert importlib.util.find_spec(module), module


# The table of commands, the file tree, links


def test_the_table_of_commands_is_the_help():
    """One text per command: what `hf-eagle3 --help` prints stands in the README."""
    table = dict(re.findall(r"^\| `hf-eagle3 ([\w-]+)` \| (.*) \|$", README, re.MULTILINE))
    assert table == {name: module.HELP for name, module in COMMANDS.items()}
    printed = " ".join(parser().format_help().split())
    for name, module in COMMANDS.items():
        assert f"{name} {module.HELP}".replace("%%", "%") in printed


def test_every_option_has_help(every_parser):
    for name, part in every_parser.items():
        for action in part._actions:
            assert action.help, f"hf-eagle3 {name}: {action.option_strings or action.dest} has no help"
        assert part.format_help()


def listed_files() -> list[str]:
    """Paths of the map of files; several names of one line are several."""
    tree = next(code for _, code in blocks(CONTRIBUTING) if code.startswith("hf_eagle3/\n"))
    folders: list[str] = []
    found = []
    for line in tree.splitlines():
        indent, names = re.match(r"( *)((?:[\w./]+ ?)+)", line).groups()
        del folders[len(indent) // 2 :]
        for name in names.split():
            found.append("/".join([*folders, name.rstrip("/")]))
        if names.split()[0].endswith("/"):
            folders.append(names.split()[0].rstrip("/"))
    return found


def test_the_file_tree_is_complete_and_true():
    """A line per file of the package; of `__init__.py` only those that hold something."""
    listed = listed_files()
    assert len(set(listed)) == len(listed)
    for name in listed:
        assert (ROOT / name).exists(), f"{name} is on the map and not there"
    files = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "hf_eagle3").rglob("*.py") if path.name != "__init__.py"
    }
    assert files <= set(listed), f"not on the map: {sorted(files - set(listed))}"


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for text in texts(page):
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if link.startswith("https://"):
                continue
            name, _, anchor = link.partition("#")
            there = page if not name else page.parent / name
            assert there.exists(), f"{page.name} links to {link}"
            assert not anchor or anchor in anchors(there), f"{page.name} links to {link}"


def test_the_map_from_the_paper_names_what_is_there():
    page = (ROOT / "docs" / "paper_to_code.md").read_text("utf-8")
    files = set(re.findall(r"`([\w/]+\.py)`", page))
    assert len(files) > 10
    for name in files:
        assert (ROOT / "hf_eagle3" / name).is_file(), name
    for name, functions in re.findall(r"`([\w/]+\.py)` \(((?:`\w+`(?:, )?)+)\)", page):
        code = (ROOT / "hf_eagle3" / name).read_text("utf-8")
        for function in re.findall(r"`(\w+)`", functions):
            assert re.search(rf"\b(?:def {function}\b|\"{function}\")", code), f"{name} has no {function}"
