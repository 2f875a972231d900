"""What the chat template is given: tools, reasoning and further arguments, in every command; and targets without one.

The template of these tests writes each tool as a system line, and `be` in front where thinking is switched off:

    be <system> look <end> <user> why <end> <assistant> look so <end> <system> yes <end> <assistant>
"""

import json

import pytest
import torch
from models import tiny_draft, tiny_target
from test_cli_training import train
from test_data import CHAT, WORDS, word_tokenizer, words
from test_endpoint import endpoint, server  # noqa: F401
from test_regenerate import answers, in_process, target

import hf_eagle3
from hf_eagle3.benchmarks.prompts import Prompt, Task
from hf_eagle3.benchmarks.work import BenchmarkSettings, Workload
from hf_eagle3.cli import main
from hf_eagle3.cli.inputs import encode
from hf_eagle3.data.conversations import checked_template_kwargs, tokenise
from hf_eagle3.data.features import CachedTarget, FeatureWriter, template_hash
from hf_eagle3.data.messages import for_endpoint, messages_of, questions
from hf_eagle3.data.regenerate import regenerate
from hf_eagle3.hub.export import UNKNOWN_TARGET, speculators_config


TEMPLATE = (
    "{% if enable_thinking is defined and not enable_thinking %}{{ 'be ' }}{% endif %}"
    "{% for t in tools or [] %}{{ '<system> ' + t['function']['name'] + ' <end> ' }}{% endfor %}"
    "{% for m in messages %}{{ '<' + ('system' if m['role'] == 'tool' else m['role']) + '> ' }}"
    "{% if m['NAME'] %}{{ '<think> ' + m['NAME'] + ' ' }}{% endif %}"
    "{% if m['content'] %}{{ m['content'] + ' ' }}{% endif %}"
    "{% for c in m['tool_calls'] or [] %}"
    "{{ c['function']['name'] + ' ' + c['function']['arguments']['how'] + ' ' }}"
    "{% endfor %}{{ '<end> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)
OFF = {"enable_thinking": False}
ASK = {"role": "user", "content": "why"}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "kind", "arguments": {"how": "so"}}}],
}
FOUND = {"role": "tool", "content": "yes"}
SAY = {"role": "assistant", "content": "no"}
TOOLS = [{"type": "function", "function": {"name": "kind", "parameters": {"how": {"type": "string"}}}}]
TOOL_CHAT = {"messages": [ASK, CALL, FOUND, SAY], "tools": TOOLS}
WRITTEN = "<system> kind <end> <user> why <end> <assistant> kind so <end> <system> yes <end> <assistant> no <end>"


def tooled(name: str = "reasoning_content"):
    return word_tokenizer(TEMPLATE.replace("NAME", name))


# Rows


def test_tools_and_their_turns_reach_the_template():
    out = tokenise(TOOL_CHAT, tooled())
    assert words(out.input_ids) == WRITTEN
    assert [WORDS[i] for i, m in zip(out.input_ids, out.loss_mask, strict=True) if m] == [
        "kind",
        "so",
        "<end>",
        "no",
        "<end>",
    ]


@pytest.mark.parametrize(
    "tools",
    [
        json.dumps(TOOLS),
        [json.dumps(TOOLS[0])],
        TOOLS[0],
        [{"type": "function", "function": TOOLS[0]["function"] | {"strict": None}, "name": None}],
    ],
    ids=["JSON", "a list of JSON", "one", "filled up by a table"],
)
def test_tools_of_every_form(tools):
    call = {"name": "kind", "arguments": json.dumps({"how": "so"}), "strict": None}
    messages = [ASK, CALL | {"tool_calls": [{"function": call, "id": None}], "name": None}, FOUND, SAY]
    assert words(tokenise({"messages": messages, "tools": tools}, tooled()).input_ids) == WRITTEN


def test_keys_that_a_table_fills_in_do_not_reach_the_template():
    strict = "{% for t in tools %}{% if 'strict' in t %}{{ raise_exception('strict') }}{% endif %}{% endfor %}"
    row = TOOL_CHAT | {"tools": [TOOLS[0] | {"strict": None}]}
    assert tokenise(row, word_tokenizer(strict + TEMPLATE)).input_ids


@pytest.mark.parametrize("tools", [["kind", "be"], "kind", [7], 7], ids=str)
def test_tools_that_are_names_are_ignored_and_reported_once(tools, caplog):
    hf_eagle3.data.messages.warn_once.cache_clear()
    for _ in range(3):
        assert words(tokenise({"messages": CHAT[:2], "tools": tools}, tooled()).input_ids[:3]) == "<user> why so"
    assert caplog.text.count("`tools` contains no JSON schemas") == 1


