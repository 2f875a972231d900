"""What the Space does, without gradio: limits, prompts, caches, runs, visitors."""

import ast
import logging
import pickle
import re
import threading
import time
from dataclasses import replace

import pair as pairs
import pytest
import race
import torch
import yaml
from conversation import Conversation, KeptCache, fitted_cache, prompt_ids, turn_ids
from limits import DRAFTERS, Limits, Request, checked
from models import CACHE, tiny_draft, tiny_target
from pair import Pair, PairSettings
from progress import Progress
from service import Service, figures, tree_figures, tree_of
from sessions import Sessions
from test_corners import longrope_target
from test_options import letters_tokenizer
from test_package import PACKAGE
from transformers import DynamicCache, LlamaConfig

import hf_eagle3
from hf_eagle3 import CycleRecord, embedded
from hf_eagle3.cli import main, space


SPACE = PACKAGE.parent / "spaces" / "eagle3_demo"


@pytest.fixture(scope="module")
def pair():
    target = tiny_target()
    return Pair(target, tiny_draft(target), letters_tokenizer(), "tiny")


@pytest.fixture(scope="module")
def service():
    """With the embedded pair, on the CPU."""
    return Service(PairSettings(device="cpu"), Limits(new_tokens=64, sessions=3, caches=1))


def events_of(pair, request, **options):
    return [event for batch in race.run(pair, [3, 5, 4], request, 60, **options) for event in batch]


PUBLIC = {f"hf_eagle3.{name}" for name in ("embedded", "metrics", "model_loading", "pairs", "token_ids")}
DOCUMENTED = {
    "hf_eagle3.generation.auto.costs": {"forget_costs"},  # in docs/performance.md
    # What differs between versions of transformers is known in one place, for the Space as well.
    "hf_eagle3.compat.calls": {"CACHE"},
    "hf_eagle3.compat.caches": {"DynamicLayer"},
}


