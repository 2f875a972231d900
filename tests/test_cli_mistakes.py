"""What the caller got wrong ends in one line that names it and the remedy; what this package got wrong keeps its
traceback. A tiny pair; each broken model is a copy of it with one field of its config.json changed.

--target DRAFT --draft TARGET  ->  `--target` DRAFT is an EAGLE-3 draft, not a target model; are ... swapped?
int("x") inside the package    ->  Traceback ..., hf-eagle3: this is a bug in hf_eagle3
"""

import json
import resource
import shutil

import pytest
import torch
from models import tiny_draft, tiny_target
from safetensors.torch import save_file
from test_options import letters_tokenizer

from hf_eagle3 import embedded
from hf_eagle3.cli import main
from hf_eagle3.cli.generate import describe_difference, explanation
from hf_eagle3.cli.options.shared import positive
from hf_eagle3.errors import explained, in_one_line
from hf_eagle3.model_loading import dtype_for
from hf_eagle3.tree_config import TreeConfig


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Folder with `target` and `draft`, and with copies that are broken in one way."""
    folder = tmp_path_factory.mktemp("pair")
    target = tiny_target()
    target.save_pretrained(folder / "target")
    letters_tokenizer().save_pretrained(folder / "target")
    tiny_draft(target).save_pretrained(folder / "draft")
    changes = {
        "act": {"hidden_act": "banana"},
        "rope": {"rope_parameters": {"rope_type": "banana", "rope_theta": 10000.0}},
        "theta": {"rope_theta": float("inf"), "rope_parameters": {"rope_type": "default", "rope_theta": float("inf")}},
        "eps": {"rms_norm_eps": float("nan")},
    }
    for model in ("target", "draft"):
        for name, change in changes.items():
            shutil.copytree(folder / model, folder / f"{model}-{name}")
            path = folder / f"{model}-{name}" / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | change))
        shutil.copytree(folder / model, folder / f"{model}-cut")
        weights = folder / f"{model}-cut" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
    return folder


def generate(pair, *changes: str) -> int:
    """Exit code of a short run, with `changes` after the ordinary options."""
    ordinary = ["--target", f"{pair}/target", "--draft", f"{pair}/draft", "--prompt", "abcd", "--max-new-tokens", "4"]
    return main(["generate", *ordinary, "--device", "cpu", *(text.format(pair=pair) for text in changes)])


def only_line(capsys) -> str:
    """The last line on stderr, which must be the only one of ours."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("hf-eagle3", "Traceback"))]
    assert len(lines) == 1, lines
    return lines[0]


