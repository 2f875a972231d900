"""How the command line begins: what it imports, versions, suggestions, and one text per option of `train`.

hf-eagle3 trian        ->  unknown command 'trian'; did you mean train?
hf-eagle3 train --help ->  our options; no torch in sys.modules
"""

import argparse
import os
import subprocess
import sys
from dataclasses import fields
from importlib import metadata
from pathlib import Path

import pytest

from hf_eagle3 import __version__
from hf_eagle3.cli import COMMANDS, main, parser
from hf_eagle3.cli.options import train as train_options
from hf_eagle3.training_options import TrainingOptions


ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "transformers", "huggingface_hub", "numpy", "datasets", "hf_eagle3.modeling_eagle3"}
# Prints what was imported and the CPU seconds of the process, whatever the command did.
START = """
import sys, time
sys.argv[:1] = ["hf-eagle3"]
from hf_eagle3_cli import main
try:
    code = main()
except SystemExit as exit:
    code = exit.code
print("LOADED", code, time.process_time(), *sys.modules)
"""
TASKS = (["prepare", "regenerate"], ["prepare", "vocabulary"], ["prepare", "features"])


def start(*words: str) -> tuple[str, float, set[str], str]:
    """(exit code, CPU seconds, modules, output) of the console script in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", START, *words], capture_output=True, text=True, env=environment, timeout=200, check=True
    )
    output, _, loaded = done.stdout.rpartition("LOADED ")
    code, seconds, *modules = loaded.split()
    return code, float(seconds), set(modules), output + done.stderr


@pytest.mark.parametrize(
    "words",
    [["--help"], ["--version"], ["trian"], *([name, "--help"] for name in COMMANDS), *([*t, "-h"] for t in TASKS)],
    ids=" ".join,
)
def test_help_and_typing_errors_import_no_torch(words):
    code, _, modules, output = start(*words)
    assert code == ("2" if words == ["trian"] else "0")
    assert not HEAVY & modules
    assert "hf-eagle3" in output


def test_an_option_without_effect_is_refused_before_torch_is_imported():
    code, _, modules, output = start("generate", "--target", "a", "--draft", "b", "--prompt", "c", "--top-k", "3")
    assert code == "2"
    assert not HEAVY & modules
    assert "`--top-k` has no effect" in output


def test_help_takes_less_than_a_third_of_a_second():
    assert min(start("--help")[1] for _ in range(3)) < 0.3


def test_a_command_runs_with_the_whole_package():
    """The console script puts off the package's body; by the time of a command it has run, once."""
    code, _, modules, output = start("inspect", "--draft", str(ROOT / "hf_eagle3" / "embedded" / "draft"))
    assert code == "0"
    assert "dialect" in output
    assert "hf_eagle3.generation.hook" in modules


@pytest.mark.parametrize("module", ["hf_eagle3", "hf_eagle3.cli"])
def test_modules_are_commands_too(module):
    done = subprocess.run(
        [sys.executable, "-m", module, "--version"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.startswith(f"hf-eagle3 {__version__} (transformers {metadata.version('transformers')}, torch ")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian"], "unknown command 'trian'; did you mean train?"),
        (["--debug", "generat"], "unknown command 'generat'; did you mean generate?"),
        (["prepare", "regenrate"], "unknown command 'regenrate'; did you mean regenerate?"),
        (["inspect", "--tagret", "x"], "unrecognized arguments: --tagret x; did you mean --target?"),
        (
            ["prepare", "vocabulary", "--data", "a", "--target", "b", "--output", "c", "--spilt=x"],
            "did you mean --split?",
        ),
        (["train", "--learning-rat", "1"], "did you mean --learning-rate?"),
        (["xyzzy"], "unknown command 'xyzzy' (choose from benchmark, convert, "),
        (["demo", "--xyzzy"], "unrecognized arguments: --xyzzy\n"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistyped_name_gets_a_suggestion(words, expected, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert expected in capsys.readouterr().err


# One text per option: `train --help` shows the fields that `HfArgumentParser` parses


@pytest.fixture(scope="module")
def parsers():
    """(what `train --help` shows, what is parsed and `train --help-all` shows), each as actions by option."""
    pytest.importorskip("accelerate")
    from hf_eagle3.cli.train import parents

    return tuple(actions(parser("train", given)) for given in (None, parents()))


def actions(top: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    commands = next(a.choices for a in top._actions if isinstance(a, argparse._SubParsersAction))
    return {name: action for action in commands["train"]._actions for name in action.option_strings}


def test_what_help_shows_is_what_is_parsed(parsers):
    shown, parsed = parsers
    for name, action in shown.items():
        assert parsed[name].help == action.help, name
        assert list(parsed[name].choices or ()) == list(action.choices or ()), name


def test_help_shows_every_field_of_ours_and_names_the_way_to_the_others(parsers):
    shown, parsed = parsers
    ours = {f"--{field.name.replace('_', '-')}" for field in fields(TrainingOptions)}
    assert ours <= shown.keys()
    assert not {"--output-dir", "--bf16"} & shown.keys()
    assert set(train_options.COMMON_ARGUMENTS) < parsed.keys() - shown.keys()


def test_help_all_shows_the_arguments_of_transformers(capsys):
    pytest.importorskip("accelerate")
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--help-all"])
    out = capsys.readouterr().out
    assert "--per-device-train-batch-size" in out
    assert "--training-time-test-steps" in out
