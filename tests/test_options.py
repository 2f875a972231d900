"""Every `generate` option does what it does without a draft: processors, criteria, streamers, outputs, caches,
embeddings.

Rows of different lengths share the loop, so each option is tried with ragged rows that end at different times."""

import pytest
import torch
from models import CACHE, left_padded, tiny_draft, tiny_target
from test_generate import SAMPLING, assert_same, both
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
    SynthIDTextWatermarkingConfig,
    TextStreamer,
    WatermarkingConfig,
    pipeline,
)
from transformers.generation.streamers import BaseStreamer

import hf_eagle3


GREEDY = {"max_new_tokens": 25, "do_sample": False}
RAGGED = left_padded([13, 4, 9, 7])
ENDING = {"max_new_tokens": 30, "eos_token_id": [5, 6]}


@pytest.fixture(scope="module")
def pair():
    target = tiny_target()
    return target, tiny_draft(target)


def allowed_tokens(row: int, ids: torch.Tensor) -> list[int]:
    """Depends on the row's number and on the exact length of its prefix."""
    return [t for t in range(3, 24) if (t + row + len(ids)) % 3]


PROCESSORS = {
    "repetition_penalty": {"repetition_penalty": 1.7},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.5},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 2},
    "bad_words_ids": {"bad_words_ids": [[9], [10, 11]]},
    "sequence_bias": {"sequence_bias": [[[7], -4.0], [[8, 9], 5.0]]},
    "min_length": {"min_length": 22},
    "min_new_tokens": {"min_new_tokens": 11},
    "prefix_allowed_tokens_fn": {"prefix_allowed_tokens_fn": allowed_tokens},
    "forced_eos_token_id": {"forced_eos_token_id": 5},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (4, 1.6)},
    "suppress_tokens": {"suppress_tokens": [9, 12]},
    "begin_suppress_tokens": {"begin_suppress_tokens": [9, 12]},
    "remove_invalid_values": {"remove_invalid_values": True},
    "renormalize_logits": {"renormalize_logits": True},
    "guidance_scale": {"guidance_scale": 1.7},
    "watermark": {"watermarking_config": WatermarkingConfig(bias=3.0)},
    "synthid": {
        "watermarking_config": SynthIDTextWatermarkingConfig(
            keys=[654, 400, 836], ngram_len=3, context_history_size=16
        )
    },
}


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("sampling", [False, True])
def test_processors(pair, name, sampling):
    options = ENDING | PROCESSORS[name] | (SAMPLING if sampling else {"do_sample": False})
    assert_same(*pair, RAGGED, **options)
    assert_same(*pair, left_padded([9]), **options)


@pytest.mark.parametrize(
    "warper",
    [
        {"min_p": 0.1},
        {"typical_p": 0.8},
        {"epsilon_cutoff": 0.05},
        {"eta_cutoff": 0.1},
        {"top_h": 0.5},
        {"top_k": 3},
        {"top_p": 0.6},
    ],
    ids=lambda w: next(iter(w)),
)
def test_warpers(pair, warper):
    for seed in range(3):
        assert_same(*pair, RAGGED, seed=seed, do_sample=True, **ENDING | {"top_k": 0} | warper)


class EveryThird(LogitsProcessor):
    """State of its own and a look at all rows: only right if called once per step, in order, with all rows."""

    def __init__(self):
        self.calls = []

    def __call__(self, input_ids, scores):
        self.calls.append(tuple(input_ids.shape))
        if len(self.calls) % 3 == 0:
            scores = scores.roll(1, dims=-1)
        return scores + 0.1 * input_ids[:, -1].sum()


@pytest.mark.parametrize("sampling", [False, True])
def test_an_unknown_processor_sees_each_step_once(pair, sampling):
    target, draft = pair
    mine = [EveryThird(), EveryThird()]
    options = ENDING | (SAMPLING if sampling else {"do_sample": False})
    results = []
    for processor, assistant in zip(mine, ({}, {"assistant_model": draft}), strict=True):
        torch.manual_seed(0)
        results.append(
            target.generate(
                **RAGGED, logits_processor=LogitsProcessorList([processor]), **options, **assistant
            ).tolist()
        )
    assert results[0] == results[1]
    assert mine[0].calls == mine[1].calls


class NoisyProcessor(LogitsProcessor):
    """Draws random numbers between the steps' own."""

    def __call__(self, input_ids, scores):
        return scores + torch.rand_like(scores)