REGENERATE = ["prepare", "regenerate", "--data", "x", "--output", "y", "--target", "user/target"]
NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        pytest.param(["--device", "cuda"], ["`--device` 'cuda' cannot be used", "This machine has"], marks=NO_CUDA),
        (["--device", "banana"], ["`--device` 'banana' cannot be used", "This machine has"]),
        (["--device", "meta"], ["`--device` 'meta' cannot be used", "This machine has"]),
        (
            ["--target", "{pair}/draft", "--draft", "{pair}/target"],
            ["`--target` {pair}/draft is an EAGLE-3 draft", "swapped?"],
        ),
        (["--draft", "{pair}/target"], ["{pair}/target", "not an EAGLE-3 draft"]),
        (["--target", "./nowhere"], ["`--target` ./nowhere does not exist", "directory or Hub id"]),
        (["--draft", "./nowhere"], ["`--draft` ./nowhere does not exist", "directory or Hub id"]),
        (
            ["--draft", "{pair}/draft/config.json"],
            ["`--draft` {pair}/draft/config.json is a file", "directory or Hub id"],
        ),
        (["--target", "{pair}/target-act"], ["`--target` {pair}/target-act cannot be loaded: unknown name 'banana'"]),
        (
            ["--target", "{pair}/target-rope"],
            ["`--target` {pair}/target-rope cannot be loaded: unknown name 'banana'"],
        ),
        (
            ["--target", "{pair}/target-theta"],
            ["`--target` {pair}/target-theta has `", "rope_theta` inf", "fix the file"],
        ),
        (
            ["--target", "{pair}/target-eps"],
            ["`--target` {pair}/target-eps has `rms_norm_eps` nan", "fix the file"],
        ),
        (["--target", "{pair}/target-cut"], ["`--target` {pair}/target-cut cannot be loaded", "complete files"]),
        (["--draft", "{pair}/draft-act"], ["{pair}/draft-act: `hidden_act` is 'banana'; transformers supports gelu,"]),
        (
            ["--draft", "{pair}/draft-rope"],
            ["{pair}/draft-rope: `rope_parameters['rope_type']` is 'banana'; transformers supports default, "],
        ),
        (["--draft", "{pair}/draft-theta"], ["{pair}/draft-theta: `rope_theta` is inf; pass a positive number"]),
        (["--draft", "{pair}/draft-eps"], ["{pair}/draft-eps: `rms_norm_eps` is nan; pass a positive number"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_a_mistake_is_one_line_with_its_remedy(pair, changes, messages, capsys):
    assert generate(pair, *changes) == 2
    line = only_line(capsys)
    assert line.startswith("hf-eagle3 generate: ")
    for message in messages:
        assert message.format(pair=pair) in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["convert", "./nowhere", "out"], "`source` ./nowhere does not exist"),
        (["push", "./nowhere", "user/name"], "`draft` ./nowhere does not exist"),
        (["inspect", "--target", "{pair}/target-cut/config.json"], "is a file"),
        (["inspect", "--target", "{pair}/target-act"], "unknown name 'banana'"),
        (["inspect", "--target", "{pair}/draft"], "is an EAGLE-3 draft, not a target model"),
        (["inspect", "--draft", "{pair}/draft-eps"], "`rms_norm_eps` is nan"),
        (["inspect", "--draft", "{pair}/draft-cut"], "`--draft` {pair}/draft-cut cannot be read"),
        (
            ["benchmark", "--no-plots", "--tasks", "{pair}/draft/model.safetensors"],
            "/model.safetensors' has no prompts; give one JSON object per line",
        ),
        ([*REGENERATE, "--seed", str(2**32)], "`--seed` is 4294967296"),
        (["benchmark", "--target", "./nowhere", "--draft", "random"], "`--target` ./nowhere does not exist"),
        (["benchmark", "--assistant", "./nowhere"], "`--assistant` ./nowhere does not exist"),
        (
            ["prepare", "features", "--data", "x", "--target", "./nowhere", "--output", "y"],
            "`--target` ./nowhere does not",
        ),
        (["train", "--target", "./nowhere", "--train-data", "x"], "`--target` ./nowhere does not exist"),
        (["space", "--target", "./nowhere", "--draft", "x"], "`--target` ./nowhere does not exist"),
        (["demo", "--device", "banana"], "`--device` 'banana' cannot be used"),
        (["benchmark", "--device", "banana", "--no-plots"], "`--device` 'banana' cannot be used"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_other_commands_report_mistakes_in_the_same_way(pair, words, message, capsys):
    assert main([word.format(pair=pair) for word in words]) == 2
    line = only_line(capsys)
    assert line.startswith(f"hf-eagle3 {words[0]}: ")
    assert message.format(pair=pair) in line


def test_a_full_disk_is_reported_in_one_line(tmp_path):
    """Under a limit on file sizes, which is what safetensors, torch and Python meet on a full disk too."""
    tensors = {"weight": torch.zeros(100_000)}
    writers = (
        lambda: save_file(tensors, tmp_path / "weights.safetensors"),
        lambda: torch.save(tensors, tmp_path / "optimizer.pt"),
        lambda: (tmp_path / "answers.jsonl").write_bytes(bytes(400_000)),
    )
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    errors = []
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        for write in writers:
            with pytest.raises((Exception,)) as caught:
                write()
            errors.append(caught.value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len({type(error) for error in errors}) == 3
    for error in errors:
        line = in_one_line(error)
        assert line.startswith("writing failed because the disk is full: ")
        assert line.endswith("Free some space or use another disk.")
        with pytest.raises(type(error)), explained("It", "Do this."):  # not taken for a mistake in a file
            raise error


# Bugs


@pytest.mark.parametrize("words", [["--debug"], []], ids=str)
def test_the_traceback_is_shown_on_request_only(pair, words, capsys, monkeypatch):
    if not words:
        monkeypatch.setenv("HF_EAGLE3_DEBUG", "1")
    wrong = [
        "generate",
        "--target",
        f"{pair}/target-act",
        "--draft",
        f"{pair}/draft",
        "--prompt",
        "a",
        "--device",
        "cpu",
    ]
    assert main([*words, *wrong]) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert "KeyError: 'banana'" in error
    assert error.strip().splitlines()[-1].startswith("hf-eagle3 generate: `--target` ")


def raised_by(call) -> Exception:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_an_error_of_the_operating_system_names_path_and_remedy(tmp_path):
    (tmp_path / "file").touch()
    calls = {
        "choose another path": lambda: (tmp_path / "file").mkdir(),
        "name a file in it": lambda: tmp_path.write_text(""),
        "check the path": lambda: (tmp_path / "nothing").read_text(),
    }
    for remedy, call in calls.items():
        line = in_one_line(raised_by(call))
        assert line.startswith(str(tmp_path))
        assert remedy in line
        assert "Errno" not in line


@pytest.mark.parametrize(
    "call",
    [
        lambda: int("x"),  # outside
        lambda: positive("²"),  # a line of ours that fails: `int` takes no superscript, `isdigit` does
        lambda: TreeConfig().with_changes(7, tree_depht=3),  # a wrong call
        lambda: torch.zeros(2) + torch.zeros(3),
    ],
)
def test_an_error_that_no_raise_of_ours_made_is_a_bug(call):
    error = raised_by(call)
    assert in_one_line(error) is None


def test_what_this_package_refuses_is_the_callers():
    assert in_one_line(raised_by(lambda: TreeConfig(tree_depth=0))).startswith("`tree_depth` is 0")


def test_a_bug_keeps_its_traceback(pair, capsys, monkeypatch):
    monkeypatch.setattr("hf_eagle3.cli.generate.encode", lambda *_: int("not a number"))
    with pytest.raises(ValueError, match="not a number"):
        generate(pair)
    assert "this is a bug in hf_eagle3" in only_line(capsys)


def test_a_bug_inside_loading_is_no_mistake_in_the_file(pair, capsys, monkeypatch):
    """`explained` is around our own code too: a line of ours that fails there is not blamed on the model."""
    monkeypatch.setattr("hf_eagle3.modeling_eagle3.vocabulary.complete_mapping", lambda *_: positive("²"))
    with pytest.raises(ValueError, match="²"):
        generate(pair)
    assert "this is a bug in hf_eagle3" in only_line(capsys)


# Options without effect


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--top-k", "4"], "`--top-k` has no effect at `--temperature 0`"),
        (["--top-p", "0.9"], "`--top-p` has no effect at `--temperature 0`"),
        (["--no-shared-noise"], "`--no-shared-noise` has no effect at `--temperature 0`"),
        (["--tree", "chain", "--tree-top-k", "4"], "`--tree-top-k` has no effect on a chain"),
        (["--tree", "chain", "--tree-depth", "3", "--num-draft-tokens", "4"], "`--num-draft-tokens` has no effect"),
        (["--tree", "static", "--explain"], "`--explain` has no effect with `--tree static`"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_generate_refuses_what_has_no_effect(pair, words, message, capsys):
    assert generate(pair, *words) == 2
    assert message in only_line(capsys)


@pytest.mark.parametrize(
    "words", [["--top-k", "0"], ["--top-p", "1"], ["--temperature", "1", "--top-k", "3"]], ids=str
)
def test_what_is_off_or_has_an_effect_is_not_refused(pair, words):
    assert generate(pair, *words) == 0


@pytest.mark.parametrize(
    "words",
    [
        ["--temperature", "-1"],
        ["--temperature", "nan"],
        ["--top-p", "3"],
        ["--top-p", "-0.1"],
        ["--top-k", "-1"],
        ["--max-new-tokens", "0"],
        ["--seed", "1e3"],
        ["--seed", str(2**64)],
    ],
    ids=" ".join,
)
def test_values_that_mean_nothing_are_refused(pair, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        generate(pair, *words)
    assert f"argument {words[0]}: {words[1]!r} is not a" in capsys.readouterr().err


ENDPOINT = ["--endpoint", "http://localhost:1/v1"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*REGENERATE, "--temperature", "0", "--top-p", "0.5"], "`--top-p` has no effect at"),
        ([*REGENERATE, "--concurrency", "3"], "`--concurrency` has no effect without `--endpoint`"),
        ([*REGENERATE, "--retries", "0"], "`--retries` has no effect without `--endpoint`"),
        ([*REGENERATE, "--timeout", "9"], "`--timeout` has no effect without `--endpoint`"),
        ([*REGENERATE, *ENDPOINT, "--draft", "user/draft"], "`--draft` has no effect with `--endpoint`"),
        ([*REGENERATE, *ENDPOINT, "--batch-size", "3"], "`--batch-size` has no effect with `--endpoint`"),
        ([*REGENERATE, *ENDPOINT, "--device", "cpu"], "`--device` has no effect with `--endpoint`"),
        ([*REGENERATE, *ENDPOINT, "--dtype", "float16"], "`--dtype` has no effect with `--endpoint`"),
        (["demo", "--prompt", "a", "--num-prompts", "2"], "`--num-prompts` has no effect together with `--prompt`"),
        (["demo", "--no-shared-noise"], "`--no-shared-noise` has no effect at"),
        (["inspect", "--draft", "x", "--attention", "eager"], "`--attention` has no effect without `--target`"),
        (
            ["convert", "user/draft", "out", "--target-name", "user/t"],
            "`--target-name` has no effect without `--target`",
        ),
        (["convert", "user/draft", "out", "--store-head"], "`--store-head` has no effect without `--target`"),
        (["convert", "{pair}/draft", "out", "--revision", "main"], "`--revision` has no effect on the directory"),
        (
            ["benchmark", "--assistant", "user/a", "--methods", "chain:3"],
            "`--assistant` has no effect unless `--methods`",
        ),
        (
            ["train", "--target", "t", "--features", "f", "--train-data", "d"],
            "`--train-data` has no effect together with `--features`",
        ),
        (
            ["train", "--target", "t", "--features", "f", "--streaming"],
            "`--streaming` has no effect together with `--features`",
        ),
        (
            ["train", "--target", "t", "--train-data", "d", "--eval-split", "s"],
            "`--eval-split` has no effect without `--eval-data`",
        ),
        (
            ["train", "--target", "t", "--train-data", "d", "--draft", "e", "--draft-vocab-size", "9"],
            "`--draft-vocab-size` has no effect together with `--draft`",
        ),
        (
            ["train", "--target", "t", "--train-data", "d", "--draft", "e", "--vocabulary", "v"],
            "`--vocabulary` has no effect together with `--draft`",
        ),
        (
            ["train", "--target", "t", "--train-data", "d", "--draft", "e", "--random-start"],
            "`--random-start` has no effect together with `--draft`",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_without_effect_are_refused(pair, words, message, capsys):
    assert main([word.format(pair=pair) for word in words]) == 2
    assert message in only_line(capsys)


# The pair that ships, and ties


def test_the_pair_that_ships_runs_in_float32_on_a_cpu():
    assert dtype_for(str(embedded.TARGET), "auto", "cpu") == "float32"
    assert dtype_for(f"{embedded.TARGET}/../target", "auto", "cpu") == "float32"
    assert dtype_for(str(embedded.TARGET), "bfloat16", "cpu") == "bfloat16"
    assert dtype_for(str(embedded.TARGET), "auto", "cuda") == "auto"
    assert dtype_for("user/target", "auto", "cpu") == "auto"


def test_the_default_of_generate_is_identical_text_for_the_pair_that_ships(capsys):
    words = [
        "--target",
        str(embedded.TARGET),
        "--draft",
        str(embedded.DRAFT),
        "--device",
        "cpu",
        "--json",
        "--compare",
    ]
    prompt = embedded.prompts()[0]["prompt"]
    assert main(["generate", *words, "--prompt", prompt, "--max-new-tokens", "24"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["identical"] is True


@pytest.mark.parametrize(
    ("dtype", "sampled", "words"),
    [
        (torch.bfloat16, False, "a near-tie in bfloat16"),
        (torch.bfloat16, True, "rounding in bfloat16 changed a sample"),
        (torch.float32, False, "please report this"),
    ],
)
def test_a_difference_is_explained_in_one_line(dtype, sampled, words):
    """A head that gives every token the same logit: nothing but ties."""
    target = tiny_target().to(dtype)
    target.lm_head.weight.data[:] = target.lm_head.weight.data[0]
    inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
    found = describe_difference(target, inputs, torch.tensor([3, 4, 5]), torch.tensor([3, 4, 6]), sampled)
    assert (found["position"], found["logit_gap"]) == (2, 0.0)
    assert words in found["explanation"]
    assert "\n" not in found["explanation"]


def test_a_gap_that_rounding_does_not_explain_is_no_tie():
    assert "tie" not in explanation("bfloat16", sampled=False, is_near_tie=False)
    assert "report it" in explanation("bfloat16", sampled=False, is_near_tie=False)
