"""The benchmark as it runs: prompt sets, method names, what is asked of each method, rounds, the command."""

import json
import re

import pytest
import torch
from models import left_padded, tiny_draft, tiny_target
from test_options import letters_tokenizer

from hf_eagle3.benchmarks import calls, methods, prompts, runner
from hf_eagle3.benchmarks.calls import AssistedCycles, run_call
from hf_eagle3.benchmarks.methods import Assistant, Method, default_names, parse
from hf_eagle3.benchmarks.prompts import HUB_SETS, Prompt, Task, load_task, read_lines
from hf_eagle3.benchmarks.runner import Runner
from hf_eagle3.benchmarks.timing import timed, without_eos
from hf_eagle3.benchmarks.work import BenchmarkSettings, Workload, batches
from hf_eagle3.cli import main


@pytest.fixture(scope="module")
def pair():
    target = tiny_target()
    return target, tiny_draft(target)


def task(*prompts_: tuple[str, ...]) -> Task:
    return Task("letters", tuple(Prompt(str(i), turns) for i, turns in enumerate(prompts_)))


def workload(target, **settings) -> Workload:
    return Workload(target, letters_tokenizer(), BenchmarkSettings(**{"max_new_tokens": 20} | settings))


# -- prompt sets ------------------------------------------------------------------------------------------------------


def test_lines_of_every_shape_are_read():
    lines = [
        '{"question_id": 81, "category": "writing", "turns": ["a", "b"], "reference": ["c"]}',
        "",
        '{"domain": "math", "prompt": "d"}',
        '{"prompt": ["e", "f"]}',
    ]
    assert list(read_lines(lines, [])) == [Prompt("81", ("a", "b")), Prompt("3", ("d",)), Prompt("4", ("e", "f"))]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "it is not JSON"),
        ("\xff", "it is not JSON"),
        ("[]", "it has no prompt"),
        ('{"question": "why"}', "A sample has the columns ['question']"),
        ('{"turns": []}', "`turns` contains no question"),
        ('{"turns": ["a", " "]}', "it has no prompt"),
        ('{"turns": [1]}', "`turns`[0] is 1"),
        ('{"messages": []}', "`messages` contains no question"),
        ('{"prompt": [{"role": "system", "content": "be kind"}]}', "it has no prompt"),
    ],
)
def test_a_wrong_line_is_left_out_and_reported_with_its_number(tmp_path, line, message, caplog):
    path = tmp_path / "mine.jsonl"
    path.write_text(f'{{"prompt": "a"}}\n\n{line}\n{{"prompt": "b"}}\n', encoding="latin-1")
    assert load_task(str(path)) == Task("mine", (Prompt("1", ("a",)), Prompt("4", ("b",))), num_unreadable=1)
    assert f"1 lines are skipped. Line 3: {message}" in caplog.text
    path.write_text(line, encoding="latin-1")
    with pytest.raises(ValueError, match=f"has no prompts.*Line 1: {re.escape(message)}"):
        load_task(str(path))


def test_prompts_that_are_chats():
    """A system message goes before the first question, recorded answers are left out, tools go to the template."""
    system, why = {"role": "system", "content": "be kind"}, {"role": "user", "content": "why"}
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": {}}}]}
    found = {"role": "tool", "content": "so"}
    rows = [
        {"prompt": [system, why]},
        {"prompt": [why]},
        {"messages": [why, {"role": "assistant", "content": "so"}, {"role": "user", "content": "and"}], "id": 3},
        {"messages": [why, call, found], "tools": [{"name": "look", "default": None}]},
        {"conversations": [{"from": "human", "value": "why"}, {"from": "gpt", "value": "so"}]},
        {"text": "once upon"},
    ]
    assert list(read_lines(map(json.dumps, rows), [])) == [
        Prompt("1", ((system, why),)),
        Prompt("2", ("why",)),
        Prompt("3", ("why", "and")),
        Prompt("4", ((why, call, found),), {"tools": [{"name": "look"}]}),
        Prompt("5", ("why",)),
        Prompt("6", ("once upon",)),
    ]