def test_further_arguments_and_those_of_the_row():
    plain = tokenise({"messages": CHAT[:2]}, tooled()).input_ids
    assert words(tokenise({"messages": CHAT[:2]}, tooled(), template_kwargs=OFF).input_ids) == "be " + words(plain)
    own = {"messages": CHAT[:2], "chat_template_kwargs": {"enable_thinking": True, "other": None}}
    assert tokenise(own, tooled(), template_kwargs=OFF).input_ids == plain
    with pytest.raises(ValueError, match="`chat_template_kwargs` is 7"):
        tokenise(own | {"chat_template_kwargs": 7}, tooled())


NAMES = ("reasoning_content", "reasoning", "thinking")


@pytest.mark.parametrize("read", NAMES)
@pytest.mark.parametrize("given", NAMES)
def test_reasoning_is_kept_whatever_it_is_called(given, read):
    turns = [{"from": "human", "value": "why"}, {"from": "gpt", "value": "no", given: "so be", "weight": 1}]
    messages = [ASK, SAY | {"reasoning_content": "so be"}]
    assert messages_of({"conversations": turns}) == messages
    assert messages_of({"messages": [ASK, SAY | {given: "so be"}]}) == messages
    ids = tokenise({"conversations": turns}, tooled(read)).input_ids
    assert words(ids) == "<user> why <end> <assistant> <think> so be no <end>"


def test_a_flag_called_thinking_is_no_reasoning():
    assert messages_of({"messages": [ASK, SAY | {"thinking": True}]}) == [ASK, SAY | {"thinking": True}]


@pytest.mark.parametrize(
    ("messages", "asked"),
    [
        ([ASK, SAY, ASK, SAY], [[ASK], [ASK]]),
        ([ASK, ASK], [[ASK], [ASK]]),
        ([ASK, CALL, FOUND, SAY], [[ASK, CALL, FOUND]]),
        ([ASK, CALL, FOUND, FOUND], [[ASK, CALL, FOUND, FOUND]]),
        ([ASK, CALL, FOUND, CALL, FOUND, SAY, ASK], [[ASK, CALL, FOUND, CALL, FOUND], [ASK]]),
        ([ASK, CALL], [[ASK]]),  # nothing follows the call: it is the target's to make
        ([ASK, SAY | {"content": "{}"}, FOUND, SAY], [[ASK, SAY | {"content": "{}"}, FOUND]]),  # ShareGPT
        ([FOUND, ASK], [[ASK]]),
        ([{"role": "user", "content": ""}], []),
    ],
)
def test_which_turns_are_asked(messages, asked):
    assert questions(messages) == ([], asked)
    before = {"role": "developer", "content": "be"}
    assert questions([before, *messages]) == ([before], asked)


# Regeneration


def test_tools_and_arguments_in_regeneration(tmp_path):
    path, answer = tmp_path / "out.jsonl", in_process()
    answer.tokenizer = tooled()
    asked = []
    answer._generate = lambda prompts, temperature, max_new_tokens: asked.extend(prompts) or [[8, 4]] * len(prompts)
    rows = [TOOL_CHAT, {"messages": CHAT[:1]}]
    assert regenerate(rows, path, answer, batch_size=2, template_kwargs=OFF) == 2
    assert [words(ids) for ids in asked] == [
        "be <system> kind <end> <user> why <end> <assistant> kind so <end> <system> yes <end> <assistant>",
        "be <user> why so <end> <assistant>",
    ]
    first, second = sorted(answers(path), key=lambda row: row["id"])
    assert first["messages"] == [ASK, CALL, FOUND, {"role": "assistant", "content": "yes"}]
    assert first["tools"] == TOOLS
    assert first["chat_template_kwargs"] == second["chat_template_kwargs"] == OFF
    assert "tools" not in second
    assert second["input_ids"] == [*asked[1], 8, 4]
    # Training reads the same prompt from the line, without being told
    assert tokenise(first, answer.tokenizer).input_ids[: len(asked[0])] == asked[0]


