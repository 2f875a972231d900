"""The card says what was given and measured, and nothing else; `push --dry-run` writes the whole repository."""

import copy
import json
import sys

import pytest
import yaml
from huggingface_hub import ModelCard

from hf_eagle3 import Eagle3DraftModel, TreeConfig, embedded
from hf_eagle3.cli import main
from hf_eagle3.hub.card import BEGIN, CardFacts, write_card
from hf_eagle3.hub.card_figures import draw, lengths_by_drafted
from hf_eagle3.hub.engines import TargetFacts
from hf_eagle3.hub.formats import SPECULATORS
from hf_eagle3.hub.measured import Measured, read_benchmark
from hf_eagle3.hub.publish import Publication, write_repository
from hf_eagle3.hub.trained import training_rows
from hf_eagle3.target.fingerprint import fingerprint


ROW = {"task": "math", "method": "static", "temperature": 0.0, "batch_size": 1, "speedup": 1.837}
ROW |= {"speedup_interval": [1.7, 1.95], "acceptance_length": 3.456, "num_prompts": 18, "identical": True}
CHAIN = ROW | {"method": "chain:3", "speedup": 1.2, "speedup_interval": [0.9, 1.3], "acceptance_length": 2.1}
CHAIN |= {"acceptance_rates": [0.8, 0.5, 0.25]}
DEFAULTS = "the target's, with its default arguments"
BENCHMARK = {
    "versions": {"torch": "2.13.0", "cuda": None},
    "hardware": {"processor": "two cores"},
    "settings": {"target": str(embedded.TARGET), "draft": str(embedded.DRAFT), "max_new_tokens": 128},
    "rows": [ROW, ROW | {"task": "code", "temperature": 0.7, "speedup_interval": None, "identical": False}],
}


@pytest.fixture
def benchmark_file(tmp_path):
    def write(**changes):
        path = tmp_path / "benchmark.json"
        path.write_text(json.dumps(copy.deepcopy(BENCHMARK) | changes))
        return path

    return write


def dry_run(folder, *arguments: str) -> int:
    return main(["push", str(embedded.DRAFT), "user/pair", "--dry-run", str(folder), *arguments])


TARGET = ("--target", str(embedded.TARGET), "--target-name", "org/target")


def test_a_whole_repository_in_a_folder(tmp_path, benchmark_file, capsys):
    metadata = ("--license", "apache-2.0", "--dataset", "openai/gsm8k", "--tag", "tiny", "--target-revision", "main")
    assert dry_run(tmp_path / "out", *TARGET, *metadata, "--benchmark", str(benchmark_file())) == 0
    assert "Nothing uploaded" in capsys.readouterr().out
    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert names == {
        *("README.md", "config.json", "generation_config.json", "model.safetensors"),
        *("custom_generate/generate.py", "custom_generate/requirements.txt"),
    }
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert yaml.safe_load(card.data.to_yaml()) == {
        "library_name": "hf-eagle3",
        "pipeline_tag": "text-generation",
        "base_model": "org/target",
        "base_model_relation": "adapter",
        "base_model_revision": "main",
        "datasets": ["openai/gsm8k"],
        "license": "apache-2.0",
        "tags": ["eagle3", "eagle", "speculative-decoding", "custom_generate", "vllm", "sglang", "tiny"],
        "model-index": [
            {
                "name": "pair",
                "results": [
                    {
                        "task": {"type": "text-generation"},
                        "dataset": {"type": task, "name": task},
                        "metrics": [
                            {"type": "acceptance_length", "value": 3.456, "name": f"acceptance length ({how})"},
                            {"type": "speedup", "value": 1.837, "name": f"speedup over plain generate ({how})"},
                        ],
                    }
                    for task, how in (
                        ("math", "static, temperature 0, batch 1"),
                        ("code", "static, temperature 0.7, batch 1"),
                    )
                ],
            }
        ],
    }
    for line in (
        "| math | static | 0 | 1 | 1.84x (1.70 to 1.95) | 3.46 | 18 | yes |",
        "| code | static | 0.7 | 1 | 1.84x | 3.46 | 18 | no |",
        "On processor two cores; torch 2.13.0; max new tokens 128.",
        "| draft vocabulary | 896 of 1,024 tokens |",
        "| default tree | adaptive, at most 59 nodes, 8 levels, top-k 10 |",
        """vllm serve org/target --speculative-config '{"method": "eagle3", "model": "user/pair", "num_speculative""",
        "--speculative-num-steps 8 --speculative-eagle-topk 10",
        "--speculative-num-draft-tokens 60",  # SGLang counts the root
        "convert_hf_to_gguf.py draft --target-model-dir target --outfile draft.gguf",
        "--spec-type draft-eagle3 --spec-draft-n-max 5",
        'from_pretrained("user/pair")',
        'custom_generate="user/pair", trust_remote_code=True',
    ):
        assert line in card.text, line
    assert "It derives `head_dim`" in card.text.split("## The original")[1]
    Eagle3DraftModel.from_pretrained(tmp_path / "out")