def test_files_that_are_not_there_or_empty(tmp_path):
    with pytest.raises(ValueError, match="neither a file nor one of mt-bench"):
        load_task("nowhere.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="has no prompts"):
        load_task(str(tmp_path / "empty.jsonl"))


ROWS = {
    "mt-bench": ({"prompt": ["q", "r"], "category": "math"}, ("q", "r")),
    "humaneval": ({"prompt": "def f():"}, ("Complete the code I provided.\ndef f():",)),
    "gsm8k": ({"question": "q", "answer": "a"}, ("q",)),
    "alpaca": ({"instruction": "q", "input": "x", "output": "a"}, ("q\nx",)),
    "cnn_dm": ({"article": "q", "highlights": "a"}, ("Summarize: q",)),
}


@pytest.mark.parametrize("name", HUB_SETS)
def test_hub_sets_become_turns(name, monkeypatch):
    row, turns = ROWS[name]
    asked = []
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **options: asked.append((args, options)) or [row] * 5)
    assert load_task(name, limit=2) == Task(name, (Prompt("0", turns), Prompt("1", turns)))
    hub = HUB_SETS[name]
    assert asked == [((hub.path, hub.config), {"split": hub.split, "streaming": True})]


def test_alpaca_without_input_is_the_instruction_alone():
    assert HUB_SETS["alpaca"].turns({"instruction": "q", "input": ""}) == ["q"]


# -- methods ----------------------------------------------------------------------------------------------------------


def test_names_become_arguments(pair):
    target, draft = pair
    assistant = Assistant(target, {})
    found = {
        m.name: m
        for m in parse(
            ["plain", "lookup:3", "chain:2", "tree:7,3,4:no-shared-noise", "assisted:4", "chain:2"], draft, assistant
        )
    }
    assert list(found) == ["lookup:3", "chain:2", "tree:7,3,4:no-shared-noise", "assisted:4"]
    assert found["lookup:3"].options == {"prompt_lookup_num_tokens": 3}
    tree = found["tree:7,3,4:no-shared-noise"].options["assistant_model"].tree_config
    assert (tree.num_draft_tokens, tree.tree_depth, tree.tree_top_k, tree.shared_noise) == (7, 3, 4, False)
    chain = found["chain:2"].options["assistant_model"].tree_config
    assert (chain.tree_mode, chain.tree_depth, chain.shared_noise) == ("chain", 2, True)
    small = found["assisted:4"].options["assistant_model"].generation_config
    assert (small.num_assistant_tokens, small.num_assistant_tokens_schedule) == (4, "constant")
    assert target.generation_config.num_assistant_tokens != 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("magic", "'magic' is unknown"),
        ("lookup:no-shared-noise", "is unknown"),
        ("tree:3", "sizes must be positive integers"),
        ("tree:3,0,1", "sizes must be positive integers"),
        ("chain:x", "sizes must be positive integers"),
        ("chain:2,x", "sizes must be positive integers"),
        ("tree:6,3,3,", "sizes must be positive integers"),
        ("tree:100,2,2", "drafts only 6 nodes"),
        ("tree:7,2,7", "draft vocabulary has only 6"),
        ("assisted", "`--assistant`"),
        ("plain", "nothing to compare"),
    ],
)
def test_a_wrong_method_says_what_to_do(pair, name, message):
    with pytest.raises(ValueError, match=message):
        parse([name], pair[1], None)


def test_the_defaults_can_run(pair):
    assert default_names(True)[-2:] == ["auto", "assisted"]
    assert [method.name for method in parse(default_names(False)[:2], pair[1], None)] == ["lookup:10", "chain:5"]


