"""Corners where a loop over ragged rows is easily wrong: drafts that are mostly right, rows that end in the middle of
a cycle, caches that outlive such rows, functions of the user's that are asked at the wrong moment.

An oracle draft proposes what plain generate writes, with a mistake now and then, so that long paths are accepted."""

import threading

import pytest
import torch
from models import CACHE, left_padded, tiny_draft, tiny_target
from test_generate import SAMPLING, assert_same
from test_options import Collector
from test_robustness import Boom
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    Phi3Config,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicLayer

import hf_eagle3
from hf_eagle3.generation.draft.eagle3 import Eagle3Drafter
from hf_eagle3.generation.sampling.noise import StepNoise
from hf_eagle3.generation.tree import draft_tree as trees


GREEDY = {"max_new_tokens": 25, "do_sample": False}
BATCH = left_padded([13, 4, 9])


@pytest.fixture(scope="module")
def pair():
    target = tiny_target()
    return target, tiny_draft(target)


def make_oracle(monkeypatch, text: torch.Tensor, prompt_length: int, seed: int = 0, mistakes: float = 0.2) -> None:
    """Drafts propose a chain of `text` (B, columns), with a share of `mistakes`."""
    generator = torch.Generator().manual_seed(seed)

    def grow(self, roots, depth, policy):
        chains = []
        for row, step in zip(roots.sequences, roots.steps, strict=True):
            truth = text[row, prompt_length + step :][:depth]
            chains.append(torch.nn.functional.pad(truth, (0, depth - len(truth)), value=3))
        tokens = torch.stack(chains)
        wrong = torch.rand(tokens.shape, generator=generator) < mistakes
        tokens = torch.where(wrong, (tokens + 1) % 24, tokens)
        return trees.chain(roots.tokens, tokens, torch.zeros(tokens.shape))

    monkeypatch.setattr(Eagle3Drafter, "grow", grow)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("name", ["llama", "qwen3_next"])
def test_rows_that_end_in_the_middle_of_a_long_path(name, do_sample, seed, monkeypatch):
    target = tiny_target(name)
    draft = tiny_draft(target).with_tree("chain", tree_depth=5)
    options = {"max_new_tokens": 30, "do_sample": do_sample, "eos_token_id": [5, 6], "top_k": 0}
    inputs = left_padded([13, 4, 9, 7], seed=seed)
    torch.manual_seed(0)
    text = target.generate(**inputs, **options)
    make_oracle(monkeypatch, text, 13, seed)
    stats = assert_same(target, draft, inputs, **options)
    assert stats.acceptance_length > 1.3
    streams = []
    for assistant in ({}, {"assistant_model": draft}):
        streams.append(Collector())
        torch.manual_seed(0)
        target.generate(**inputs, **options, streamer=streams[-1], **assistant)
    assert streams[0].values == streams[1].values


def test_rows_that_run_ahead_are_held_back_before_their_noise_costs_too_much(monkeypatch):
    """Row 0's proposals are all right, row 1's all wrong: without a bound row 0 would be 40 steps ahead."""
    target = tiny_target()
    draft = tiny_draft(target).with_tree("chain", tree_depth=5)
    inputs, options = left_padded([9, 9]), {"max_new_tokens": 60, "do_sample": True, "top_k": 0}
    torch.manual_seed(0)
    text = target.generate(**inputs, **options)
    make_oracle(monkeypatch, text, 9, mistakes=0.0)
    right = Eagle3Drafter.grow

    def grow(self, *args):
        tree = right(self, *args)
        tree.tokens[1:, 1:] = (tree.tokens[1:, 1:] + 1) % 24
        return tree

    kept, honest = [], StepNoise.at

    def at(self, steps, rows):
        kept.append(len(self._noise))
        return honest(self, steps, rows)

    monkeypatch.setattr(Eagle3Drafter, "grow", grow)
    monkeypatch.setattr(StepNoise, "at", at)
    monkeypatch.setattr(StepNoise, "max_skew", 8)
    assert_same(target, draft, inputs, **options)
    assert max(kept) <= 8 + 2 * 6


@pytest.mark.parametrize("ending", [0, 1, 2])
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3_next"])
def test_a_returned_cache_of_rows_that_ended_early(name, ending):
    """
    Plain generate runs an ended row's last token and then padding: the cache of a draft's call must hold the same.
    """
    target = tiny_target(name)
    draft = tiny_draft(target)
    caches, eos = [], int(target.generate(**BATCH, **GREEDY)[ending, 13 + 7])  # what that row writes in its middle
    for assistant in ({}, {"assistant_model": draft}):
        cache = DynamicCache(config=target.config)
        out = target.generate(**BATCH, **GREEDY, eos_token_id=eos, **{CACHE: cache}, **assistant)
        caches.append(cache)
    ends = [(row[13:] == eos).nonzero()[:1].flatten().tolist() for row in out]
    assert any(end and 14 + end[0] < out.shape[1] for end in ends), "no row ended early: the test shows nothing"
    for plain, ours in zip(caches[0].layers, caches[1].layers, strict=True):
        for row, end in enumerate(ends):
            # Columns of the row's own tokens, its last included where others ran on.
            used = min(14 + end[0] if end else out.shape[1], out.shape[1] - 1)
            if type(plain) is DynamicLayer:
                seen = slice(13 - int(BATCH["attention_mask"][row].sum()), used)
                torch.testing.assert_close(ours.keys[row, :, seen], plain.keys[row, :, seen], rtol=1e-4, atol=1e-4)
        if "recurrent_states" in vars(plain):
            torch.testing.assert_close(ours.recurrent_states, plain.recurrent_states, rtol=1e-3, atol=1e-3)