def test_tools_and_arguments_go_to_an_endpoint(tmp_path, server):  # noqa: F811
    seen = server.bodies
    path = tmp_path / "out.jsonl"
    regenerate([TOOL_CHAT], path, endpoint(server), batch_size=1, template_kwargs=OFF)
    assert seen[0]["tools"] == TOOLS
    assert seen[0]["chat_template_kwargs"] == OFF
    assert seen[0]["messages"] == for_endpoint([ASK, CALL, FOUND])
    assert seen[0]["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"how": "so"}'
    regenerate([{"prompt": "why"}], path.with_name("other"), endpoint(server), batch_size=1)
    assert not {"tools", "chat_template_kwargs"} & set(seen[-1])


# Measuring and generating


def test_a_benchmark_gives_them_too(caplog):
    load = Workload(tiny_target(), tooled(), BenchmarkSettings(max_new_tokens=4, chat_template_kwargs=OFF))
    system = {"role": "system", "content": "be kind"}
    prompts = (
        Prompt("1", ("why",)),
        Prompt("2", ((system, ASK),)),
        Prompt("3", ((ASK, CALL, FOUND),), {"tools": TOOLS}),
    )
    assert [words(load._ids(p, list(p.turns[0]) if p.question_id > "1" else [ASK])) for p in prompts] == [
        "be <user> why <end> <assistant>",
        "be <system> be kind <end> <user> why <end> <assistant>",
        "be <system> kind <end> <user> why <end> <assistant> kind so <end> <system> yes <end> <assistant>",
    ]
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE
    load = Workload(tiny_target(), word_tokenizer(strict), BenchmarkSettings(max_new_tokens=4))
    assert load.fitting(Task("mine", prompts[:2])).prompts == prompts[:1]
    assert load.refused == {("mine", "2", 0)}
    assert "prompt 2, turn 1 is skipped: The chat template rejects it: TemplateError: no system" in caplog.text
    with pytest.raises(ValueError, match="rejects every prompt"):
        load.fitting(Task("mine", prompts[1:2]))


def test_a_prompt_is_encoded_with_them():
    ids = encode(tooled(), "why", False, torch.device("cpu"), OFF)["input_ids"][0].tolist()
    assert words(ids) == "be <user> why <end> <assistant>"


@pytest.mark.parametrize(
    "command", [["generate", "--draft", "d/d", "--prompt", "why"], ["benchmark", "--draft", "d/d"]]
)
def test_they_have_no_effect_on_raw_prompts(command, capsys):
    assert main([*command, "--target", "t/t", "--raw", "--chat-template-kwargs", json.dumps(OFF)]) == 2
    assert "`--chat-template-kwargs` has no effect with `--raw`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "template", "message"),
    [
        ({"enable_thinkng": False}, TEMPLATE, "the chat template does not use `enable_thinkng`"),
        ({"tools": []}, TEMPLATE, "`tools` is set internally"),
        (OFF, None, "the tokenizer has no chat template; remove it"),
    ],
    ids=["a misspelt name", "ours", "no template"],
)
def test_arguments_without_effect_are_refused(given, template, message):
    with pytest.raises(ValueError, match=message):
        checked_template_kwargs(given, word_tokenizer(template))


def test_features_are_of_one_set_of_arguments(tmp_path):
    assert template_hash(tooled()) == template_hash(tooled(), {}) != template_hash(tooled(), OFF)
    model = tiny_target()
    config = hf_eagle3.Eagle3Config.from_target(model)
    FeatureWriter(tmp_path, model, config, tooled(), template_kwargs=OFF)
    CachedTarget(tmp_path, model, tooled(), OFF)
    with pytest.raises(ValueError, match="or other `chat_template_kwargs`"):
        CachedTarget(tmp_path, model, tooled())


# The whole way


PROMPTS = [{"prompt": "why so"}, {"prompt": "so be kind"}, {"prompt": "why be kind"}] * 4


def pair_folder(folder, tokenizer):
    """A target with `tokenizer`, and prompts."""
    model = target()
    model.save_pretrained(folder / "target")
    tokenizer.save_pretrained(folder / "target")
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, PROMPTS)))
    return folder


def recipe(folder, *extra: str):
    """The README's commands, with one prompts file; draft in `draft/`."""
    model, prompts, answered = (str(folder / name) for name in ("target", "prompts.jsonl", "answers.jsonl"))
    device = ["--device", "cpu", *extra]
    regenerated = ["--data", prompts, "--output", answered, "--target", model, "--max-new-tokens", "12"]
    assert main(["prepare", "regenerate", *regenerated, *device]) == 0
    assert main([*train(folder, folder / "draft", "--train-data", answered), *extra]) == 0
    pair = ["--target", model, "--draft", str(folder / "draft")]
    measure = ["--repetitions", "1", "--warm-up", "0", "--methods", "chain:2", "--temperatures", "0", "--no-plots"]
    out = ["--max-new-tokens", "6", "--output-dir", str(folder / "benchmark"), "--limit", "2"]
    assert main(["benchmark", *pair, "--tasks", prompts, *measure, *out, *device]) == 0
    assert main(["generate", *pair, "--prompt", "why so", "--max-new-tokens", "6", "--json", *device]) == 0