def test_drafts_without_training_by_name(pair):
    target, draft = pair
    names = ["suffix", "lookahead:3,4,2", "eagle3+suffix", "small:no-shared-noise", "small:some/folder"]
    found = parse(names, draft, Assistant(target, {}), {"some/folder": target}.__getitem__)
    drafts = [method.options["assistant_model"] for method in found]
    assert [method.name for method in found] == names
    assert [type(one).__name__ for one in drafts] == [
        "SuffixDraft",
        "LookaheadDraft",
        "GraftedDraft",
        "SmallModelDraft",
        "SmallModelDraft",
    ]
    assert (drafts[1].window, drafts[1].ngram, drafts[1].guesses) == (3, 4, 2)
    assert [one.tree_config.shared_noise for one in drafts] == [True, True, True, False, True]
    assert all(method.is_ours for method in found)
    with pytest.raises(ValueError, match="small:DIRECTORY, or set `--assistant`"):
        parse(["small"], draft, None)


def test_the_hosts_methods_are_left_out_where_they_cannot_run():
    host, ours = Method("lookup", {}), Method("chain", {}, is_ours=True)
    foreign = Method("assisted", {}, other_vocabulary=True)
    assert host.skip_reason(1, 1.0) == ours.skip_reason(4, 1.0) == foreign.skip_reason(1, 0.0) == ""
    assert "batch size 1 only" in host.skip_reason(2, 0.0)
    assert "distribution" in foreign.skip_reason(1, 1.0)


# -- what is asked of every method ------------------------------------------------------------------------------------


def test_batches_are_full_and_of_one_length_in_turns():
    questions = task(("a",), ("b", "c"), ("d",), ("e",), ("f", "g"))
    found = [[p.question_id for p in b.prompts] for b in batches(questions, 0.0, 0, 2)]
    assert found == [["0", "2"], ["3", "0"], ["1", "4"]]
    assert [[p.question_id for p in b.prompts] for b in batches(task(("a",)), 0.0, 0, 3)] == [["0", "0", "0"]]


def ending_target(target, inputs: dict, place: int):
    """`target` whose greedy answer to `inputs` has its first EOS at `place`, an index that is a new token's first."""
    answer = target.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    first = [i for i, token in enumerate(answer) if token not in answer[:i]]
    end = max(i for i in first if i <= place)
    target.generation_config.eos_token_id = answer[end]
    return end + 1


def test_every_method_writes_what_plain_generate_writes_until_its_eos():
    target = tiny_target()
    draft = tiny_draft(target)
    load = workload(target)
    (batch,) = batches(task(("abcd",)), 0.0, 0, 1)
    length = ending_target(target, load.first_turn(batch, 1).inputs, 12)
    assert 1 < length < 20
    (work,) = load.works(batch)
    assert work.new_tokens == length
    for method in (runner.PLAIN_METHOD, *parse(["lookup", "chain:2", "tree:6,3,3"], draft, None)):
        assert run_call(target, method, work, load.options(work)).tokens.shape == (1, length)
    (whole,) = workload(target, ignore_eos=True).works(batch)
    assert whole.new_tokens == 20


def test_another_random_stream_still_writes_as_many_tokens(pair):
    """The host samples other texts, with their EOS elsewhere: without care some would end early or run on."""
    target = tiny_target()
    target.generation_config.eos_token_id = 8
    load = workload(target)
    (lookup,) = parse(["lookup"], pair[1], None)
    lengths = []
    for seed in range(8):
        (work,) = load.works(batches(task(("efgh",)), 1.0, seed, 1)[0])
        call = run_call(target, lookup, work, load.options(work))
        assert call.tokens.shape == (1, work.new_tokens)
        assert call.stats.num_committed_tokens == work.new_tokens
        lengths.append(work.new_tokens)
    assert len(set(lengths)) > 2


def test_eos_is_off_inside_and_back_after_an_error():
    target = tiny_target()
    target.generation_config.eos_token_id = [5, 6]
    with without_eos(target):
        assert target.generation_config.eos_token_id is None
    with pytest.raises(ValueError, match="input_ids"), without_eos(target):
        target.generate(torch.zeros(1, 0).long(), max_new_tokens=1, assistant_model=tiny_draft(tiny_target()))
    assert target.generation_config.eos_token_id == [5, 6]