def test_nothing_is_made_up(tmp_path, capsys):
    """No benchmark, licence, data or target: none of them in the card."""
    assert dry_run(tmp_path / "out") == 0
    assert "the card will not name a target" in capsys.readouterr().out
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert set(yaml.safe_load(card.data.to_yaml())) == {"library_name", "pipeline_tag", "tags"}
    assert "## Figures\n\nNot measured." in card.text
    assert str(embedded.FOLDER) not in card.text
    assert "EaModel" not in card.text
    assert 'AutoModelForCausalLM.from_pretrained("TARGET"' in card.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": BENCHMARK["settings"] | {"draft": "org/other"}}, "measured the draft `org/other`"),
        ({"settings": BENCHMARK["settings"] | {"target": "org/other"}}, "measured the target `org/other`"),
        ({"settings": {}}, "measured the draft `None`"),
        ({"rows": None}, "has no `rows`"),
        ({"rows": [{k: v for k, v in ROW.items() if k != "speedup"}]}, "row 0 has no `speedup`"),
        ({"rows": [ROW, ROW | {"speedup": None}]}, "row 1 has no `speedup`"),
        ({"rows": [ROW, {k: v for k, v in ROW.items() if k != "num_prompts"}]}, "row 1 has no `num_prompts`"),
        ({"rows": [ROW | {"speedup": float("nan")}]}, "`speedup` is nan, not a number"),
        ({"rows": [ROW | {"speedup": "fast"}]}, "`speedup` is 'fast', not a number"),
        ({"rows": [ROW | {"speedup_interval": [2.0, 3.0]}]}, "does not contain its `speedup`"),
        ({"rows": [CHAIN | {"acceptance_rates": [1.5]}]}, "`acceptance_rates` is [1.5], not a list of shares"),
        ({"rows": ["fast"]}, "row 0 is 'fast'"),
    ],
    ids=str,
)
def test_figures_of_another_pair_or_of_none_are_refused(tmp_path, benchmark_file, capsys, changes, message):
    assert dry_run(tmp_path / "out", *TARGET, "--benchmark", str(benchmark_file(**changes))) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_file_must_be_one(tmp_path, capsys):
    (tmp_path / "x").write_text("fast!")
    for name, message in ((tmp_path / "x", "is not JSON"), (tmp_path / "nowhere", "nowhere")):
        assert dry_run(tmp_path / "out", *TARGET, "--benchmark", str(name)) == 2
        assert message in capsys.readouterr().err


def test_a_benchmark_of_the_published_names_counts(benchmark_file):
    path = benchmark_file(settings={"target": "org/target", "draft": "user/pair"})
    assert len(read_benchmark(path, ["user/pair", None], [None, "org/target"]).rows) == 2
    with pytest.raises(ValueError, match="this target is unknown"):
        read_benchmark(path, ["user/pair"], [None])


