"""Faults found by public bug reports and by hostile testing, each with what plain `generate` does there.

Every test failed before its fault was mended."""

import threading

import pytest
import torch
from architectures import tiny_model
from models import CACHE, CHAIN_TARGETS, VOCAB, left_padded, tiny_draft, tiny_target
from test_generate import assert_same
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

import hf_eagle3
from hf_eagle3.compat.versions import is_at_least
from hf_eagle3.generation.auto.costs import CostCurve
from hf_eagle3.generation.tree.draft_tree import chain, with_padding
from hf_eagle3.generation.verify import slots


RAGGED = left_padded([13, 4, 9, 7])
ENDING = {"max_new_tokens": 25, "do_sample": False, "eos_token_id": [5, 9, 14]}


class SumOfNewest(StoppingCriteria):
    """Looks at all sequences, those that ended as well."""

    def __call__(self, input_ids, scores, **kwargs):
        return (input_ids[:, -1].sum() % 7 == 3).expand(len(input_ids))


class Watching(LogitsProcessor):
    """Keeps what it is shown."""

    def __init__(self):
        self.shown = []

    def __call__(self, input_ids, scores):
        self.shown.append(input_ids.clone())
        return scores


def with_criterion() -> dict:
    return {"stopping_criteria": StoppingCriteriaList([SumOfNewest()])}


# -- sequences that ended before others -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["llama", *CHAIN_TARGETS])
def test_criteria_are_shown_padding_behind_a_sequences_end(name, seed):
    target = tiny_target(name, seed=seed)
    draft, texts = tiny_draft(target), []
    for assistant in ({}, {"assistant_model": draft}):
        texts.append(
            target.generate(**left_padded([13, 4, 9, 7], seed=seed), **ENDING, **with_criterion(), **assistant)
        )
    assert texts[0].tolist() == texts[1].tolist()


def test_processors_are_shown_what_plain_generate_shows():
    target = tiny_target()
    shown = []
    for assistant in ({}, {"assistant_model": tiny_draft(target)}):
        watching = Watching()
        target.generate(**RAGGED, **ENDING, logits_processor=LogitsProcessorList([watching]), **assistant)
        shown.append([ids.tolist() for ids in watching.shown])
    assert shown[0] == shown[1]


def test_drafting_goes_on_behind_the_first_end():
    """With a criterion of the user's own: all others wait for padding, but not one step at a time."""
    target = tiny_target()
    draft = tiny_draft(target)
    text = target.generate(**RAGGED, max_new_tokens=60, do_sample=False)[:, 13:].tolist()
    # An end that one sequence meets soon, and another late or never.
    ends = {end: [row.index(end) + 1 if end in row else 60 for row in text] for end in range(VOCAB)}
    end, lengths = max(ends.items(), key=lambda item: max(item[1]) - min(item[1]))
    options = {"max_new_tokens": 60, "do_sample": False, "eos_token_id": [end]}
    with hf_eagle3.record() as stats:
        target.generate(**RAGGED, **options, stopping_criteria=StoppingCriteriaList([Never()]), assistant_model=draft)
    assert stats.generated_lengths == lengths
    last = lengths.index(max(lengths))
    assert max(lengths) - min(lengths) > 20
    assert stats.num_iterations < max(lengths) - 5
    assert sum(stats.accepted_tokens[last][-10:]) > 0


class Never(StoppingCriteria):
    """Of no known kind, and ends nothing."""

    def __call__(self, input_ids, scores, **kwargs):
        return torch.zeros(len(input_ids), dtype=torch.bool)