def test_turns_go_on_over_plain_answers(pair):
    load = workload(pair[0])
    (batch,) = batches(task(("abcd", "ef")), 0.0, 0, 1)
    first, second = load.works(batch)
    answer = timed(pair[0], first.inputs, 0, **load.options(first))[0][0]
    text = load.tokenizer.decode(answer, skip_special_tokens=True)
    assert (first.turn, second.turn) == (0, 1)
    assert second.inputs["input_ids"][0].tolist() == load.tokenizer(f"abcd\n{text}\nef")["input_ids"]


def test_what_does_not_fit_is_left_out_and_counted():
    target = tiny_target(max_position_embeddings=30)
    load = workload(target)
    assert [p.question_id for p in load.fitting(task(("abcd",), ("abcdefghijkl",))).prompts] == ["0"]
    (batch,) = batches(task(("abcd", "ef")), 0.0, 0, 1)
    assert len(list(load.works(batch))) == 1  # the second turn holds the first answer too
    assert load.left_out == {("letters", "1", 0), ("letters", "0", 1)}
    with pytest.raises(ValueError, match="no prompt fits into the target's context of 30 tokens"):
        load.fitting(task(("abcdefghijkl",)))


def test_rows_are_padded_on_the_left(pair):
    load = workload(pair[0])
    (batch,) = batches(task(("abcd",), ("ef",)), 0.0, 0, 2)
    inputs = load.first_turn(batch, 1).inputs
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert inputs["input_ids"][1, :2].tolist() == [load.pad_token_id, load.pad_token_id]


def test_host_cycles_count_what_a_pass_commits():
    counter = AssistedCycles()
    for count in (7, 1, 4, 2):  # the prompt, then three cycles
        counter.put(torch.zeros(1, count))
    stats = counter.stats()
    assert (stats.num_committed_tokens, stats.num_cycles, stats.acceptance_length) == (7, 3, 7 / 3)
    assert stats.histogram == [1, 1, 0, 1]
    assert stats.acceptance_rates == []


def test_the_hosts_passes_are_counted(pair):
    """An assistant that is the target itself is right every time: a pass commits its four tokens and one more."""
    target, draft = pair
    (method,) = parse(["assisted:4"], draft, Assistant(target, {}))
    load = workload(target)
    (work,) = load.works(batches(task(("efgh",)), 0.0, 0, 1)[0])
    assert work.new_tokens == 20
    assert run_call(target, method, work, load.options(work)).stats.histogram == [0, 0, 0, 0, 4]


def test_another_number_of_tokens_is_an_error(pair):
    target, _ = pair
    load = workload(target)
    (work,) = load.works(batches(task(("abcd",)), 0.0, 0, 1)[0])
    with pytest.raises(ValueError, match="generated 3 tokens instead of 20"):
        run_call(target, Method("lookup"), work, load.options(work) | {"max_new_tokens": 3})


# -- rounds -----------------------------------------------------------------------------------------------------------


def test_who_begins_rotates_and_plain_is_in_every_round(pair, monkeypatch):
    target, draft = pair
    seen = []
    real = calls.run_call
    monkeypatch.setattr(
        runner,
        "run_call",
        lambda target, method, work, *rest: (
            seen.append((method.name, work.new_tokens)) or real(target, method, work, *rest)
        ),
    )
    run = Runner(target, workload(target, repetitions=3, warm_up=2), parse(["lookup", "chain:2"], draft, None))
    run.run(run.plan([task(("abcd",))]))
    assert seen[:6] == [("plain", 20), ("lookup", 20), ("chain:2", 20)] * 2  # warm-up
    names = [f"{name} {tokens}" for name, tokens in seen[6:]]
    assert [names[i : i + 4] for i in (0, 4, 8)] == [
        ["plain 1", "plain 20", "lookup 20", "chain:2 20"],
        ["plain 20", "lookup 20", "chain:2 20", "plain 1"],
        ["lookup 20", "chain:2 20", "plain 1", "plain 20"],
    ]
    assert len(names) == 12
    assert [(r["method"], r["repetition"]) for r in run.records] == [
        (m, i) for i in range(3) for m in ("lookup", "chain:2")
    ]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_our_text_is_plain_generates(pair, temperature, batch_size):
    target, draft = pair
    settings = {"temperatures": (temperature,), "batch_sizes": (batch_size,), "repetitions": 1, "seeds": (0, 7)}
    run = Runner(target, workload(target, **settings), parse(["chain:2", "tree:6,3,3"], draft, None))
    run.run(run.plan([task(("abcd", "f"), ("ef",), ("cabac",))]))
    assert run.records
    assert not any(record["differing"] for record in run.records)
    stats = run.tallies["letters", "tree:6,3,3", temperature, batch_size].stats
    assert stats.num_committed_tokens == sum(r["committed_tokens"] for r in run.records if r["method"] != "chain:2")