def test_a_benchmark_is_matched_by_weights_wherever_it_was_run(tmp_path, benchmark_file, capsys):
    """By relative paths of another folder, moved, or by another name; not by the same path with other weights."""
    target, draft, _ = embedded.load_pair()
    prints = {"draft_fingerprint": fingerprint(draft), "target_fingerprint": fingerprint(target.bfloat16())}
    names = {"draft": "my-draft", "target": "models/target"}
    assert dry_run(tmp_path / "one", *TARGET, "--benchmark", str(benchmark_file(settings=names | prints))) == 0
    publication = Publication(target, benchmark=benchmark_file(settings=names | prints))
    write_repository(draft, tmp_path / "two", "user/pair", publication)
    capsys.readouterr()
    for name, message in (
        ("draft", "measured the draft `my-draft`"),
        ("target", "measured the target `models/target`"),
    ):
        wrong = names | prints | {f"{name}_fingerprint": "0" * 16}
        assert dry_run(tmp_path / "three", *TARGET, "--benchmark", str(benchmark_file(settings=wrong))) == 2
        assert message in capsys.readouterr().err
    again = BENCHMARK["settings"] | prints | {"draft_fingerprint": "0" * 16}  # trained anew at the same path
    assert dry_run(tmp_path / "three", *TARGET, "--benchmark", str(benchmark_file(settings=again))) == 2
    assert "with other weights. Measure it again" in capsys.readouterr().err


def card_of(**changes) -> str:
    facts = {"repository": "user/pair", "target": TargetFacts("org/target"), "tree": TreeConfig(), "dtype": "float32"}
    config = Eagle3DraftModel.from_pretrained(embedded.DRAFT).config
    earlier = changes.pop("earlier", None)
    for name in [name for name in changes if name in vars(config)]:
        setattr(config, name, changes.pop(name))
    return write_card(config, CardFacts(**facts | {"num_parameters": 1} | changes), earlier)


def test_an_engine_that_would_mis_serve_gets_no_command():
    text = card_of(norm_before_residual=True)
    sglang = text.split("## SGLang")[1].split("## llama.cpp")[0]
    assert "Do not serve this draft here" in sglang
    assert "launch_server" not in text
    assert "vllm serve" in text
    assert "draft-eagle3" in text
    assert "draft-eagle3" not in card_of(use_qk_norm=True)
    assert "It ignores `norm_output`" in card_of(norm_output=True).split("## llama.cpp")[1].split("## The original")[0]
    assert "Does not read this file format" in card_of(dialect=SPECULATORS).split("## SGLang")[1]


def test_an_author_keeps_the_word():
    first = card_of()
    mine = first.replace(BEGIN, "Hello.\n\n" + BEGIN) + "\nThanks."
    again = card_of(earlier=mine, repository="user/renamed")
    assert again.count(BEGIN) == 1
    assert "Hello." in again
    assert again.rstrip().endswith("Thanks.")
    assert "user/pair" not in again
    foreign = card_of(earlier="---\nlanguage: de\ntags: [mine]\n---\n# Mein Modell\n")
    card = ModelCard(foreign)
    assert card.data.language == "de"
    assert card.data.tags == ["eagle3", "eagle", "speculative-decoding", "custom_generate", "vllm", "sglang", "mine"]
    assert card.text.rstrip().endswith("# Mein Modell")
    assert card_of(earlier=first) == first  # nothing piles up


def test_what_the_benchmark_leaves_open_stays_open(benchmark_file):
    """No speedup where the text differs, no acceptance length where every answer was one token."""
    rows = [ROW | {"identical": False, "speedup": None, "speedup_interval": None}, ROW | {"acceptance_length": None}]
    path = benchmark_file(rows=rows, settings={"target": "org/target", "draft": "user/pair"})
    text = card_of(measured=read_benchmark(path, ["user/pair"], ["org/target"]))
    assert "| math | static | 0 | 1 | text differs | 3.46 | 18 | no |" in text
    assert "| 1.84x (1.70 to 1.95) | - | 18 | yes |" in text