@pytest.mark.parametrize("path", sorted(SPACE.glob("*.py")), ids=lambda path: path.name)
def test_the_page_uses_public_names(path):
    """What it is written with is there for other programs too, and stays."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "hf_eagle3":
            names = {alias.name for alias in node.names}
            if node.module == "hf_eagle3":
                assert all(name in hf_eagle3.__all__ or f"hf_eagle3.{name}" in PUBLIC for name in names)
            elif node.module in DOCUMENTED:
                assert names <= DOCUMENTED[node.module]
            else:
                assert node.module in PUBLIC
                assert not any(name.startswith("_") for name in names)


# -- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("max_new_tokens", 0, "Max new tokens is 0; use an integer from 1 to 256."),
        ("max_new_tokens", 257, "Max new tokens is 257; use an integer from 1 to 256."),
        ("max_new_tokens", 2.5, "Max new tokens is 2.5; use an integer from 1 to 256."),
        ("max_new_tokens", True, "Max new tokens is not a number; use an integer from 1 to 256."),
        ("temperature", -0.1, "Temperature is -0.1; use a number from 0 to 2."),
        ("temperature", float("nan"), "Temperature is not a number; use a number from 0 to 2."),
        ("temperature", "hot", "Temperature is not a number; use a number from 0 to 2."),
        ("top_p", 0, "Top-p is 0; use a number from 0.01 to 1."),
        ("top_k", None, "Top-k is not a number; use an integer from 0 to 1000."),
        ("seed", -1, "Seed is -1; use an integer from 0 to 2147483647."),
        ("num_draft_tokens", 129, "Draft tokens is 129; use an integer from 1 to 128."),
        ("tree", "forest", "Tree must be one of auto, static, chain."),
        ("drafter", "oracle", "Drafter must be one of eagle3, suffix, eagle3+suffix."),
        ("colour", 1, "Unknown field: colour."),
    ],
)
def test_what_is_out_of_bounds_is_named(field, value, expected):
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        checked(Limits(), "hello", **{field: value})


def test_prompts_are_bounded_and_never_repeated():
    for prompt in ("", "  \n", None):
        with pytest.raises(ValueError, match="prompt is empty"):
            checked(Limits(), prompt)
    with pytest.raises(ValueError, match="11 characters, the limit is 10") as error:
        checked(Limits(prompt_characters=10), "secretwords")
    assert "secret" not in str(error.value)


def test_a_request_becomes_options_of_generate():
    assert checked(Limits(), "x", temperature=0, top_p=0.5).options == {"max_new_tokens": 96, "do_sample": False}
    warm = checked(Limits(), "x", temperature=0.5, top_k=7.0, max_new_tokens=3.0)
    assert warm.options == {"max_new_tokens": 3, "do_sample": True, "temperature": 0.5, "top_k": 7, "top_p": 1.0}
    assert isinstance(warm.max_new_tokens, int)
    assert Request("x").tree_sizes == {}
    assert Request("x", tree="chain", tree_depth=4).tree_sizes == {"tree_depth": 4}
    assert Request("x", tree="static").tree_sizes == {"num_draft_tokens": 24, "tree_depth": 6, "tree_top_k": 6}


def test_limits_and_settings_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("HF_EAGLE3_MAX_NEW_TOKENS", "12")
    assert Limits.from_environment() == Limits(new_tokens=12)
    monkeypatch.setenv("HF_EAGLE3_MAX_SESSIONS", "many")
    with pytest.raises(ValueError, match="HF_EAGLE3_MAX_SESSIONS is 'many'"):
        Limits.from_environment()
    monkeypatch.setenv("HF_EAGLE3_TARGET", "some/target")
    with pytest.raises(ValueError, match="target is given without a draft"):
        PairSettings.from_environment()
    monkeypatch.setenv("HF_EAGLE3_DRAFT", "some/draft")
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert PairSettings.from_environment() == PairSettings("some/target", "some/draft", device="cuda")


@pytest.mark.parametrize("device", ["nonsense", "cuda:77"])
def test_a_device_that_is_not_there_is_named(device):
    with pytest.raises(ValueError, match=f"'{device}' cannot be used"):
        pairs.load(PairSettings(device=device))


# -- prompts and caches -----------------------------------------------------------------------------------------------


def test_a_turn_keeps_earlier_tokens_as_they_were_written():
    """ "a" + "b" were sampled as two tokens, though the tokenizer would write "ab" as one."""
    tokenizer = embedded.load_pair()[2]
    first = turn_ids(tokenizer, Conversation([], []), "Hi")
    word = tokenizer("there").input_ids
    letters = [i for letter in "there" for i in tokenizer(letter).input_ids]
    assert tokenizer.decode(letters) == tokenizer.decode(word)
    assert letters != word
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "there"}]
    past = Conversation(messages, first + letters)  # cut by its length: no end token yet
    second = turn_ids(tokenizer, past, "Go on")
    assert second[: len(past.ids)] == past.ids
    assert tokenizer.decode(second) == tokenizer.apply_chat_template(
        [*messages, {"role": "user", "content": "Go on"}], add_generation_prompt=True, tokenize=False
    )


def test_arguments_of_the_chat_template(monkeypatch):
    tokenizer = letters_tokenizer()
    tokenizer.chat_template = "{% if quiet %}a{% endif %}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert tokenizer.decode(prompt_ids(tokenizer, "cd", {"quiet": True})) == tokenizer.decode(
        tokenizer("acd").input_ids
    )
    assert prompt_ids(tokenizer, "cd") == tokenizer("cd").input_ids
    monkeypatch.setenv("HF_EAGLE3_CHAT_TEMPLATE_KWARGS", '{"quiet": true}')
    with pytest.raises(ValueError, match="the chat template does not use `quiet`"):
        pairs.load(PairSettings.from_environment())
    monkeypatch.setenv("HF_EAGLE3_CHAT_TEMPLATE_KWARGS", "quiet")
    with pytest.raises(
        ValueError, match="HF_EAGLE3_CHAT_TEMPLATE_KWARGS or --chat-template-kwargs: 'quiet' is not a JSON"
    ):
        PairSettings.from_environment()


def test_a_run_gives_its_pair_s_arguments_to_the_template(service, monkeypatch):
    asked = []
    monkeypatch.setattr("service.prompt_ids", lambda tokenizer, text, kwargs: asked.append(kwargs) or [5, 6, 7])
    monkeypatch.setattr(service, "pair", replace(service.pair, template_kwargs={"quiet": True}))
    list(service.follow(None, False, "Hi", max_new_tokens=2, compare=False))
    assert asked == [{"quiet": True}]


def test_a_chat_without_a_template_is_refused():
    with pytest.raises(ValueError, match="no chat template"):
        turn_ids(letters_tokenizer(), Conversation([], []), "abc")


def filled_cache(length: int, **config) -> DynamicCache:
    cache = DynamicCache(config=LlamaConfig(num_hidden_layers=1))
    cache.update(torch.arange(float(length)).view(1, 1, length, 1), torch.zeros(1, 1, length, 1), 0)
    return cache


@pytest.mark.parametrize(
    ("kept", "ids", "length"),
    [
        ([1, 2, 3], [1, 2, 3, 4, 5], 3),  # all of it
        ([1, 2, 3], [1, 2, 9, 4, 5], 2),  # up to where they part
        ([1, 2, 3], [1, 2, 3], 2),  # one token is left to run
        ([1, 2, 3], [9, 2, 3, 4], 0),  # nothing in common
    ],
)
def test_a_kept_cache_is_cut_where_the_prompt_parts_from_it(kept, ids, length):
    cache = fitted_cache(KeptCache(filled_cache(len(kept)), kept), ids, LlamaConfig(num_hidden_layers=1))
    assert cache.get_seq_length() == length
    if length:
        assert cache.layers[0].keys.flatten().tolist() == list(range(length))


# -- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_race_runs_one_way_after_the_other_and_tells_both(pair, temperature):
    request = Request("x", max_new_tokens=20, temperature=temperature, seed=4)
    events = events_of(pair, request)
    kinds = [type(event).__name__ for event in events]
    order = [kind for place, kind in enumerate(kinds) if place == 0 or kinds[place - 1] != kind]
    assert order == ["PlainToken", "Finished", "CycleRecord", "Finished", "Probabilities"]
    plain, ours = (event for event in events if isinstance(event, race.Finished))
    torch.manual_seed(4)
    expected = pair.target.generate(torch.tensor([[3, 5, 4]]), **request.options)[0, 3:].tolist()
    assert plain.tokens == ours.tokens == expected
    assert [event.token for event in events if isinstance(event, race.PlainToken)] == expected
    assert [token for event in events if isinstance(event, CycleRecord) for token in event.tokens] == expected
    assert ours.phase_seconds["verify_forward"] > 0
    assert plain.phase_seconds == {}
    logits = pair.target(torch.tensor([[3, 5, 4, *expected]])).logits[0, 2:-1].softmax(-1)
    wanted = logits.gather(1, torch.tensor(expected)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(events[-1].values), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_every_drafter_writes_what_plain_generate_does(pair, temperature):
    found = {}
    for name in DRAFTERS:
        progress = Progress()
        request = Request("x", max_new_tokens=20, temperature=temperature, drafter=name, tree="static")
        for event in events_of(pair, request):
            progress.add(event)
        assert progress.identical is True
        found[name] = [(cycle.tree_tokens, cycle.tree_parents) for cycle in progress.speculated]
    assert len({str(trees) for trees in found.values()}) == len(DRAFTERS)  # each has drawn trees of its own
    kinds = {name: type(pair.drafter(name, "chain", tree_depth=3)).__name__ for name in DRAFTERS}
    assert kinds == {"eagle3": "Eagle3DraftModel", "suffix": "SuffixDraft", "eagle3+suffix": "GraftedDraft"}


def test_events_survive_pickling(pair):
    """A Space with ZeroGPU gets them from another process."""
    events = events_of(pair, Request("x", max_new_tokens=6))
    assert pickle.loads(pickle.dumps(events)) == events


def test_autos_choices_come_one_per_cycle(pair):
    events = events_of(pair, Request("x", max_new_tokens=24, compare=False))
    done = next(event for event in events if isinstance(event, race.Finished))
    nodes = [len(e.tree_tokens) - 1 for e in events if isinstance(e, CycleRecord) and e.cycle >= 0]
    assert [choice.nodes for choice in done.choices] == nodes[: len(done.choices)]
    assert len(nodes) - len(done.choices) <= 1  # nothing to choose where one token is left
    chain = events_of(pair, Request("x", max_new_tokens=8, compare=False, tree="chain"))
    assert next(event for event in chain if isinstance(event, race.Finished)).choices == []


@pytest.mark.parametrize(("slow_way", "forgotten"), [(race.PLAIN, 0), (race.SPECULATIVE, 1)])
def test_costs_that_made_a_run_slow_are_measured_anew(pair, monkeypatch, slow_way, forgotten):
    """What "auto" measured in a bad moment would stay wrong for as long as the server runs."""
    calls, generate = [], race._Race.generate

    def slowed(self, way, *arguments, **extra):
        done = generate(self, way, *arguments, **extra)
        return replace(done, seconds=9.0 if way == slow_way else 1.0)

    monkeypatch.setattr(race._Race, "generate", slowed)
    monkeypatch.setattr(race, "forget_costs", lambda: calls.append(1))
    events_of(pair, Request("x", max_new_tokens=8))
    events_of(pair, Request("x", max_new_tokens=8, tree="chain"))  # has no costs to forget
    assert len(calls) == forgotten


def test_a_call_that_does_without_speculation_says_why():
    """RoPE changes within it; tokens are shown all the same, as the target's own."""
    target = longrope_target()
    pair = Pair(target, tiny_draft(target), letters_tokenizer(), "tiny")
    progress = Progress()
    for batch in race.run(pair, [3, 5, 4] * 5, Request("x", max_new_tokens=8), 60):
        for event in batch:
            progress.add(event)
    assert progress.identical is True
    assert [cycle.tokens for cycle in progress.cycles] == [[token] for token in progress.ids]
    assert (progress.speculated, progress.acceptance_length) == ([], None)
    assert "without speculation: RoPE frequencies may change" in progress.notes[0]