def test_another_text_is_seen(pair):
    target, _ = pair
    run = Runner(target, workload(target, repetitions=1), [Method("lookup", {"repetition_penalty": 9.0})])
    run.run(run.plan([task(("abcd",), ("cabac",))]))
    assert [record["differing"] for record in run.records] == [["0"], ["1"]]


def test_batches_leave_the_host_out_and_say_so(pair):
    target, draft = pair
    load = workload(target, batch_sizes=(1, 2), repetitions=1)
    run = Runner(target, load, parse(["lookup", "chain:2"], draft, None))
    run.run(run.plan([task(("abcd",), ("ef",))]))
    assert {(r["method"], r["batch_size"]) for r in run.records} == {("lookup", 1), ("chain:2", 1), ("chain:2", 2)}
    assert run.skipped == [
        "lookup at temperature 0, batch size 2: transformers' assisted decoding supports batch size 1 only"
    ]


def test_timed_returns_new_tokens_of_all_rows(pair):
    tokens, seconds = timed(pair[0], left_padded([5, 3]), 0, max_new_tokens=4, do_sample=False)
    assert tokens.shape == (2, 4)
    assert seconds > 0


# -- the command ------------------------------------------------------------------------------------------------------

SHORT = ["--limit", "1", "--max-new-tokens", "8", "--repetitions", "2", "--warm-up", "0", "--device", "cpu"]


def test_the_command_on_the_embedded_pair(tmp_path, capsys):
    arguments = ["--methods", "lookup", "chain:2", "--dtype", "float32", "--output-dir", str(tmp_path)]
    assert main(["benchmark", *SHORT, *arguments]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Ceiling: tau / (verification + drafting)")
    assert re.search(r"^chain:2 +0 +1 +\d\.\d\d +\d\.\d\d +\d\.\d\d +\d\.\d\dx$", out, re.MULTILINE)
    assert "| Method |" in out
    assert '"rows"' not in out, "JSON without --json"
    document = json.loads((tmp_path / "benchmark.json").read_text())
    assert list(document) == ["versions", "hardware", "settings", "ceiling", "rows", "records"]
    assert {row["task"] for row in document["rows"]} == {"math", "code", "roleplay"}
    assert len(document["rows"]) == 3 * 2 * 2
    assert len(document["records"]) == 3 * 2 * 2 * 2
    for row in document["rows"]:
        assert row["speedup"] > 0
        assert row["acceptance_length"] >= 1
        assert row["identical"] or row["method"] == "lookup"
        assert row["num_prompts"] == 1
        assert bool(row["acceptance_rates"]) == row["method"].startswith("chain")
    settings = document["settings"]
    assert (settings["target"], settings["draft"], settings["dtype"]) == ("embedded", "embedded", "float32")
    text = (tmp_path / "benchmark.md").read_text()
    assert "| embedded | EAGLE-3 chain 2 |" in text
    assert text in out
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "speedup.png",
        "accepted_lengths.png",
        "n_alpha.png",
        "phases.png",
    }