def test_a_processor_that_draws_random_numbers(pair):
    for seed in range(3):
        assert_same(
            *pair, RAGGED, seed=seed, logits_processor=LogitsProcessorList([NoisyProcessor()]), **ENDING, **SAMPLING
        )


class ParityProcessor(LogitsProcessor):
    """Prefers even or odd tokens by the parity of its row's length."""

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        scores[:, input_ids.shape[1] % 2 :: 2] += 2.0
        return scores


def test_a_declared_row_wise_processor_lets_rows_run_apart(pair):
    processors = LogitsProcessorList([ParityProcessor()])
    inputs, options = left_padded([13, 4, 9, 7, 11, 6, 3, 10]), {"max_new_tokens": 60, **SAMPLING}
    slow = assert_same(*pair, inputs, logits_processor=processors, **options)
    hf_eagle3.declare_row_wise(ParityProcessor)
    fast = assert_same(*pair, inputs, logits_processor=processors, **options)
    assert fast.num_iterations < slow.num_iterations


class StopAtLength(StoppingCriteria):
    """Row r ends at its own length; counts its calls."""

    def __init__(self):
        self.lengths = []

    def __call__(self, input_ids, scores, **kwargs):
        self.lengths.append(input_ids.shape[1])
        return torch.tensor([input_ids.shape[1] >= 18 + 3 * row for row in range(input_ids.shape[0])])


@pytest.mark.parametrize("pads", [True, False], ids=["with eos", "without eos"])
@pytest.mark.parametrize("sampling", [False, True])
def test_an_unknown_criterion_is_asked_after_every_token(pair, pads, sampling):
    target, draft = pair
    mine = [StopAtLength(), StopAtLength()]
    options = {"max_new_tokens": 30, "eos_token_id": 5 if pads else None} | (
        SAMPLING if sampling else {"do_sample": False}
    )
    results = []
    for criterion, assistant in zip(mine, ({}, {"assistant_model": draft}), strict=True):
        torch.manual_seed(0)
        out = target.generate(**RAGGED, stopping_criteria=StoppingCriteriaList([criterion]), **options, **assistant)
        results.append((out.tolist(), torch.get_rng_state().tolist()))
    assert results[0] == results[1]
    assert mine[0].lengths == mine[1].lengths


def test_max_time_stops(pair):
    target, draft = pair
    out = target.generate(**RAGGED, max_new_tokens=400, max_time=0.0, do_sample=False, assistant_model=draft)
    assert out.shape[1] == 14


class Collector(BaseStreamer):
    def __init__(self):
        self.values, self.ended = [], False

    def put(self, value):
        self.values.append(value.tolist())

    def end(self):
        self.ended = True


@pytest.mark.parametrize("lengths", [[9], [13, 4, 9]], ids=str)
@pytest.mark.parametrize("sampling", [False, True])
def test_streamers_get_the_same_values(pair, lengths, sampling):
    target, draft = pair
    collected = []
    for assistant in ({}, {"assistant_model": draft}):
        streamer = Collector()
        torch.manual_seed(0)
        target.generate(
            **left_padded(lengths),
            streamer=streamer,
            **ENDING,
            **(SAMPLING if sampling else {"do_sample": False}),
            **assistant,
        )
        collected.append(streamer)
    assert collected[0].values == collected[1].values
    assert collected[1].ended


def test_cycle_streamers_see_trees_and_paths(pair):
    target, draft = pair

    class Watcher(hf_eagle3.CycleStreamer):
        records = []

        def on_cycle(self, record):
            self.records.append(record)

    watcher = Watcher()
    out = target.generate(
        **left_padded([9]), max_new_tokens=20, do_sample=False, assistant_model=draft, streamer=watcher
    )
    tokens = [token for record in watcher.records for token in record.tokens]
    assert tokens == out[0, 9:].tolist()
    for record in watcher.records[1:]:
        parents = [0, *record.accepted_nodes]
        for parent, node, token in zip(parents, record.accepted_nodes, record.tokens, strict=False):
            assert record.tree_parents[node] == parent
            assert record.tree_tokens[node] == token
    assert any(record.num_accepted_tokens for record in watcher.records)


OUTPUTS = ("scores", "logits", "hidden_states", "attentions")