def test_probabilities_of_a_target_that_keeps_all_logits(pair):
    class Older(torch.nn.Module):
        """A target whose forward knows no `logits_to_keep`."""

        device = torch.device("cpu")

        def forward(self, ids, use_cache):
            return pair.target(ids, use_cache=use_cache)

    expected = race._probabilities(pair.target, [3, 5], [4, 6, 7])
    assert race._probabilities(Older(), [3, 5], [4, 6, 7]) == pytest.approx(expected, rel=1e-5)


def test_without_a_race_only_the_draft_runs(pair):
    ways = [e.way for e in events_of(pair, Request("x", compare=False, max_new_tokens=8)) if hasattr(e, "way")]
    assert ways == [race.SPECULATIVE]


@pytest.mark.parametrize("wanted", [race.PlainToken, CycleRecord])
def test_closing_a_run_ends_it_and_frees_the_device(pair, wanted, monkeypatch):
    """Closed at the first event of a way, long before its 400 tokens; the next run is right again."""
    steps, check = [], race._Race.check
    monkeypatch.setattr(race._Race, "check", lambda self: (steps.append(1), check(self)))
    events = race.run(pair, [3, 5, 4], Request("x", max_new_tokens=400, compare=wanted is race.PlainToken), 60)
    seen = next(batch for batch in events if any(isinstance(event, wanted) for event in batch))
    events.close()
    assert len(seen) < 200
    assert len(steps) < 200
    assert not race.device_lock.locked()
    assert not [thread for thread in threading.enumerate() if thread.name == "eagle3-race"]
    after = Progress()
    for event in events_of(pair, Request("x", max_new_tokens=12)):
        after.add(event)
    assert after.identical is True


