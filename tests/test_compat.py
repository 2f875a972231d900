"""The contract with transformers: one place knows it, it holds here, and breaking it never breaks a user's program.

a name goes  ->  the text is plain generate's, one warning, nothing left patched
"""

import ast
import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from models import CACHE
from packaging.version import Version
from transformers import __version__ as transformers_version

from hf_eagle3.compat import contract, versions
from hf_eagle3.compat.calls import CACHE_NAMES
from hf_eagle3.compat.guard import STRICT, Guard
from hf_eagle3.compat.points import COMMANDS, GENERATE, POINTS, PROCESSORS, TRAINING, uses
from hf_eagle3.generation.stats import record


HERE = Path(__file__).parent
PACKAGE = HERE.parent / "hf_eagle3"
OUTSIDE = [
    *(f for f in sorted(PACKAGE.rglob("*.py")) if "compat" not in f.relative_to(PACKAGE).parts),
    *sorted((HERE.parent / "spaces").rglob("*.py")),
]
# What transformers documents for its users.
DOCUMENTED = {
    *("PrinterCallback", "ProgressCallback", "TrainerState"),
    *("AutoConfig", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForSeq2SeqLM", "AutoTokenizer"),
    *(
        "BitsAndBytesConfig",
        "Cache",
        "CompileConfig",
        "DynamicCache",
        "GenerationConfig",
        "GgufConfig",
        "HfArgumentParser",
    ),
    *("LlamaConfig", "LogitsProcessorList", "PreTrainedConfig", "PreTrainedModel", "PreTrainedTokenizerBase"),
    *("PreTrainedTokenizerFast", "StaticCache", "StoppingCriteriaList", "TextStreamer", "Trainer", "TrainerCallback"),
    *("TrainingArguments", "logging", "set_seed", "ModelOutput", "AutoImageProcessor"),
    *("LlamaForCausalLM", "Qwen3Config", "default_data_collator"),
}
WORDS = {point.name for point in POINTS if point.is_word}


def names_of(tree):
    """Identifiers and strings of a file's code, but for what it imports from `compat`."""
    asked = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and "compat" in (node.module or "").split(".")
        for alias in node.names
    }
    for part in ast.walk(tree):
        if isinstance(part, ast.Name) and part.id in asked:
            continue
        if isinstance(part, ast.Attribute):
            yield part.attr, part.lineno
        elif isinstance(part, ast.Name):
            yield part.id, part.lineno
        elif isinstance(part, ast.keyword) and part.arg:
            yield part.arg, part.value.lineno
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value, part.lineno


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda p: str(p.relative_to(HERE.parent)))
def test_nothing_else_names_what_may_change(path):
    private = {point.name for point in POINTS} - WORDS - DOCUMENTED | set(CACHE_NAMES[1:])
    found = [f"line {line}: {name}" for name, line in names_of(ast.parse(path.read_text())) if name in private]
    assert not found, f"belongs into hf_eagle3/compat: {found}"


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda p: str(p.relative_to(HERE.parent)))
def test_nothing_else_imports_what_is_not_documented(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "transformers":
            assert {alias.name for alias in node.names} <= DOCUMENTED, f"line {node.lineno}"
            assert node.module in ("transformers", "transformers.utils"), f"line {node.lineno}"


@pytest.mark.parametrize("name", contract.CHECKS)
def test_drafting_equals_plain_generate_end_to_end(name):
    assert contract.fault_of(contract.CHECKS[name]) is None


def test_end_to_end_checks_accept_drafts(monkeypatch):
    """Else they would not see what committing and dropping does."""
    seen = []

    @contextmanager
    def watched():
        with record() as stats:
            yield stats
        seen.append(stats)

    monkeypatch.setattr(contract, "record", watched)
    for check in contract.CHECKS.values():
        check()
    assert sum(sum(map(sum, stats.accepted_tokens)) for stats in seen) > 15
    assert {stats.mode for stats in seen} >= {"tree", "chain"}


def test_an_end_to_end_check_leaves_the_users_state_alone():
    import torch

    torch.manual_seed(7)
    state = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        assert contract.fault_of(contract.CHECKS["sampling"]) is None
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert state.tolist() == torch.get_rng_state().tolist()


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.path)
def test_every_point_is_as_expected(point):
    assert point.fault() is None


def test_a_point_that_is_not_there_is_a_fault_and_a_stand_in():
    before = len(POINTS)
    try:
        stand_in = uses("transformers.GenerationMixin", "_no_such_method", "nothing")
        lacking = uses("transformers.GenerationMixin", "_prefill", "nothing", parameters=("no_such_argument",))
        later = uses("transformers", "NotYet", "nothing", since="99.0")
        faults = [point.fault() for point in POINTS[before:]]
    finally:
        del POINTS[before:]
    assert "missing" in faults[0]
    assert faults[1] == "found without `no_such_argument`"
    assert faults[2] is None
    assert callable(lacking)
    assert not isinstance(1, later)
    with pytest.raises(RuntimeError, match=r"no `transformers\.GenerationMixin\._no_such_method`"):
        stand_in()