def test_the_recipe_with_arguments_of_the_template(tmp_path, capsys):
    folder = pair_folder(tmp_path, tooled())
    recipe(folder, "--chat-template-kwargs", json.dumps(OFF))
    (row, *_) = answers(folder / "answers.jsonl")
    assert WORDS[row["input_ids"][0]] == "be"
    document = json.loads((folder / "benchmark" / "benchmark.json").read_text())
    assert document["settings"]["chat_template_kwargs"] == OFF
    assert """--chat-template-kwargs '{"enable_thinking": false}'""" in document["settings"]["command"]
    draft = hf_eagle3.Eagle3DraftModel.from_pretrained(folder / "draft")
    assert draft.config.chat_template_kwargs == OFF
    measured = ["--benchmark", str(folder / "benchmark" / "benchmark.json")]
    push = ["push", str(folder / "draft"), "user/draft", "--dry-run", str(folder / "out"), *measured]
    assert main([*push, "--target", str(folder / "target"), "--target-name", "org/target"]) == 0
    card = (folder / "out" / "README.md").read_text()
    assert """| chat template | trained with `{"enable_thinking": false}` |""" in card
    assert """chat template kwargs {"enable_thinking": false}""" in card
    written = speculators_config(draft.config, UNKNOWN_TARGET.facts)
    assert "chat_template_kwargs" not in written["transformer_layer_config"]
    assert hf_eagle3.Eagle3Config.from_dict(written).chat_template_kwargs == OFF


def test_a_draft_without_arguments_has_none_in_its_files(tmp_path):
    tiny_draft(tiny_target()).save_pretrained(tmp_path)
    assert "chat_template_kwargs" not in json.loads((tmp_path / "config.json").read_text())


def test_a_config_file_with_arguments_of_the_template(tmp_path, capsys):
    folder = pair_folder(tmp_path, tooled())
    (folder / "chats.jsonl").write_text("\n".join([json.dumps({"messages": CHAT})] * 8))
    (folder / "train.yaml").write_text("chat_template_kwargs: {enable_thinking: false}\n")
    arguments = train(folder, folder / "draft", "--train-data", str(folder / "chats.jsonl"))
    assert main([*arguments, "--config", str(folder / "train.yaml")]) == 0
    assert hf_eagle3.Eagle3Config.from_pretrained(folder / "draft").chat_template_kwargs == OFF
    for wrong, message in (("7", "`chat_template_kwargs` is"), ('{"thnk": 1}', "does not use `thnk`")):
        assert main([*arguments, "--chat-template-kwargs", wrong]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["generate", "--target", "x", "--draft", "y", "--prompt", "z", "--chat-template-kwargs", "{"])
    assert "'{' is not a JSON object" in capsys.readouterr().err


def test_the_recipe_without_a_chat_template(tmp_path, capsys, caplog):
    """One prompts file; a prompt is continued whole, and its answer is what is learnt."""
    folder = pair_folder(tmp_path, word_tokenizer(None))
    with (folder / "prompts.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"turns": ["why", "so"]}))
    recipe(folder)
    rows = {row["id"]: row for row in answers(folder / "answers.jsonl")}
    assert len(rows) == len(PROMPTS)
    assert words(rows[1]["input_ids"][:3]) == "so be kind"
    assert rows[1]["loss_mask"][:4] == [0, 0, 0, 1]
    assert rows[1]["text"].startswith("so be kind")
    assert "Row 13: It is a multi-turn conversation, but the tokenizer has no chat template" in caplog.text
    # The very file that was regenerated may be trained on, too: as text
    assert main(train(folder, folder / "again", "--train-data", str(folder / "prompts.jsonl"))) == 0


def test_a_prompt_and_its_completion_are_text_where_there_is_no_template():
    out = tokenise({"prompt": "why so", "completion": " yes no"}, word_tokenizer(None))
    assert (words(out.input_ids), out.loss_mask) == ("why so yes no", [0, 0, 1, 1])
    assert tokenise({"prompt": "why so"}, word_tokenizer(None)).loss_mask == [1, 1]
    assert tokenise({"prompt": "why so"}, word_tokenizer()).loss_mask == [0] * 4


def test_a_text_of_a_base_model_is_cut_and_its_prompt_is_not(tmp_path):
    answer = in_process(prompt_tokens=2)
    answer.tokenizer = word_tokenizer(None)
    regenerate([{"text": "why so be kind"}, {"prompt": "why so be kind"}], tmp_path / "out", answer, batch_size=2)
    assert [row["loss_mask"].index(1) for row in answers(tmp_path / "out")] == [2, 4]