def test_runs_never_overlap(pair):
    """Three visitors at once: a generation is through before the next begins."""
    running, most = set(), []
    generate = race._Race.generate

    def watched(self, way, streamer, **extra):
        running.add(id(self))
        most.append(len(running))
        try:
            return generate(self, way, streamer, **extra)
        finally:
            running.discard(id(self))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(race._Race, "generate", watched)
        threads = [
            threading.Thread(target=events_of, args=(pair, Request("x", max_new_tokens=10, seed=seed)))
            for seed in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most == [1] * 6


def test_the_time_limit_ends_a_run(pair):
    began = time.monotonic()
    events = [e for batch in race.run(pair, [3, 5], Request("x", max_new_tokens=500), 0.05) for e in batch]
    assert time.monotonic() - began < 30
    assert isinstance(events[-1], race.Failed)
    assert "time limit" in events[-1].message
    assert not [event for event in events if isinstance(event, CycleRecord)]


def test_broken_models_are_told_without_text_in_the_log(pair, monkeypatch, caplog):
    def broken(*args, **kwargs):
        raise RuntimeError("my secret prompt")

    monkeypatch.setattr(pair.target, "generate", broken)
    with caplog.at_level(logging.DEBUG):
        events = events_of(pair, Request("x"))
    assert [type(event) for event in events] == [race.Failed]
    assert "RuntimeError" in events[0].message
    assert "RuntimeError in broken" in caplog.text
    assert "secret" not in caplog.text + events[0].message


def test_sizes_that_no_tree_can_have_are_told(service):
    with pytest.raises(ValueError, match="drafts only 3 nodes"):
        next(service.follow("v", False, "Hi", tree="static", num_draft_tokens=24, tree_depth=3, tree_top_k=1))


# -- visitors ---------------------------------------------------------------------------------------------------------


def test_sessions_are_bounded_and_apart():
    sessions = Sessions(max_sessions=2, max_caches=1)
    a, b = sessions.use("a"), sessions.use("b")
    a.caches["plain"] = b.caches["plain"] = object()
    assert sessions.use("a") is a
    assert a.caches
    assert not b.caches  # one visitor keeps caches: the latest
    sessions.use("c")
    assert len(sessions) == 2
    assert sessions.use("b") is not b  # the longest unused went
    assert sessions.use(None) is not sessions.use(None)
    stop = sessions.use("c").stop
    sessions.forget("c")
    assert stop.is_set()


def last_view(service, *arguments, **values):
    *_, view = service.follow(*arguments, **values)
    return view


def test_chat_turns_reuse_their_caches_and_write_the_same(service, monkeypatch):
    """The second turn runs only its own tokens through the target, and writes what it does without caches."""
    turns = ["Pretend you are a pirate.", "Go on."]
    widths = []
    prefill = service.pair.target._prefill

    def watched(ids, config, kwargs, *rest, **more):
        cache = kwargs.get(CACHE)
        widths.append(ids.shape[1] - cache.get_seq_length())
        return prefill(ids, config, kwargs, *rest, **more)

    monkeypatch.setattr(service.pair.target, "_prefill", watched)
    kept = [figures(last_view(service, "k", True, turn, max_new_tokens=10), service.pair.tokenizer) for turn in turns]
    first_widths, second_widths = widths[:2], widths[2:]
    assert all(figure["identical"] for figure in kept)
    conversation = service.sessions.use("k").conversation
    assert [turn["role"] for turn in conversation.messages] == ["user", "assistant"] * 2
    assert first_widths[0] == first_widths[1]
    added = len(conversation.ids) - len(kept[1]["token_ids"]) - first_widths[0] - len(kept[0]["token_ids"])
    assert second_widths == [added + 1] * 2  # and the last token of the turn before
    assert kept[0]["notes"][0].startswith("Auto chose")
    cached = first_widths[0] + len(kept[0]["token_ids"]) - 1
    assert kept[1]["notes"][0].startswith(f"{cached} tokens of the prompt were reused from the cache")
    fresh = []
    for turn in turns:
        service.sessions.use("n").caches = {}
        fresh.append(figures(last_view(service, "n", True, turn, max_new_tokens=10), service.pair.tokenizer))
    assert [figure["token_ids"] for figure in fresh] == [figure["token_ids"] for figure in kept]
    service.new_chat("k")
    assert service.sessions.use("k").conversation.ids == []


def test_a_stopped_run_keeps_its_text_and_another_visitor_is_not_stopped(service):
    service.sessions.use("x")
    for view in service.follow("w", True, "Tell me a story.", max_new_tokens=64, compare=False):
        if view.is_running and view.progress.ids:
            service.stop("w")
            service.stop("x")
    assert view.progress.is_stopped
    assert not view.is_running
    assert 0 < len(view.progress.ids) < 64
    assert view.ours.text
    stopped = service.sessions.use("w").conversation
    assert stopped.messages[-1]["content"] == view.ours.text
    assert last_view(service, "x", False, "Hi", max_new_tokens=4).progress.is_stopped is False
    again = last_view(service, "w", True, "Go on.", max_new_tokens=8)  # the stopped answer is its past
    assert again.progress.identical is True


def test_what_does_not_fit_the_context_is_refused(service):
    with pytest.raises(ValueError, match=r"prompt has \d+ tokens; with 64 new ones the target's context allows 960"):
        next(service.follow("v", False, "7 " * 1500, max_new_tokens=64))


def test_another_pair_is_loaded_by_name_or_from_those_that_ship(service, monkeypatch):
    loaded, pair, settings = [], service.pair, service.settings
    monkeypatch.setattr(pairs, "load", lambda settings: loaded.append(settings) or pair)
    monkeypatch.setattr(pairs, "warm_up", lambda pair: None)
    service.sessions.use("v")
    try:
        service.load("", "", "smollm2")
        service.load("some/target", "some/draft", "embedded")
    finally:
        service.settings = settings
    assert loaded == [
        PairSettings(pair="smollm2", device="cpu"),
        PairSettings("some/target", "some/draft", device="cpu"),
    ]
    assert len(service.sessions) == 0
    with pytest.raises(ValueError, match="choose from embedded, smollm2"):
        service.load("", "", "other")


def test_trees_are_of_the_visitors_own_run(service):
    last_view(service, "t", False, "Hi", max_new_tokens=8, compare=False)
    run = service.last_run("t")
    assert "Cycle 1 of" in tree_of(run, 1, service.pair.tokenizer)
    for number in (0, 99, 1.5, "1"):
        with pytest.raises(ValueError, match="Cycle must be an integer from 1 to"):
            tree_of(run, number, service.pair.tokenizer)
    with pytest.raises(ValueError, match="no draft tree yet"):
        tree_figures(service.last_run("somebody else"), 1)


# -- around it --------------------------------------------------------------------------------------------------------


def test_the_front_matter_names_what_a_space_needs():
    text = (SPACE / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---")[1])
    assert front["sdk"] == "gradio"
    assert re.fullmatch(r"6\.\d+\.\d+", front["sdk_version"])
    assert (SPACE / front["app_file"]).is_file()
    assert front["license"] == "apache-2.0"
    assert len(front["short_description"]) <= 60
    for name in re.findall(r"HF_EAGLE3_MAX_(\w+)`", text):
        assert hasattr(Limits(), name.lower())
    assert (SPACE / "screenshot.png").stat().st_size < 300_000
    assert {path.name for path in SPACE.glob("*.py")} <= set(re.findall(r"\w+\.py", text.split("## Files")[1]))


def test_the_wheel_has_every_package():
    text = (PACKAGE.parent / "pyproject.toml").read_text()
    listed = set(re.findall(r'"(hf_eagle3[.\w]*)"', re.search(r"^packages = \[(.*?)\]", text, re.M | re.S)[1]))
    found = {".".join(path.parent.relative_to(PACKAGE.parent).parts) for path in PACKAGE.rglob("__init__.py")}
    assert listed == found | {"hf_eagle3.eagle3_demo"}


def test_the_command_names_the_extra_and_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(space, "needs_extra", lambda *_: None)
    monkeypatch.setattr(space, "FOLDERS", (SPACE / "nowhere", SPACE / "elsewhere"))
    assert main(["space"]) == 2
    assert "reinstall hf-eagle3" in capsys.readouterr().err
    for port in ("65536", "0", "http"):
        with pytest.raises(SystemExit):
            main(["space", "--port", port])
        assert f"'{port}' is not a port; use 1 to 65535" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr("hf_eagle3.model_loading.find_spec", lambda name: None)
    assert main(["space"]) == 2
    assert "pip install 'hf-eagle3[space]'" in capsys.readouterr().err