def test_the_command_prints_a_table_and_its_status(capsys, monkeypatch):
    assert contract.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(POINTS) + len(contract.CHECKS) + 1
    assert all(line.startswith("ok") for line in lines[:-1])
    monkeypatch.setitem(contract.CHECKS, "chain", lambda: 1 / 0)
    assert contract.main(["--json"]) == 1
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["found"] for row in rows if not row["holds"]] == ["ZeroDivisionError: division by zero"]


# -- the guard --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "is_proved"),
    [
        ("5.8.0", True),
        (versions.NEWEST_PROVED, True),
        ("5.99.0", False),
        ("5.20.0.dev0", False),
        ("5.20.0+fork", False),
        ("mine", False),
    ],
)
def test_which_versions_are_proved(version, is_proved):
    assert versions.is_proved(version) == is_proved


def test_this_version_is_proved():
    """A release newer than `NEWEST_PROVED` passes all tests but this one: run the nightly ones, then raise it."""
    assert versions.is_proved() or Version(transformers_version).is_prerelease


@pytest.fixture
def unproved(monkeypatch, tmp_path):
    """A guard of a newer version, and how often it was tried out."""
    monkeypatch.setattr("hf_eagle3.compat.guard.is_proved", lambda: False)
    monkeypatch.delenv(STRICT, raising=False)
    tried = []

    def guard(fault=None):
        return Guard(lambda: tried.append(1) or fault, tmp_path / "folder" / "versions.json")

    return guard, tried


def test_a_success_is_remembered_on_disk(unproved):
    guard, tried = unproved
    first = guard()
    assert [first.refuses(), first.refuses(), guard().refuses()] == [None] * 3
    assert len(tried) == 1


def test_a_failure_is_looked_for_again_and_said_once_per_process(unproved, caplog, monkeypatch):
    guard, tried = unproved
    monkeypatch.setattr("hf_eagle3.compat.guard.logger.warning", lambda text: said.append(text))
    said = []
    for _ in range(2):
        mine = guard("the check 'chain' failed")
        assert "the check 'chain' failed" in mine.refuses()
        mine.refuses()
    assert len(tried) == 2
    assert len(said) == 2
    assert transformers_version in said[0]
    assert "pip install 'transformers" in said[0]


def test_strict_raises(unproved, monkeypatch):
    guard, _ = unproved
    monkeypatch.setenv(STRICT, "1")
    with pytest.raises(RuntimeError, match="the check 'tree' failed"):
        guard("the check 'tree' failed").refuses()


@pytest.mark.parametrize("content", ["", "{", '{"a": 1}', "[1]"])
def test_a_damaged_memory_is_tried_again(unproved, content, tmp_path):
    guard, tried = unproved
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "versions.json").write_text(content)
    assert guard().refuses() is None
    assert guard().refuses() is None
    assert len(tried) == 1


def test_a_disk_that_cannot_be_written_costs_the_time_only(unproved, tmp_path):
    guard, tried = unproved
    (tmp_path / "folder").write_text("a file where the folder should be")
    assert guard().refuses() is None
    assert guard().refuses() is None
    assert len(tried) == 2


def test_older_transformers_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(versions, "transformers_version", "5.7.0")
    with pytest.raises(ImportError, match=r"^hf_eagle3 needs transformers>=5.8, found 5.7.0: `pip install -U .*`\.$"):
        versions.refuse_older()


# -- transformers of the future ---------------------------------------------------------------------------------------


