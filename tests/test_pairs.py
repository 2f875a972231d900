"""The pairs whose drafts ship: by name, with a target that may be missing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hf_eagle3 import embedded, pairs, smollm2
from hf_eagle3.cli import main
from hf_eagle3.hub import registry
from hf_eagle3.hub.registry import known_draft
from hf_eagle3.smollm2 import fetch as fetching
from hf_eagle3.smollm2.fetch import RECORD, FetchError


def test_the_embedded_pair_is_whole():
    pair = pairs.shipped_pair("embedded")
    assert (pair.target, pair.draft, pair.note) == (embedded.TARGET, embedded.DRAFT, None)
    assert pair.prompts == embedded.prompts()


def test_the_target_comes_from_the_folder_that_the_variable_names(tmp_path, monkeypatch):
    (tmp_path / RECORD).write_text(json.dumps({"source": "pypi"}))
    monkeypatch.setenv(smollm2.VARIABLE, str(tmp_path))
    pair = pairs.shipped_pair("smollm2")
    assert (pair.target, pair.draft, pair.note) == (tmp_path, smollm2.DRAFT, None)


def test_it_is_fetched_into_the_cache_otherwise(monkeypatch):
    monkeypatch.delenv(smollm2.VARIABLE, raising=False)
    asked = []
    monkeypatch.setattr(fetching, "fetch", asked.append)
    assert smollm2.locate() == smollm2.CACHE
    assert asked == [smollm2.CACHE]


@pytest.mark.parametrize("error", [FetchError("no network."), OSError("no space")])
def test_without_its_target_the_embedded_pair_is_used_and_told(monkeypatch, error):
    def fail(folder):
        raise error

    monkeypatch.setattr(fetching, "fetch", fail)
    pair = pairs.shipped_pair("smollm2")
    assert pair.target == embedded.TARGET
    assert str(error) in pair.note
    assert "\n" not in pair.note


def test_other_names_are_refused():
    with pytest.raises(ValueError, match="choose from embedded, smollm2"):
        pairs.shipped_pair("llama")


def test_the_demo_goes_on_with_the_embedded_pair_and_the_benchmark_does_not(monkeypatch, capsys, tmp_path):
    def fail(folder):
        raise FetchError("no network.")

    monkeypatch.setattr(fetching, "fetch", fail)
    assert main(["demo", "--pair", "smollm2", "--num-prompts", "1", "--max-new-tokens", "4", "--color", "never"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("The target of `smollm2` is not at hand, the embedded pair is used instead. no network.")
    assert "the embedded pair, 9.6M" in out
    assert main(["benchmark", "--target", "smollm2", "--output-dir", str(tmp_path / "out")]) == 2
    assert "no network." in capsys.readouterr().err
    assert not Path(tmp_path / "out").exists()


def test_a_benchmark_takes_the_prompts_of_a_pair_by_domain():
    from hf_eagle3.cli.benchmark import load_tasks
    from hf_eagle3.cli.parsing import parser

    given = parser("benchmark").parse_args(["benchmark", "--tasks", "smollm2", "--limit", "2"])
    tasks = load_tasks(given)
    assert [task.name for task in tasks] == ["math", "code", "chat", "question", "summary"]
    assert all(len(task.prompts) == 2 for task in tasks)


@pytest.mark.parametrize("by", ["id", "folder"])
def test_the_draft_of_the_real_target_is_known(tmp_path, by):
    (tmp_path / RECORD).write_text(json.dumps({"source": "hub"}))
    known = known_draft(fetching.HUB_ID.upper() if by == "id" else str(tmp_path))
    assert Path(known.draft) == smollm2.DRAFT
    assert (registry.SMOLLM2_TARGET, registry.SMOLLM2_RECORD) == (fetching.HUB_ID, fetching.RECORD)


def test_a_draft_that_is_refused_is_never_the_known_one(monkeypatch):
    entry = registry.public_drafts()[0]
    refused, usable = (
        replace(entry, draft=name, checked=value) for name, value in (("a/x", "refused"), ("b/y", False))
    )
    monkeypatch.setattr(registry, "public_drafts", lambda: (refused, usable))
    assert known_draft(entry.target).draft == "b/y"
    monkeypatch.setattr(registry, "public_drafts", lambda: (refused,))
    with pytest.raises(ValueError, match="No draft is known"):
        known_draft(entry.target)


def test_no_module_hides_a_function_of_the_package():
    """Importing `smollm2.x` makes x an attribute of `smollm2`."""
    own = {path.stem for path in smollm2.FOLDER.glob("*.py")}
    assert not own & {"prompts", "locate", "load_pair"}