def measured(*rows: dict, **settings):
    hardware = {"device": "cpu", "device_name": "Core X", "threads": 1}
    return Measured({"torch": "2.13.0"}, hardware, {"dtype": "float32"} | settings, list(rows))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            [ROW, ROW | {"task": "code", "speedup": 1.5, "speedup_interval": [1.1, 1.6], "acceptance_length": 3.0}],
            "Measured: 3.00 to 3.46 tokens per pass of the target and faster than plain `generate` on every task, "
            "1.50 to 1.84x on Core X (`static`, temperature 0, 18 prompts per task).",
        ),
        (  # one task is not faster beyond chance
            [ROW, ROW | {"task": "code", "speedup": 1.02, "speedup_interval": [0.98, 1.1]}],
            "Measured: 3.46 tokens per pass of the target and 1.02 to 1.84x the speed of plain `generate` on "
            "Core X (`static`, temperature 0, 18 prompts per task).",
        ),
        (  # the default mode counts, not the best one; the lowest temperature, the smallest batch
            [
                ROW | {"method": "lookup:10", "speedup": 9.0, "speedup_interval": None},
                ROW,
                ROW | {"method": "auto", "speedup": 0.8, "speedup_interval": None, "acceptance_length": 1.5},
                ROW | {"method": "auto", "temperature": 1.0, "speedup": 7.0, "speedup_interval": None},
                ROW | {"method": "auto", "batch_size": 4, "speedup": 8.0, "speedup_interval": None},
            ],
            "Measured: 1.50 tokens per pass of the target and 0.80x the speed of plain `generate` on Core X "
            "(`auto`, temperature 0, 18 prompts per task).",
        ),
        (
            [ROW | {"speedup": None, "speedup_interval": None, "identical": False}],
            "Measured: 3.46 tokens per pass of the target (`static`, temperature 0, 18 prompts per task); no speed is "
            "given, as the text differed.",
        ),
        ([ROW | {"method": "lookup:10"}], "Its acceptance and speed have not been measured."),
    ],
    ids=("faster", "not beyond chance", "auto", "text differs", "another drafter"),
)
def test_the_headline_is_taken_from_the_data(rows, expected):
    text = card_of(measured=measured(*rows))
    assert text.split("float32.\n\n")[1].split("\n\n")[0] == expected
    assert "faster" not in text or "faster" in expected


def test_acceptance_by_drafted_tokens_by_hand():
    """0.8 are accepted first, half of these second, a quarter of these third: 1.8, 2.2, 2.3 tokens per cycle."""
    assert lengths_by_drafted(CHAIN) == pytest.approx([1.8, 2.2, 2.3])
    deep = CHAIN | {"task": "code", "acceptance_rates": [1.0] * 9}
    text = card_of(measured=measured(ROW, CHAIN, CHAIN | {"acceptance_rates": [0.7]}, deep))
    assert "| task | temperature | k=1 | k=2 | k=3 | k=4 | k=5 | k=6 | k=7 |" in text
    assert "| math | 0 | 1.80 | 2.20 | 2.30 | - | - | - | - |" in text
    assert "| code | 0 | 2.00 | 3.00 | 4.00 | 5.00 | 6.00 | 7.00 | 8.00 |" in text
    assert "k=1" not in card_of(measured=measured(ROW))


def test_hardware_and_the_command_without_paths_of_this_machine(tmp_path):
    tasks = f"--tasks gsm8k {tmp_path}/p.jsonl --dtype float32"
    command = f"hf-eagle3 benchmark --target org/target --draft {tmp_path}/out/my-draft {tasks}"
    text = card_of(measured=measured(ROW, command=command))
    assert "On device cpu; device name Core X; threads 1; torch 2.13.0; dtype float32." in text
    assert "hf-eagle3 benchmark --target org/target --draft my-draft --tasks gsm8k p.jsonl --dtype float32" in text
    assert str(tmp_path) not in text


def test_the_plot_is_beside_the_card_where_matplotlib_is(tmp_path, benchmark_file, monkeypatch):
    path = benchmark_file(rows=[ROW, CHAIN])
    assert dry_run(tmp_path / "with", *TARGET, "--benchmark", str(path)) == 0
    assert (tmp_path / "with" / "acceptance.png").read_bytes().startswith(b"\x89PNG")
    assert "](acceptance.png)" in (tmp_path / "with" / "README.md").read_text()
    assert draw(measured(ROW)) is None  # nothing to draw
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert dry_run(tmp_path / "without", *TARGET, "--benchmark", str(path)) == 0
    assert not (tmp_path / "without" / "acceptance.png").exists()
    assert "acceptance.png" not in (tmp_path / "without" / "README.md").read_text()


def test_results_of_an_earlier_card_give_way_and_those_of_its_author_stay():
    first = card_of(measured=measured(ROW))
    assert ModelCard(first).data.eval_results[0].metric_value == 3.456
    own = {"type": "exact_match", "value": 0.5, "name": "mine"}
    index = {"task": {"type": "text-generation"}, "dataset": {"type": "x", "name": "x"}, "metrics": [own]}
    data = ModelCard(first).data.to_dict()
    data["model-index"][0]["results"].append(index)
    earlier = f"---\n{yaml.safe_dump(data)}---\n{ModelCard(first).text}"
    again = ModelCard(card_of(measured=measured(ROW | {"acceptance_length": 4.0}), earlier=earlier))
    assert [r.metric_value for r in again.data.eval_results] == [4.0, 1.837, 0.5]
    without = ModelCard(card_of(earlier=earlier))
    assert [r.metric_value for r in without.data.eval_results] == [0.5]
    assert ModelCard(card_of(earlier=first)).data.eval_results is None