def future(changes: list, tmp_path, version: str = "5.99.0", **environment) -> dict:
    done = subprocess.run(
        [sys.executable, HERE / "future_transformers.py", json.dumps(changes), version],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"} | environment,
        cwd=HERE.parent,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def renamed(name: str) -> list:
    """Every occurrence of a name in transformers' source with another ending."""
    return [[rf"\b{name}\b", f"{name}_of_tomorrow", ""]]


def assert_plain(found: dict) -> None:
    assert found["same"]
    assert found["changed"] > 1, "the change hit nothing"
    assert found["accepted"] == 0
    assert len(found["warnings"]) == 1
    assert "`generate` runs without the draft" in found["warnings"][0]
    assert found["patched"] == []
    assert found["hooks"] == 0


BREAKS = {
    "an argument": renamed("next_sequence_length"),
    "the cache's argument": [
        [r"(?<![\w./-])cache(?![\w/])|(?<=outputs\.)cache\b|(?<=self\.)cache\b", "memory", part]
        for part in ("models.llama", "generation.utils", "masking_utils", "modeling_outputs", "utils.generic")
    ]
    if CACHE == "cache"
    else renamed(CACHE),
    "a private method": renamed("_prefill"),
    "the decoding method": renamed("_assisted_decoding"),
    "the mask builder": [[r"len\(attention_mask\.shape\) == 4", "len(attention_mask.shape) == 5", "masking_utils"]],
    "a field of cache layers": renamed("cumulative_length"),
    "keys of cache layers": [[r"\bself\.keys\b(?!\()", "self.keys_of_tomorrow", "cache_utils"]],
    "a criterion": renamed("EosTokenCriteria"),
    "the draft's rotary embedding": renamed("LlamaRotaryEmbedding"),
}


def test_a_newer_transformers_that_holds_is_used_silently(tmp_path):
    found = future([], tmp_path)
    assert found["same"]
    assert found["accepted"] > 0
    assert found["warnings"] == []
    remembered = json.loads((tmp_path / "hf_eagle3" / "transformers_versions.json").read_text())
    assert "transformers 5.99.0" in remembered[0]


@pytest.mark.parametrize("name", BREAKS)
def test_a_newer_transformers_that_breaks_us_runs_plain(name, tmp_path):
    assert_plain(future(BREAKS[name], tmp_path))


def test_outputs_without_their_cache_are_not_needed(tmp_path):
    found = future([[rf"(?m)^(\s+){CACHE}=outputs\.\w+,", rf"\1{CACHE}=None,", "modeling_llama"]], tmp_path)
    assert found["same"]
    assert found["changed"] > 1
    assert found["accepted"] > 0


def test_a_processor_that_is_gone_costs_speed_only(tmp_path):
    found = future(renamed("TopKLogitsWarper"), tmp_path)
    assert found["same"]
    assert found["accepted"] > 0
    assert len(found["warnings"]) == 1
    assert "TopKLogitsWarper" in found["warnings"][0]


def test_a_fork_with_a_proved_number_is_found_out(tmp_path):
    assert_plain(future(renamed("_get_candidate_generator"), tmp_path, version=versions.NEWEST_PROVED))


def test_strict_ends_a_program_that_would_run_plain(tmp_path):
    done = subprocess.run(
        [sys.executable, HERE / "future_transformers.py", json.dumps(BREAKS["a private method"])],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HOME": str(tmp_path), STRICT: "1"},
        cwd=HERE.parent,
    )
    assert done.returncode == 1
    assert re.match(
        r"RuntimeError: hf_eagle3 .*_prefill \(reading the prompt\) is missing", done.stderr.splitlines()[-1]
    )


# Names that are ordinary words: which occurrences are meant.
MEANT = {
    "layers": (r"\b(self|cache|past_key_values)\.layers\b", r"\1.layers_of_tomorrow", "cache_utils"),
    "offloading": (r"\bself\.offloading\b", "self.offloading_of_tomorrow", ""),
    "keys": (r"\bself\.keys\b(?!\()", "self.keys_of_tomorrow", "cache_utils"),
    "values": (r"\bself\.values\b(?!\()", "self.values_of_tomorrow", "cache_utils"),
    "device": (r"\bself\.device\b", "self.device_of_tomorrow", "cache_utils"),
    "sliding_window": (r"\bself\.sliding_window\b", "self.window_of_tomorrow", "cache_utils"),
    "update": (  # of layers, not of caches, which take a layer's number
        r"(?<=def )update(?=\(\s*self,\s*key_states[^)]*,\s*\*args)(?!\([^)]*layer_idx)"
        r"|(?<=[\])]\.)update(?=\(key)|(?<=super\(\)\.)update",
        "update_of_tomorrow",
        "cache_utils",
    ),
    "is_initialized": (r"\b(self|layer)\.is_initialized\b", r"\1.initialised_of_tomorrow", "cache_utils"),
    "temperature": (r"\bself\.temperature\b", "self.temperature_of_tomorrow", "logits_process"),
    "top_k": (r"\bself\.top_k\b", "self.top_k_of_tomorrow", "logits_process"),
    "top_p": (r"\bself\.top_p\b", "self.top_p_of_tomorrow", "logits_process"),
    "max_length": (r"\bself\.max_length\b", "self.length_of_tomorrow", "stopping_criteria"),
    "eos_token_id": (r"\bself\.eos_token_id\b", "self.end_of_tomorrow", "stopping_criteria"),
}


@pytest.mark.nightly
@pytest.mark.parametrize("name", sorted({point.name for point in POINTS}))
def test_every_point_may_go(name, tmp_path):
    scopes = {point.scope for point in POINTS if point.name == name}
    if name == CACHE:
        changes = BREAKS["the cache's argument"]
    else:
        changes = [MEANT[name]] if name in MEANT else renamed(name)
    found = future(changes, tmp_path)
    if scopes <= {TRAINING, COMMANDS}:
        assert found["same"]
        assert found["warnings"] == []
    elif scopes <= {PROCESSORS}:
        assert found["same"]
        assert len(found["warnings"]) == 1
    else:
        assert GENERATE in scopes
        assert_plain(found)
