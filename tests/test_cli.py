"""The command line on a tiny pair with a letters tokenizer: figures, comparison, and one line per mistake."""

import json
import re

import pytest
import torch
from models import tiny_draft, tiny_target
from test_options import letters_tokenizer

from hf_eagle3 import embedded
from hf_eagle3.cli import main
from hf_eagle3.cli.generate import describe_difference
from hf_eagle3.cli.origins import ACCEPTED, LEGEND, OWN
from hf_eagle3.cli.tables import show_markdown, show_pairs, show_table


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    target = tiny_target()
    target.save_pretrained(folder / "target")
    letters_tokenizer().save_pretrained(folder / "target")
    tiny_draft(target).save_pretrained(folder / "draft")
    return ["--target", str(folder / "target"), "--draft", str(folder / "draft")]


@pytest.mark.parametrize(
    "extra", [[], ["--temperature", "0.8", "--top-k", "12", "--tree", "chain", "--tree-depth", "3"]]
)
def test_generate_compares(folders, extra, capsys):
    arguments = [
        "generate",
        *folders,
        "--prompt",
        "abcd",
        "--max-new-tokens",
        "20",
        "--device",
        "cpu",
        "--compare",
        *extra,
    ]
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["identical"] is True
    assert report["new_tokens"] == 20
    assert report["acceptance_length"] >= 1
    assert sum(report["accepted_histogram"]) == report["num_cycles"]
    assert sum(report["phase_shares"].values()) == pytest.approx(1)
    assert main(arguments) == 0
    out = capsys.readouterr().out
    for word in ("tokens/s", "speedup", "identical tokens", "acceptance length", "phases"):
        assert word in out


def test_a_difference_is_placed_and_its_closeness_told():
    target = tiny_target()
    inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
    plain = target.generate(**inputs, max_new_tokens=6, do_sample=False)[0, 3:]
    other = plain.clone()
    other[4] += 1
    best = target(torch.cat((inputs["input_ids"][0], plain[:4]))[None]).logits[0, -1].topk(2).values
    found = describe_difference(target, inputs, plain, other)
    assert found["position"] == 4
    assert found["logit_gap"] == pytest.approx(float(best[0] - best[1]))
    assert describe_difference(target, inputs, plain, plain[:3])["position"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--target", "/nowhere/at/all"], "nowhere"),
        (["--draft", "/nowhere/at/all"], "nowhere"),
        (["--prompt", ""], "`--prompt` is empty"),
        (["--tree-top-k", "0"], "`tree_top_k` is 0"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_exit_code_2(folders, change, message, capsys):
    assert main(["generate", *folders, "--prompt", "abcd", "--device", "cpu", *change]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("hf-eagle3 generate: ")
    assert message in error


def test_swapped_models_say_so(folders, capsys):
    swapped = ["--target", folders[1], "--draft", folders[1]]
    assert main(["generate", *swapped, "--prompt", "abcd", "--device", "cpu"]) == 2
    assert "not an EAGLE-3 draft" in capsys.readouterr().err


def test_unknown_options_are_not_swallowed(folders):
    for wrong in (["--dtype", "int3"], ["--tre", "x"]):
        with pytest.raises(SystemExit, match="2"):
            main(["generate", *folders, "--prompt", "abcd", *wrong])


def test_a_target_alone_finds_its_draft(capsys):
    arguments = ["generate", "--target", str(embedded.TARGET), "--prompt", "Tom has 3 apples.", "--device", "cpu"]
    assert main([*arguments, "--max-new-tokens", "4", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["num_cycles"] > 0
    assert f"using the draft {embedded.DRAFT} (hf_eagle3), known for {embedded.TARGET}" in err


@pytest.mark.parametrize("command", [["generate", "--prompt", "x"], ["benchmark"], ["serve"], ["space"]])
def test_a_target_without_a_known_draft_names_similar_ones(command, capsys):
    assert main([*command, "--target", "Qwen/Qwen3-9B"]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(
        f"hf-eagle3 {command[0]}: No draft is known for the target 'Qwen/Qwen3-9B'. Similar names: "
    )
    assert "Qwen/Qwen3-8B" in line


def test_show_colours_the_text_by_origin(capsys):
    """Both colours occur; without the colours the text is the streamed one."""
    prompt = embedded.prompts("math")[0]["prompt"]
    arguments = ["generate", "--target", str(embedded.TARGET), "--prompt", prompt, "--device", "cpu"]
    arguments += ["--draft", str(embedded.DRAFT), "--max-new-tokens", "24", "--tree", "static"]
    assert main(arguments) == 0
    plain = capsys.readouterr().out
    assert main([*arguments, "--show"]) == 0
    legend, _, shown = capsys.readouterr().out.partition("\n")
    assert legend == LEGEND
    colours = re.compile(r"\033\[(32|1|0)m")
    assert colours.sub("", shown).split("\nnew tokens")[0].strip() == plain.split("\nnew tokens")[0].strip()
    coloured = dict.fromkeys((ACCEPTED, OWN), "")
    for start, text in re.findall(r"(\033\[(?:32|1)m)(.*?)\033\[0m", shown, re.DOTALL):
        coloured[start] += text
    assert coloured[ACCEPTED]
    assert coloured[OWN]


# Tables


def test_pairs_are_aligned_and_a_name_is_said_once(capsys):
    show_pairs([("mode", "tree"), ("taps", "[1, 11, 20]"), ("taps", "[red]no markup[/red] :smile:")])
    assert capsys.readouterr().out == "mode  tree\ntaps  [1, 11, 20]\n      [red]no markup[/red] :smile:\n"


def test_a_table_has_figures_to_the_right_and_long_lines_where_there_is_no_terminal(capsys):
    show_table(("method", "tau"), [("chain:5", "3.5"), ("x" * 200, "10.25")], "Title")
    title, header, first, second = capsys.readouterr().out.splitlines()
    assert title == "Title"
    assert header.split() == ["method", "tau"]
    assert first == "chain:5" + " " * (200 - 7 + 2) + "  3.5"
    assert second == "x" * 200 + "  10.25"


def test_a_terminal_gets_what_fits_it(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    show_pairs([("reason", "word " * 30)])
    lines = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert len(lines) > 3
    assert max(map(len, lines)) <= 40
    show_markdown("| a | b |\n| - | - |\n| 1 | 2 |")
    assert "|" not in capsys.readouterr().out


def test_the_demo_as_json_is_one_line(capsys):
    assert main(["demo", "--num-prompts", "1", "--max-new-tokens", "8", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["identical"] is True
    assert (report["pair"], report["new_tokens"]) == ("embedded", 8)
    assert report["speedup"] == pytest.approx(report["plain_seconds"] / report["seconds"])