@pytest.mark.parametrize("lengths", [[9], [13, 4, 9]], ids=str)
@pytest.mark.parametrize("sampling", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_dict_outputs_have_plain_generates_values(lengths, sampling, name):
    target = tiny_target(name)
    target.set_attn_implementation("eager")
    options = {"max_new_tokens": 15, "repetition_penalty": 1.3, "return_dict_in_generate": True}
    options |= {f"output_{output}": True for output in OUTPUTS} | (SAMPLING if sampling else {"do_sample": False})
    (plain, _), (ours, _) = both(target, tiny_draft(target), left_padded(lengths), **options)
    assert isinstance(ours, hf_eagle3.GenerateEagle3Output)
    assert ours.speculation.num_committed_tokens == 14 * len(lengths)
    assert ours.sequences.tolist() == plain.sequences.tolist()
    for output in OUTPUTS:
        mine, theirs = getattr(ours, output), getattr(plain, output)
        assert len(mine) == len(theirs) == 15
        torch.testing.assert_close(mine, theirs, rtol=2e-4, atol=2e-4, msg=lambda m, o=output: f"{o}: {m}")
    for mine, theirs in zip(ours[CACHE].layers, plain[CACHE].layers, strict=True):
        torch.testing.assert_close(mine.keys, theirs.keys, rtol=2e-4, atol=2e-4)


def test_outputs_are_not_made_unasked(pair):
    out = pair[0].generate(**RAGGED, max_new_tokens=4, return_dict_in_generate=True, assistant_model=pair[1])
    assert out.scores is None
    assert out.hidden_states is None


@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral", "qwen3_next"])
@pytest.mark.parametrize("turns", ["dd", "pd", "dp", "dpd", "ddd"], ids=lambda t: f"turns-{t}")
def test_past_key_values_in_and_out_over_turns(name, turns):
    """A chat over one cache, with (d) and without (p) the draft in each turn."""
    target = tiny_target(name)
    draft = tiny_draft(target)
    texts = []
    for pattern in ("p" * len(turns), turns):
        cache, ids = DynamicCache(config=target.config), left_padded([9])["input_ids"]
        for number, kind in enumerate(pattern):
            assistant = {"assistant_model": draft} if kind == "d" else {}
            ids = target.generate(ids, **{CACHE: cache}, max_new_tokens=9, do_sample=False, **assistant)
            assert cache.get_seq_length() == ids.shape[1] - 1
            ids = torch.cat((ids, left_padded([5], seed=number)["input_ids"]), dim=1)
        texts.append(ids.tolist())
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral"])
def test_a_users_cache_without_windows(name):
    """`DynamicCache()` knows no windows; the model's layers have them all the same."""
    target = tiny_target(name)
    texts = []
    for assistant in ({}, {"assistant_model": tiny_draft(target)}):
        cache = DynamicCache()
        ids = target.generate(**left_padded([12]), **{CACHE: cache}, **GREEDY, **assistant)
        ids = torch.cat((ids, left_padded([4])["input_ids"]), dim=1)
        texts.append(target.generate(ids, **{CACHE: cache}, **GREEDY, **assistant).tolist())
        assert cache.get_seq_length() == len(texts[-1][0]) - 1
    assert texts[0] == texts[1]


def test_the_drafts_memory_rides_along_on_the_cache(pair):
    """Turn two drafts as if it had seen the whole text: the same cycles as one call without a cache."""
    target, draft = pair
    first = left_padded([9])["input_ids"]
    cache = DynamicCache(config=target.config)
    ids = target.generate(first, **{CACHE: cache}, max_new_tokens=9, do_sample=False, assistant_model=draft)
    ids = torch.cat((ids, left_padded([5], seed=3)["input_ids"]), dim=1)
    with hf_eagle3.record() as whole:
        expected = target.generate(ids, max_new_tokens=20, do_sample=False, assistant_model=draft)
    with hf_eagle3.record() as continued:
        ours = target.generate(ids, **{CACHE: cache}, max_new_tokens=20, do_sample=False, assistant_model=draft)
    assert ours.tolist() == expected.tolist()
    assert continued.accepted_tokens == whole.accepted_tokens


def test_a_batch_over_one_cache(pair):
    target, draft = pair
    texts = []
    for assistant in ({}, {"assistant_model": draft}):
        cache, inputs = DynamicCache(config=target.config), left_padded([9, 5])
        ids = target.generate(**inputs, **{CACHE: cache}, max_new_tokens=9, do_sample=False, **assistant)
        ids = torch.cat((ids, left_padded([3, 3], seed=1)["input_ids"]), dim=1)
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, ids.shape[1] - 9), value=1)
        texts.append(
            target.generate(
                ids, attention_mask=mask, **{CACHE: cache}, max_new_tokens=9, do_sample=False, **assistant
            ).tolist()
        )
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("lengths", [[9], [9, 5]], ids=str)
def test_inputs_embeds(name, lengths):
    target = tiny_target(name)
    inputs = left_padded(lengths)
    embeds = target.get_input_embeddings()(inputs["input_ids"]).detach()
    for extra in ({}, {"input_ids": inputs["input_ids"]}):
        given = {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"], **extra}
        assert_same(target, tiny_draft(target), given, max_new_tokens=15, do_sample=False)


def test_chunked_prefill(pair):
    assert_same(*pair, left_padded([30]), max_new_tokens=15, do_sample=False, prefill_chunk_size=7)


def letters_tokenizer():
    """One token per letter, the vocabulary of the tiny targets."""
    words = {w: i for i, w in enumerate(["<pad>", "<s>", "</s>", *"abcdefghijklmnopqrstu"])}
    raw = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    raw.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def test_text_streamer_and_pipeline():
    tokenizer, target = letters_tokenizer(), tiny_target()
    draft = tiny_draft(target)
    options = {"max_new_tokens": 12, "do_sample": False}
    plain = pipeline("text-generation", model=target, tokenizer=tokenizer)("abcd", **options)
    with hf_eagle3.record() as stats:
        fast = pipeline("text-generation", model=target, tokenizer=tokenizer, assistant_model=draft)("abcd", **options)
    assert fast == plain
    assert stats.num_cycles > 0
    inputs = tokenizer("abcd", return_tensors="pt", return_token_type_ids=False)
    target.generate(**inputs, **options, assistant_model=draft, streamer=TextStreamer(tokenizer))


def test_pipeline_takes_a_draft_with_other_special_tokens_at_the_call():
    """Published drafts name other ones than their target; `pipeline(assistant_model=...)` itself would refuse them."""
    tokenizer, target = letters_tokenizer(), tiny_target()
    draft = tiny_draft(target)
    draft.config.bos_token_id, draft.config.eos_token_id = 17, [18, 19]
    writer = pipeline("text-generation", model=target, tokenizer=tokenizer)
    with hf_eagle3.record() as stats:
        fast = writer("abcd", max_new_tokens=12, do_sample=False, assistant_model=draft)
    assert stats.num_cycles > 0
    assert fast == writer("abcd", max_new_tokens=12, do_sample=False)


@pytest.mark.parametrize("eos_token_id", [5, None])
@pytest.mark.parametrize("sampling", [False, True])
def test_stop_strings(pair, eos_token_id, sampling):
    target, draft = pair
    options = {"max_new_tokens": 30, "eos_token_id": eos_token_id} | (SAMPLING if sampling else {"do_sample": False})
    torch.manual_seed(0)
    text = letters_tokenizer().decode(target.generate(**left_padded([13]), **options)[0, 13:])
    options |= {"stop_strings": [text[8:10], text[4:7]], "tokenizer": letters_tokenizer()}
    stats = assert_same(target, draft, left_padded([13]), **options)
    assert stats.generated_lengths[0] < 30
    assert_same(target, draft, RAGGED, **options)


@pytest.mark.parametrize("mode", ["static", "chain", "auto", "host_chain"])
def test_num_assistant_tokens_limits_the_draft(pair, mode):
    target, draft = pair
    draft = draft.with_tree(mode, **({"tree_top_k": 4} if mode == "static" else {}))
    options = {"max_new_tokens": 20, "do_sample": False, "assistant_model": draft}
    with hf_eagle3.record() as stats:
        text = target.generate(**left_padded([9]), **options, num_assistant_tokens=2)
    assert text.tolist() == target.generate(**left_padded([9]), **options).tolist()
    if mode != "host_chain":  # which keeps no statistics
        assert 0 < stats.num_draft_tokens <= 2 * stats.num_cycles
    with pytest.raises(ValueError, match="`num_assistant_tokens` is 0"):
        target.generate(**left_padded([9]), **options, num_assistant_tokens=0)