def test_streams_of_a_hybrid_batch_whose_cache_is_returned():
    target = tiny_target("qwen3_next")
    values = []
    for assistant in ({}, {"assistant_model": tiny_draft(target)}):
        streamer = Collector()
        options = {"eos_token_id": [5, 6], "return_dict_in_generate": True, "streamer": streamer}
        target.generate(**BATCH, **GREEDY, **options, **assistant)
        values.append(streamer.values)
    assert values[0] == values[1]


def test_prefix_functions_see_only_what_plain_generate_shows_them(pair):
    """A trie of whole texts fails on any prefix that is none, of any row."""
    target, draft = pair
    seen = []

    def allowed(row, ids):
        seen[-1].append((row, tuple(ids.tolist())))
        return list(range(3, 24))

    for assistant in ({}, {"assistant_model": draft}):
        seen.append([])
        target.generate(**BATCH, **GREEDY, eos_token_id=[5, 6], prefix_allowed_tokens_fn=allowed, **assistant)
    assert seen[0] == seen[1]


class Mixes(LogitsProcessor):
    """Looks at the scores of all rows."""

    def __call__(self, input_ids, scores):
        return scores + 0.3 * scores.mean(dim=0, keepdim=True)


@pytest.mark.parametrize("sampling", [False, True])
def test_processors_that_mix_rows_see_ended_rows_too(pair, sampling):
    options = {"max_new_tokens": 25, "eos_token_id": [5, 6], **(SAMPLING if sampling else {"do_sample": False})}
    for seed in range(4):
        assert_same(*pair, BATCH, seed=seed, logits_processor=LogitsProcessorList([Mixes()]), **options)


class Watches(StoppingCriteria):
    def __init__(self):
        self.calls = []

    def __call__(self, input_ids, scores, **kwargs):
        self.calls.append((input_ids.shape[1], None if scores is None else len(scores)))
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


@pytest.mark.parametrize("with_scores", [True, False])
def test_criteria_are_asked_about_every_token_with_its_scores(pair, with_scores):
    target, draft = pair
    mine = [Watches(), Watches()]
    for criterion, assistant in zip(mine, ({}, {"assistant_model": draft}), strict=True):
        target.generate(
            **left_padded([9]),
            **GREEDY,
            stopping_criteria=StoppingCriteriaList([criterion]),
            return_dict_in_generate=with_scores,
            output_scores=with_scores,
            **assistant,
        )
    assert mine[0].calls == mine[1].calls


def test_a_length_criterion_met_by_the_prompt_allows_one_token(pair):
    criteria = StoppingCriteriaList([MaxLengthCriteria(4)])
    assert_same(*pair, left_padded([9]), **GREEDY, stopping_criteria=criteria)


def test_int32_prompts_and_autocast(pair):
    target, draft = pair
    assert_same(target, draft, {"input_ids": left_padded([9])["input_ids"].int()}, **GREEDY)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = target.generate(**left_padded([9]), **GREEDY, assistant_model=draft)
    assert out.shape == (1, 34)


class FailsOnCall(LogitsProcessor):
    def __init__(self, call):
        self.call = call

    def __call__(self, input_ids, scores):
        self.call -= 1
        if self.call < 0:
            raise Boom
        return scores


@pytest.mark.parametrize("call", [0, 1, 4])
@pytest.mark.parametrize("name", ["mistral", "gemma3", "qwen3_next"])
def test_a_cache_after_an_error_at_any_step_is_whole(name, call):
    target = tiny_target(name)
    expected = target.generate(**left_padded([12]), **GREEDY)
    cache = DynamicCache(config=target.config)
    with pytest.raises(Boom):
        target.generate(
            **left_padded([12]),
            **GREEDY,
            **{CACHE: cache},
            assistant_model=tiny_draft(target),
            logits_processor=LogitsProcessorList([FailsOnCall(call)]),
        )
    ids = expected[:, : cache.get_seq_length() + 1]
    assert target.generate(ids, **{CACHE: cache}, max_length=37, do_sample=False).tolist() == expected.tolist()