def test_an_interruption_keeps_what_was_measured(tmp_path, monkeypatch):
    real, done = Runner.measure, []

    def measure(self, work, methods):
        if done:
            raise KeyboardInterrupt
        done.append(work)
        real(self, work, methods)

    monkeypatch.setattr(Runner, "measure", measure)
    arguments = ["--methods", "chain:2", "--temperatures", "0", "--no-plots", "--output-dir", str(tmp_path)]
    assert main(["benchmark", *SHORT, *arguments]) == 130
    document = json.loads((tmp_path / "benchmark.json").read_text())
    assert document["settings"]["interrupted"] is True
    assert [row["task"] for row in document["rows"]] == ["math"]
    assert "**Interrupted" in (tmp_path / "benchmark.md").read_text()


def test_another_text_in_float32_ends_the_command_with_an_error(tmp_path, monkeypatch, capsys):
    wrong = Method("lookup", {"repetition_penalty": 9.0})
    monkeypatch.setattr(methods, "parse", lambda *args: [wrong])
    arguments = ["--temperatures", "0", "--dtype", "float32", "--no-plots", "--output-dir", str(tmp_path)]
    assert main(["benchmark", *SHORT, *arguments]) == 1
    captured = capsys.readouterr()
    assert "lookup on math at temperature 0 differs from plain generate for 1 of 1 prompts" in captured.err
    document = json.loads((tmp_path / "benchmark.json").read_text())
    assert [row["speedup"] for row in document["rows"]] == [None] * 3
    assert "| differs |" in captured.out
    assert main(["benchmark", *SHORT, *arguments, "--json"]) == 1
    shown, written = json.loads(capsys.readouterr().out), json.loads((tmp_path / "benchmark.json").read_text())
    assert shown == {name: value for name, value in written.items() if name != "records"}


def test_an_untrained_draft_shows_what_speculation_costs(tmp_path):
    arguments = ["--draft", "random", "--methods", "chain:2", "--temperatures", "0", "--ignore-eos", "--no-plots"]
    assert main(["benchmark", *SHORT, *arguments, "--dtype", "float32", "--output-dir", str(tmp_path)]) == 0
    document = json.loads((tmp_path / "benchmark.json").read_text())
    assert all(row["acceptance_length"] < 1.5 and row["identical"] for row in document["rows"])
    assert all(record["new_tokens"] == 8 for record in document["records"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "somewhere"], "No draft is known for the target 'somewhere'"),
        (["--tasks", "nowhere.jsonl"], "`--tasks` 'nowhere.jsonl' is neither a file"),
        (["--methods", "magic"], "`--methods` 'magic' is unknown"),
        (["--methods", "assisted"], "`--assistant`"),
        (["--tasks", "embedded", "math.jsonl"], "contains a task twice"),
        (["--max-new-tokens", "1024"], "no prompt fits into the target's context of 1024 tokens"),
        (["--draft", "nowhere/at/all"], "nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "math.jsonl").write_text('{"prompt": "a"}\n')
    assert main(["benchmark", *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("hf-eagle3 benchmark: ")
    assert message in error
    assert not (tmp_path / "benchmark").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        ["--temperatures", "-1"],
        ["--temperatures", "x"],
        ["--batch-sizes", "0"],
        ["--seeds", "-1"],
        ["--warm-up", "-1"],
    ],
    ids=str,
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(SystemExit, match="2"):
        main(["benchmark", *wrong])


def test_missing_packages_name_the_extra(monkeypatch, capsys):
    monkeypatch.setattr("hf_eagle3.model_loading.find_spec", lambda name: None)
    assert main(["benchmark", "--tasks", "gsm8k"]) == 2
    assert "datasets: pip install 'hf-eagle3[bench]'" in capsys.readouterr().err
    assert main(["benchmark"]) == 2
    assert "matplotlib: pip install 'hf-eagle3[bench]'" in capsys.readouterr().err


def test_titles_of_tables():
    assert methods.title("tree:24,6,6:no-shared-noise") == "EAGLE-3 tree 24/6/6 no-shared-noise"
    assert methods.title("assisted") == "SpS"
    assert methods.title("small:models/tiny,1") == "small model tiny,1"
    assert methods.title("lookahead:3,3,2") == "Lookahead 3/3/2"
    assert prompts.title("cnn_dm") == "CNN/DM"
    assert prompts.title("mine") == "mine"