def test_engine_tags_only_where_the_engine_serves_it():
    tags = ModelCard(card_of(norm_before_residual=True)).data.tags
    assert "vllm" in tags
    assert "sglang" not in tags
    again = ModelCard(card_of(norm_before_residual=True, earlier=card_of())).data.tags  # not kept from before
    assert "sglang" not in again


@pytest.mark.parametrize(
    ("template", "given", "expected"),
    [
        ({"takes_thinking": True}, None, [DEFAULTS, "not set: the template's default"]),
        (
            {"takes_thinking": True},
            {"enable_thinking": False},
            ['the target\'s, with {"enable_thinking": false}', "off"],
        ),
        ({"takes_thinking": False}, None, [DEFAULTS]),
        (None, None, []),
    ],
    ids=str,
)
def test_template_and_thinking_of_the_training_data(template, given, expected):
    record = {"data": {}, "target": {}, "hardware": {}, "versions": {"torch": "2.13.0", "cuda": None}}
    rows = dict(training_rows(record | {"chat_template": template, "chat_template_kwargs": given}))
    assert [rows[name] for name in ("chat template", "thinking") if name in rows] == expected
    assert rows["versions"] == "torch 2.13.0"


def test_what_a_file_says_stays_in_its_cell(benchmark_file):
    row = ROW | {"task": "math |\n# <script>"}
    path = benchmark_file(rows=[row], settings={"target": "org/target", "draft": "user/pair"})
    text = card_of(measured=read_benchmark(path, ["user/pair"], ["org/target"]))
    assert "| math   #  script | static |" in text


def test_the_target_is_told_by_name_model_or_configuration(monkeypatch):
    target, draft, _ = embedded.load_pair()
    target.config._name_or_path = "org/target"
    for given in (target, target.config):
        facts = Publication(given).export_target(draft).facts
        assert (facts.name, facts.num_layers) == ("org/target", 24)
    assert Publication(str(embedded.TARGET)).export_target(draft).facts.name is None  # a path is nobody's business
    monkeypatch.chdir(embedded.FOLDER.parent)
    target.config._name_or_path = "embedded/target"  # looks like a Hub id and is a folder
    assert Publication(target).export_target(draft).facts.name is None
    draft.config.target_name_or_path = "org/target"
    assert Publication().export_target(draft).facts == TargetFacts("org/target")  # cannot be reached


def test_a_hub_that_cannot_be_reached_is_one_line(capsys, monkeypatch):
    """The library under huggingface_hub has errors of its own; anything else is a defect and stays one."""

    class ConnectError(Exception):
        __module__ = "httpx2"

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("hf_eagle3.cli.push.push_to_hub", fail)
    error = ConnectError("no route")
    assert main(["push", str(embedded.DRAFT), "user/pair"]) == 2
    assert capsys.readouterr().err.endswith("hf-eagle3 push: the Hub is unreachable (no route).\n")
    error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        main(["push", str(embedded.DRAFT), "user/pair"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["user/pair", "--dry-run", "{folder}"], "is not empty"),
        (["a/b/c", "--dry-run", "{folder}/new"], "a/b/c"),
        (["user/pair", "--dry-run", "{folder}/new", "--target", "/nowhere/at/all"], "nowhere"),
        (["user/pair", "--dry-run", "{folder}/new", "--to", "speculators"], "pass --target"),
        (["user/pair"], "ffline mode"),
    ],
    ids=str,
)
def test_mistakes_of_push_end_in_one_line(tmp_path, capsys, arguments, message):
    (tmp_path / "x").touch()
    assert main(["push", str(embedded.DRAFT), *(a.format(folder=tmp_path) for a in arguments)]) == 2
    error = capsys.readouterr().err
    assert "hf-eagle3 push: " in error
    assert message in error
    assert not (tmp_path / "new").exists()