def test_an_interrupted_second_run_leaves_states_whole(monkeypatch):
    """The accepted tokens are run again on restored states; stopped in the middle, the states are those before."""
    from hf_eagle3.generation.verify.chain_pass import ChainPass
    from hf_eagle3.generation.verify.replay import StateReplay

    monkeypatch.setattr(StateReplay, "covers", lambda self, length: False)
    target = tiny_target("qwen3_next")
    expected = target.generate(**left_padded([12]), **GREEDY)
    cache, honest, calls = DynamicCache(config=target.config), ChainPass._run, []

    def run(self, tokens):
        calls.append(tokens.shape[1])
        out = honest(self, tokens)
        if len(calls) == 4:  # two cycles of two passes
            raise Boom
        return out

    monkeypatch.setattr(ChainPass, "_run", run)
    with pytest.raises(Boom):
        target.generate(**left_padded([12]), **GREEDY, **{CACHE: cache}, assistant_model=tiny_draft(target))
    monkeypatch.undo()
    ids = expected[:, : cache.get_seq_length() + 1]
    assert target.generate(ids, **{CACHE: cache}, max_length=37, do_sample=False).tolist() == expected.tolist()


def test_noise_is_not_rewound_over_somebody_elses_draws():
    torch.manual_seed(0)
    noise = StepNoise((1, 8), torch.device("cpu"))
    noise.at([5], [0])
    torch.rand(3)  # another thread's, or a streamer's: they would come again
    state = torch.get_rng_state()
    noise.rewind_to(2)
    assert torch.equal(torch.get_rng_state(), state)


def test_threads_that_sample_use_no_noise_twice(pair, monkeypatch):
    target, draft = pair
    used, honest = [], StepNoise.at

    def at(self, steps, rows):
        noise = honest(self, steps, rows)
        used.append((id(self), steps[0], tuple(noise[0, :3].tolist())))
        return noise

    monkeypatch.setattr(StepNoise, "at", at)

    def work():
        target.generate(**left_padded([9]), max_new_tokens=30, assistant_model=draft, **SAMPLING)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    owners = {}
    for owner, step, values in used:
        owners.setdefault(values, set()).add((owner, step))
    assert all(len(steps) == 1 for steps in owners.values())


def longrope_target():
    sizes = {"vocab_size": 24, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}
    factors = [1.0, 2.0, 4.0, 8.0]
    config = Phi3Config(
        **sizes,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        max_position_embeddings=64,
        original_max_position_embeddings=20,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 4,
            "long_factor": factors,
            "original_max_position_embeddings": 20,
        },
    )
    torch.manual_seed(0)
    target = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in target.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    target.generation_config.eos_token_id = None
    return target


@pytest.mark.parametrize(
    ("lengths", "speculates"), [([5], True), ([14], False), ([14, 9], False), ([25], True), ([25, 22], True)], ids=str
)
def test_longrope_before_across_and_past_its_threshold(lengths, speculates):
    target = longrope_target()
    new = 10 if max(lengths) < 10 else 15
    stats = assert_same(target, tiny_draft(target), left_padded(lengths), max_new_tokens=new, do_sample=False)
    assert (stats.mode == "tree") == speculates


def test_memory_of_another_text_is_not_believed(pair):
    """The cached ids were edited between turns: the draft starts anew, as on a cache that never met it."""
    target, draft = pair
    cache = DynamicCache(config=target.config)
    ids = target.generate(left_padded([9])["input_ids"], **{CACHE: cache}, **GREEDY, assistant_model=draft)
    ids = torch.cat((ids, left_padded([3])["input_ids"]), dim=1)
    ids[0, 4] = (ids[0, 4] + 1) % 24
    stranger = DynamicCache(config=target.config)
    for mine, theirs in zip(stranger.layers, cache.layers, strict=True):
        mine.update(theirs.keys.clone(), theirs.values.clone())
    accepted = []
    for memory in (cache, stranger):
        with hf_eagle3.record() as stats:
            target.generate(ids, **{CACHE: memory}, **GREEDY, assistant_model=draft)
        accepted.append(stats.accepted_tokens)
    assert accepted[0] == accepted[1]


def test_a_changed_draft_does_not_believe_its_memory(pair):
    target, _ = pair
    draft = tiny_draft(target)
    cache = DynamicCache(config=target.config)
    ids = target.generate(left_padded([9])["input_ids"], **{CACHE: cache}, **GREEDY, assistant_model=draft)
    ids = torch.cat((ids, left_padded([3])["input_ids"]), dim=1)
    expected = target.generate(ids, **GREEDY)
    draft.to(torch.bfloat16)
    assert target.generate(ids, **{CACHE: cache}, **GREEDY, assistant_model=draft).tolist() == expected.tolist()


def test_configurations_survive_every_way_to_copy_them(tmp_path):
    from conftest import DATA

    folder = DATA / "parity" / "speculators_tiny"
    config = hf_eagle3.Eagle3Config.from_pretrained(folder)
    assert config.target_layer_ids == [1, 3, 4]
    assert hf_eagle3.Eagle3Config.from_dict(config.to_dict()).target_layer_ids == [1, 3, 4]
    config.save_pretrained(tmp_path)
    assert hf_eagle3.Eagle3Config.from_pretrained(tmp_path).target_layer_ids == [1, 3, 4]
    draft = hf_eagle3.Eagle3DraftModel.from_pretrained(
        folder, config=config, rope_theta=5e5, target_layer_ids=[0, 1, 2]
    )
    assert draft.config.rope_parameters["rope_theta"] == 5e5
    assert draft.config.target_layer_ids == [0, 1, 2]
    assert config.target_layer_ids == [1, 3, 4]