@pytest.mark.parametrize("static", [{}, {"cache_implementation": "static"}], ids=["dynamic", "static"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral"])
def test_a_returned_cache_is_plain_generates_behind_an_early_end(name, static):
    for seed in range(4):
        target = tiny_target(name, seed=seed)
        inputs, draft = left_padded([13, 4, 9, 7], seed=seed), tiny_draft(target)
        plain = target.generate(**inputs, **ENDING, **static, return_dict_in_generate=True)
        ours = target.generate(**inputs, **ENDING, **static, return_dict_in_generate=True, assistant_model=draft)
        for mine, theirs in zip(ours[CACHE].layers, plain[CACHE].layers, strict=True):
            for part in ("keys", "values"):
                own, plains = getattr(mine, part), getattr(theirs, part)
                # transformers 5.8 gives assistants a cache without windows.
                torch.testing.assert_close(own[:, :, -plains.shape[2] :], plains, rtol=1e-3, atol=1e-3)


def test_padding_is_cached_behind_a_window_that_others_have_left_long_ago(monkeypatch):
    monkeypatch.setattr("hf_eagle3.generation.verify.slots.GROWTH", 2)
    monkeypatch.setitem(ENDING, "max_new_tokens", 90)
    test_a_returned_cache_is_plain_generates_behind_an_early_end("mistral", {})
    test_a_returned_cache_is_plain_generates_behind_an_early_end("gemma3", {})


def test_padding_is_cached_in_parts(monkeypatch):
    monkeypatch.setattr("hf_eagle3.generation.verify.tree_pass.PADDING_CHUNK", 3)
    test_a_returned_cache_is_plain_generates_behind_an_early_end("gemma3", {})


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_second_turn_with_an_all_ones_mask(name):
    for seed in range(5):
        target = tiny_target(name, seed=seed)
        draft, inputs, texts = tiny_draft(target), left_padded([13, 4, 9, 7], seed=seed), []
        for assistant in ({}, {"assistant_model": draft}):
            cache = DynamicCache(config=target.config)
            text = target.generate(**inputs, **ENDING, **{CACHE: cache}, **assistant)
            text = torch.cat((text, torch.full((4, 3), 7)), dim=1)
            options = {"attention_mask": torch.ones_like(text), "max_new_tokens": 10, "do_sample": False, CACHE: cache}
            texts.append(target.generate(text, **options, **assistant).tolist())
        assert texts[0] == texts[1]


class Events(hf_eagle3.CycleStreamer):
    def __init__(self):
        self.records = []

    def on_cycle(self, record):
        self.records.append(record)


@pytest.mark.parametrize("name", ["llama", *CHAIN_TARGETS])
@pytest.mark.parametrize("extra", [dict, with_criterion], ids=["eos", "eos and a criterion"])
def test_statistics_and_events_count_each_sequence_to_its_end(name, extra):
    for seed in range(4):
        target = tiny_target(name, seed=seed)
        inputs, events = left_padded([13, 4, 9, 7], seed=seed), Events()
        plain = target.generate(**inputs, **ENDING, **extra())
        with hf_eagle3.record() as stats:
            target.generate(**inputs, **ENDING, **extra(), assistant_model=tiny_draft(target), streamer=events)
        lengths = []
        for text in plain[:, 13:].tolist():
            ends = [place + 1 for place, token in enumerate(text) if token in ENDING["eos_token_id"]]
            lengths.append(ends[0] if ends else len(text))
        assert stats.generated_lengths == lengths
        assert stats.num_committed_tokens == sum(lengths) - 4  # the prompt's pass gave the first
        for row in range(4):
            mine = [record for record in events.records if record.row == row]
            assert [record.cycle for record in mine] == list(range(-1, len(stats.accepted_tokens[row])))
            assert sum(len(record.tokens) for record in mine) == lengths[row]
            assert [record.num_accepted_tokens for record in mine[1:]] == stats.accepted_tokens[row]


def test_a_tree_of_padding_is_a_chain():
    """Two drafted levels, the second sequence has ended."""
    tree = chain(torch.tensor([4, 5]), torch.tensor([[6, 7], [8, 9]]), torch.zeros(2, 2))
    out = with_padding(tree, [1], 0)
    assert out.tokens.tolist() == [[4, 6, 7], [5, 0, 0]]
    assert out.parents.tolist() == [[-1, 0, 1], [-1, 0, 1]]
    assert out.ancestors[1].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert tree.tokens.tolist() == [[4, 6, 7], [5, 8, 9]]


# -- outputs ----------------------------------------------------------------------------------------------------------


class AddsInPlace(LogitsProcessor):
    def __call__(self, input_ids, scores):
        scores[:, 3] += 0.5
        return scores


@pytest.mark.parametrize("lengths", [[9], [13, 4, 9]], ids=str)
def test_logits_are_what_processors_left_of_them(lengths):
    target = tiny_target()
    options = {"max_new_tokens": 12, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    outs = [
        target.generate(
            **left_padded(lengths), **options, logits_processor=LogitsProcessorList([AddsInPlace()]), **assistant
        )
        for assistant in ({}, {"assistant_model": tiny_draft(target)})
    ]
    for mine, theirs in zip(outs[1].logits, outs[0].logits, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma3n_text"])
@pytest.mark.parametrize("what", ["output_attentions", "output_hidden_states"])
def test_attentions_and_hidden_states_have_plain_generates_shapes(name, what):
    target = tiny_model(name) if name == "gemma3n_text" else tiny_target(name, attn_implementation="sdpa")
    if name == "gemma3n_text" and what == "output_attentions":
        pytest.skip("refused: layers with windows")
    draft = tiny_draft(target, tokens=torch.arange(3, 9))
    options = {"max_new_tokens": 8, "do_sample": False, "return_dict_in_generate": True, what: True}
    plain = target.generate(**left_padded([9, 5]), **options)
    ours = target.generate(**left_padded([9, 5]), **options, assistant_model=draft)
    name = what.removeprefix("output_")
    for mine, theirs in zip(ours[name], plain[name], strict=True):
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("has_ids", [True, False])
def test_a_static_cache_has_plain_generates_columns_with_embeddings(has_ids):
    target = tiny_target()
    ids = left_padded([9])["input_ids"]
    given = {"inputs_embeds": target.get_input_embeddings()(ids)} | ({"input_ids": ids} if has_ids else {})
    options = {"max_new_tokens": 10, "cache_implementation": "static", "return_dict_in_generate": True}
    plain = target.generate(**given, **options)
    ours = target.generate(**given, **options, assistant_model=tiny_draft(target))
    assert ours[CACHE].layers[0].max_cache_len == plain[CACHE].layers[0].max_cache_len


# -- masks, memory, threads, wrappers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mpt", "bloom", "llama"])
def test_zeros_inside_the_mask(name):
    """A second chat turn behind sequences that ended early."""
    target = tiny_model(name) if name != "llama" else tiny_target()
    draft = tiny_draft(target, tokens=torch.arange(3, 9)).with_tree("static", num_draft_tokens=20, tree_depth=3)
    for seed in range(6):
        inputs = left_padded([13, 9], seed=seed)
        inputs["attention_mask"][0, 6:9] = 0
        assert_same(target, draft, inputs, max_new_tokens=15, do_sample=False)


def test_memory_grows_with_what_is_written():
    """A billion tokens allowed, a few written."""
    target = tiny_target()
    text = target.generate(**RAGGED, max_new_tokens=400, do_sample=False, eos_token_id=None)
    end = int(text[:, 13:33].flatten().mode().values)
    options = {"max_new_tokens": 10**9, "do_sample": False, "eos_token_id": [end, *range(3, VOCAB, 2)]}
    assert_same(target, tiny_draft(target), RAGGED, **options)


def test_more_tokens_than_there_was_room_for():
    target = tiny_target(max_position_embeddings=2048)
    assert_same(target, tiny_draft(target), RAGGED, max_new_tokens=600, do_sample=False)


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_out_of_memory_leaves_a_users_cache_as_it_was(failing, monkeypatch):
    """While keys and values are taken over, group by group."""
    target = tiny_target("gemma3")
    draft, ids = tiny_draft(target), left_padded([9])["input_ids"]
    cache = DynamicCache(config=target.config)
    options = {"max_new_tokens": 6, "do_sample": False, CACHE: cache}
    text = target.generate(ids, **options)
    new, calls = slots._new_storage, []

    def scarce(like, shape):
        calls.append(1)
        if len(calls) > failing:
            raise torch.OutOfMemoryError("none left")
        return new(like, shape)

    monkeypatch.setattr(slots, "_new_storage", scarce)
    monkeypatch.setattr(slots, "GROUP_BYTES", 1)
    longer = torch.cat((text, torch.tensor([[7, 8]])), dim=1)
    with pytest.raises(torch.OutOfMemoryError):
        target.generate(longer, **options, assistant_model=draft)
    columns = cache.get_seq_length()
    assert all(layer.keys is not None and layer.values is not None for layer in cache.layers)
    fresh = target.generate(longer, max_new_tokens=6, do_sample=False)
    # The prompt was read before memory ran out, as plain generate would have.
    assert columns == longer.shape[1]
    then = target.generate(fresh[:, : columns + 1], **options)
    assert (
        then[:, : columns + 6].tolist() == fresh.tolist()[:1] or then.tolist()[0][: columns + 6] == fresh.tolist()[0]
    )


def test_reordering_needs_no_second_copy():
    part = torch.arange(5)[:, None].repeat(1, 3)
    assert slots._reordered(part, [3, 0, 4, 1, 2])[:, 0].tolist() == [3, 0, 4, 1, 2]


def test_threads_may_share_a_cost_curve():
    curve, errors = CostCurve(), []

    def work(seed):
        try:
            for i in range(3000):
                size = 1 + (i * seed) % 13
                curve.add(size, 0.1 * size)
                curve(size + 1)
                curve.slope(size)
                curve.invalidate(size)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (3, 5, 7, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


@pytest.mark.parametrize("wrap", [torch.compile, torch.nn.DataParallel], ids=["torch.compile", "DataParallel"])
def test_a_wrapped_draft_is_a_draft(wrap):
    target = tiny_target()
    with hf_eagle3.record() as stats:
        assert_same(target, wrap(tiny_draft(target)), left_padded([9]), max_new_tokens=12, do_sample=False)
    draft = tiny_draft(target)
    stats = assert_same(target, wrap(draft), left_padded([9]), max_new_tokens=12, do_sample=False)
    assert stats.num_cycles > 0


def test_a_name_is_loaded_as_a_draft(tmp_path):
    target = tiny_target()
    tiny_draft(target).save_pretrained(tmp_path)
    plain = target.generate(**left_padded([9]), max_new_tokens=12, do_sample=False)
    for _ in range(2):
        with hf_eagle3.record() as stats:
            given = {"max_new_tokens": 12, "do_sample": False, "assistant_model": str(tmp_path)}
            ours = target.generate(**left_padded([9]), **given)
        assert ours.tolist() == plain.tolist()
        assert stats.num_cycles > 0


def test_a_target_that_keeps_no_cache_says_what_to_do():
    target = tiny_target()
    draft = tiny_draft(target)
    target.train()
    (target.activation_checkpointing_enable if is_at_least("5.24") else target.gradient_checkpointing_enable)()
    inputs = {**left_padded([9]), "max_new_tokens": 5, "do_sample": False}
    if is_at_least("5.24"):  # nothing is checkpointed there where no gradient is asked for
        assert_same(target, draft, left_padded([9]), max_new_tokens=5, do_sample=False)
        return
    with pytest.raises(ValueError, match=r"call `eval\(\)`"):
        target.generate(**inputs, assistant_model=draft)


# -- what a draft may be given as -------------------------------------------------------------------------------------


def test_a_draft_by_its_folder_follows_the_folders_files(tmp_path):
    target, options = tiny_target(), {"max_new_tokens": 30, "do_sample": False}
    tiny_draft(target).save_pretrained(tmp_path)
    first = assert_same(target, str(tmp_path), left_padded([9]), **options)
    again = assert_same(target, tmp_path, left_padded([9]), **options)  # a path, too
    assert again.accepted_tokens == first.accepted_tokens
    other = tiny_draft(target).with_tree("chain", tree_depth=2)
    other.save_pretrained(tmp_path)
    assert max(assert_same(target, str(tmp_path), left_padded([9]), **options).tree_depths[0]) == 2
    (tmp_path / "config.json").unlink()
    with pytest.raises(OSError, match=r"no `?config\.json"):
        target.generate(**left_padded([9]), **options, assistant_model=str(tmp_path))


@pytest.mark.parametrize("limit", ["3", 2.5, True, 0, -1])
def test_a_limit_that_is_no_count_is_refused_by_its_own_name(limit):
    target = tiny_target()
    with pytest.raises(ValueError, match="`num_assistant_tokens` is "):
        target.generate(
            **left_padded([9]), max_new_tokens=5, assistant_model=tiny_draft(target), num_assistant_tokens=limit
        )


def test_a_chain_in_transformers_own_loop_under_autocast():
    target = tiny_target()
    view = tiny_draft(target).with_tree("host_chain", tree_depth=3)
    with torch.autocast("cpu", torch.bfloat16):
        out = target.generate(**left_padded([5]), max_new_tokens=9, do_sample=False, assistant_model=view)
    assert out.shape == (1, 14)


def test_the_draft_that_ships_is_no_llama():
    from transformers import AutoModelForCausalLM

    from hf_eagle3 import embedded

    with pytest.raises((OSError, ValueError), match="load it with hf_eagle3"):
        AutoModelForCausalLM.from_pretrained(str(embedded.DRAFT))
