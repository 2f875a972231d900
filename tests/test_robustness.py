"""Wrong input is refused with its value and a remedy; nothing of ours stays on a target; threads, PEFT, memory."""

import gc
import threading

import pytest
import torch
from models import CACHE, CHAIN_TARGETS, left_padded, tiny_draft, tiny_target
from test_generate import SAMPLING, assert_same, both
from torch._subclasses.fake_tensor import FakeTensor
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    T5Config,
)
from transformers.generation.streamers import BaseStreamer

import hf_eagle3
from hf_eagle3 import Eagle3Config, Eagle3DraftModel
from hf_eagle3.generation.loop import Loop


INPUTS = left_padded([9])
GREEDY = {"max_new_tokens": 12, "do_sample": False}


@pytest.fixture(scope="module")
def pair():
    target = tiny_target()
    return target, tiny_draft(target)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, "`num_beams` is 2"),
        ({"num_beams": 3, "do_sample": True}, "`num_beams` is 3"),
        ({"prompt_lookup_num_tokens": 3}, "`prompt_lookup_num_tokens`"),
        ({"use_cache": False}, "`use_cache=False`"),
        ({"cache_implementation": "offloaded_static"}, "`cache_implementation` 'offloaded_static'"),
        ({"cache_implementation": "offloaded"}, "`cache_implementation` 'offloaded'"),
        ({"cache_implementation": "quantized"}, "`cache_implementation` 'quantized'"),
        ({"synced_gpus": True}, "`synced_gpus`"),
        ({"assistant_early_exit": 1}, "`assistant_early_exit`"),
        ({"assistant_tokenizer": object(), "tokenizer": object()}, "`assistant_tokenizer`"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_that_cannot_be_honoured(pair, options, message):
    target, draft = pair
    with pytest.raises(ValueError, match=message):
        target.generate(**INPUTS, max_new_tokens=5, assistant_model=draft, **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 64, "target_hidden_size": 64}, r"width 64 .* 32 wide"),
        ({"target_layer_ids": [0, 1, 30]}, r"taps layers \[0, 1, 30\]"),
        ({"hidden_size": 64}, "no `embed_tokens` of its own"),
    ],
    ids=str,
)
def test_drafts_of_another_target(pair, changes, message):
    target, _ = pair
    fields = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "draft_vocab_size": 6}
    draft = Eagle3DraftModel(Eagle3Config.from_target(target, **fields | changes))
    with pytest.raises(ValueError, match=message):
        target.generate(**INPUTS, **GREEDY, assistant_model=draft)


def test_tapped_layers_unnamed_and_not_distinct(pair):
    target, _ = pair
    draft = Eagle3DraftModel(Eagle3Config.from_target(target, draft_vocab_size=6, num_attention_heads=4, head_dim=8))
    draft.config.target_layer_ids = None
    with pytest.raises(ValueError, match=r"are not distinct .*target_layer_ids="):
        target.generate(**INPUTS, **GREEDY, assistant_model=draft)


def test_top_k_over_the_draft_vocabulary(pair):
    target, draft = pair
    view = draft.with_tree("static", tree_top_k=7, num_draft_tokens=5)
    with pytest.raises(ValueError, match="`tree_top_k` is 7, but the draft vocabulary has only 6"):
        target.generate(**INPUTS, **GREEDY, assistant_model=view)


def test_nan_in_target_or_draft(pair):
    target, draft = tiny_target(), pair[1]
    with torch.no_grad():
        target.lm_head.weight[3] = torch.nan
    for sampling in ({"do_sample": False}, SAMPLING):
        with pytest.raises(ValueError, match="target's logits are NaN"):
            target.generate(**INPUTS, max_new_tokens=5, assistant_model=draft, **sampling)


@pytest.mark.parametrize("options", [{"do_sample": False}, SAMPLING, {"cache_implementation": "static"}], ids=str)
@pytest.mark.parametrize("mode", ["auto", "static", "chain"])
def test_a_draft_of_nan_costs_speed_only(mode, options, monkeypatch):
    """Half precision overflows in the fusion of some drafts."""
    target, said = tiny_target(), []
    broken = tiny_draft(target)
    monkeypatch.setattr("hf_eagle3.generation.loop.logger.warning_once", said.append)
    with torch.no_grad():
        broken.norm.weight.fill_(torch.nan)
    stats = assert_same(target, broken.with_tree(mode), left_padded([9, 4]), max_new_tokens=12, **options)
    assert len(said) == 1
    assert "draft's scores are NaN" in said[0]
    assert sum(map(sum, stats.accepted_tokens)) <= 2, "plain steps after the first cycle"


@pytest.mark.parametrize("value", [torch.inf, torch.nan, -torch.inf], ids=str)
@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3_next"])
@pytest.mark.parametrize(
    "options",
    [{"do_sample": False}, SAMPLING, {"do_sample": False, "eos_token_id": [7, 8]}, {"cache_implementation": "static"}],
    ids=str,
)
def test_a_token_that_plain_generate_never_runs_cannot_hurt(name, options, value, monkeypatch):
    """Its hidden states are not finite: zero weights times them are NaN for every node of a pass."""
    target = tiny_target(name)
    if "cache_implementation" in options and name == "qwen3_next":
        pytest.skip("static shapes are for trees")
    bad = 23
    draft = tiny_draft(target, draft_vocab_size=8, tokens=torch.arange(16, 24))
    with torch.no_grad():
        target.get_input_embeddings().weight[bad] = value
        target.get_output_embeddings().weight[bad] = 0.0  # always logit 0, never the best
    options = options | {"suppress_tokens": [bad], "max_new_tokens": 24}
    inputs = left_padded([9, 4, 6])
    inputs["input_ids"] = inputs["input_ids"].clamp(max=22)
    again, own = [], Loop.without_draft
    monkeypatch.setattr(Loop, "without_draft", lambda run: again.append(1) or own(run))
    assert_same(target, draft, inputs, **options)
    assert again, "no node was drafted that is not finite"


class EvenTokens(LogitsProcessor):
    """Sees each step once: it counts them."""

    def __init__(self):
        self.steps = []

    def __call__(self, input_ids, scores):
        self.steps.append(input_ids.shape[1])
        return scores.masked_fill(torch.arange(scores.shape[1]) % 2 == 1, -torch.inf)


def test_a_processor_with_state_sees_each_step_once_when_a_node_is_not_finite():
    target = tiny_target()
    draft = tiny_draft(target, draft_vocab_size=8, tokens=torch.arange(16, 24))
    with torch.no_grad():
        target.get_input_embeddings().weight[23] = torch.inf
    inputs, seen = left_padded([9]), []
    inputs["input_ids"] = inputs["input_ids"].clamp(max=22)
    for assistant in ({}, {"assistant_model": draft}):
        own = EvenTokens()
        text = target.generate(
            **inputs, max_new_tokens=20, do_sample=False, logits_processor=LogitsProcessorList([own]), **assistant
        )
        seen.append((text.tolist(), own.steps))
    assert seen[0] == seen[1]


def test_the_wrong_model_as_assistant(pair, tmp_path):
    target, draft = pair
    with pytest.raises(TypeError, match="only proposes tokens"):
        draft.generate(**INPUTS)
    draft.save_pretrained(tmp_path)
    wrong = AutoModelForCausalLM.from_config(type(target.config).from_pretrained(tmp_path))
    with pytest.raises(ValueError, match=r"Eagle3DraftModel\.from_pretrained"):
        target.generate(**INPUTS, **GREEDY, assistant_model=wrong)


def test_encoder_decoders_are_refused(pair):
    sizes = {"vocab_size": 24, "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 4, "num_heads": 4}
    from transformers import T5ForConditionalGeneration

    target = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0))
    with pytest.raises(ValueError, match="encoder-decoder"):
        target.generate(**INPUTS, **GREEDY, assistant_model=pair[1])


def test_prompts_of_one_token_none_and_padding_on_the_right(pair):
    target, draft = pair
    assert_same(target, draft, {"input_ids": torch.tensor([[7]])}, **GREEDY)
    with pytest.raises(ValueError, match="`input_ids` is empty"):
        target.generate(torch.zeros(1, 0, dtype=torch.long), **GREEDY, assistant_model=draft)
    ids = torch.tensor([[7, 8, 9, 0, 0], [5, 6, 7, 8, 9]])
    assert_same(target, draft, {"input_ids": ids, "attention_mask": (ids != 0).long()}, **GREEDY)


def test_holes_in_the_attention_mask(pair):
    mask = torch.tensor([[0, 1, 1, 0, 0, 1, 1], [1, 1, 0, 1, 1, 1, 1]])
    assert_same(*pair, {"input_ids": left_padded([7, 7])["input_ids"], "attention_mask": mask}, **GREEDY)


def leftovers(target) -> list[str]:
    """Everything that a call could leave behind on a target."""
    found = [name for name, module in target.named_modules() if module._forward_hooks or module._forward_pre_hooks]
    return found + [name for name in vars(target) if "eagle" in name]


class Boom(Exception):
    pass


class FailsAt(BaseStreamer):
    def __init__(self, after: int, error: type[BaseException]):
        self.after, self.error = after, error

    def put(self, value):
        self.after -= 1
        if self.after < 0:
            raise self.error

    def end(self):
        pass


@pytest.mark.parametrize("error", [Boom, KeyboardInterrupt])
@pytest.mark.parametrize("name", ["llama", "gemma3", *CHAIN_TARGETS])
def test_nothing_stays_after_an_interrupt(name, error):
    target = tiny_target(name)
    draft = tiny_draft(target)
    expected = target.generate(**INPUTS, **GREEDY)
    cache = DynamicCache(config=target.config)
    with pytest.raises(error):
        target.generate(**INPUTS, **GREEDY, **{CACHE: cache}, assistant_model=draft, streamer=FailsAt(6, error))
    assert leftovers(target) == leftovers(draft) == []
    length = cache.get_seq_length()
    assert 9 < length < 21
    # The cache is an ordinary one of what was written so far: plain generate continues on it.
    ids = expected[:, : length + 1]
    assert target.generate(ids, **{CACHE: cache}, max_length=21, do_sample=False).tolist() == expected.tolist()
    assert target.generate(**INPUTS, **GREEDY).tolist() == expected.tolist()
    assert target.generate(**INPUTS, **GREEDY, assistant_model=draft).tolist() == expected.tolist()


def test_nothing_stays_after_a_good_call(pair):
    target, draft = pair
    before = target(**INPUTS).logits
    target.generate(**INPUTS, **GREEDY, assistant_model=draft)
    assert leftovers(target) == []
    assert torch.equal(target(**INPUTS).logits, before)


def test_other_assistants_are_left_alone(pair):
    target, _ = pair
    small = tiny_target(seed=5)
    plain = target.generate(**INPUTS, **GREEDY)
    assert target.generate(**INPUTS, **GREEDY, assistant_model=small).tolist() == plain.tolist()
    looked_up = target.generate(**INPUTS, **GREEDY, prompt_lookup_num_tokens=3, eos_token_id=2)
    assert looked_up.tolist() == target.generate(**INPUTS, **GREEDY, eos_token_id=2).tolist()
    with pytest.raises(ValueError, match="num_return_sequences"):
        target.generate(**INPUTS, max_new_tokens=3, do_sample=True, num_return_sequences=2, assistant_model=small)


def test_two_threads_share_target_and_draft(pair):
    target, draft = pair
    prompts = [left_padded([n], seed=n) for n in (5, 8, 11, 14)]
    expected = [target.generate(**p, max_new_tokens=40, do_sample=False).tolist() for p in prompts]
    results, taus = [None] * len(prompts), [None] * len(prompts)

    def work(i):
        with hf_eagle3.record() as stats:
            results[i] = target.generate(
                **prompts[i], max_new_tokens=40, do_sample=False, assistant_model=draft
            ).tolist()
        taus[i] = stats.accepted_tokens

    for _ in range(3):
        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == expected
        with hf_eagle3.record() as alone:
            target.generate(**prompts[0], max_new_tokens=40, do_sample=False, assistant_model=draft)
        assert taus[0] == alone.accepted_tokens, "another thread's features reached this one's draft"


PEFTS_OWN_WARNING = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@PEFTS_OWN_WARNING
def test_a_draft_inside_peft(pair):
    peft = pytest.importorskip("peft")
    target, _ = pair
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(tiny_draft(target), config)
    with hf_eagle3.record() as adapted:
        out = target.generate(**INPUTS, max_new_tokens=40, do_sample=False, assistant_model=wrapped)
    assert out.tolist() == target.generate(**INPUTS, max_new_tokens=40, do_sample=False).tolist()
    with hf_eagle3.record() as original, wrapped.disable_adapter():
        target.generate(**INPUTS, max_new_tokens=40, do_sample=False, assistant_model=wrapped)
    assert adapted.accepted_tokens != original.accepted_tokens, "the adapter did nothing"


@PEFTS_OWN_WARNING
def test_a_target_inside_peft():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    target = tiny_target()
    draft = tiny_draft(target)
    config = peft.LoraConfig(target_modules=["q_proj", "up_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(target, config).eval()
    assert_same(wrapped, draft, INPUTS, **GREEDY)


def test_a_stored_embedding_that_differs_is_said_and_not_used(pair, caplog):
    """The target's rows win unless the checkpoint says that its own were trained."""
    target, plain = pair
    own = tiny_draft(target, has_embed_tokens=True)
    weights = plain.state_dict() | {"embed_tokens.weight": torch.randn(24, 32)}
    own.load_state_dict(weights)
    trained = tiny_draft(target, has_embed_tokens=True, embed_trained=True)
    trained.load_state_dict(weights)
    accepted = []
    for draft in (plain, own, trained):
        with hf_eagle3.record() as stats:
            assert_same(target, draft, INPUTS, max_new_tokens=40, do_sample=False)
            target.generate(**INPUTS, max_new_tokens=40, do_sample=False, assistant_model=draft)
        accepted.append(stats.accepted_tokens)
    assert accepted[0] == accepted[1] != accepted[2]
    assert "differs from the target's embedding" in caplog.text
    caplog.clear()
    same = tiny_draft(target, has_embed_tokens=True)
    same.load_state_dict(plain.state_dict() | {"embed_tokens.weight": target.get_input_embeddings().weight})
    with caplog.at_level("WARNING", "hf_eagle3"):
        target.generate(**INPUTS, **GREEDY, assistant_model=same)
    assert "embed_tokens" not in caplog.text


def test_a_draft_without_a_head_uses_the_targets_rows(pair):
    target, plain = pair
    bare = tiny_draft(target, has_lm_head=False)
    with_rows = tiny_draft(target)
    state = {name: tensor for name, tensor in plain.state_dict().items() if name != "lm_head.weight"}
    bare.load_state_dict(state)
    with_rows.load_state_dict(state | {"lm_head.weight": target.lm_head.weight[plain.target_token_ids]})
    accepted = []
    for draft in (bare, with_rows):
        with hf_eagle3.record() as stats:
            target.generate(**INPUTS, max_new_tokens=40, do_sample=False, assistant_model=draft)
        accepted.append(stats.accepted_tokens)
    assert accepted[0] == accepted[1]


class CallsTheTarget(LogitsProcessor):
    """Runs the target itself, as classifier-free guidance does: its features must not be taken for the pass's."""

    def __init__(self, target):
        self.target = target

    def __call__(self, input_ids, scores):
        return scores + 0.5 * self.target(input_ids.flip(1)).logits[:, -1]


def test_a_processor_may_run_the_target(pair):
    target, draft = pair
    processors = LogitsProcessorList([CallsTheTarget(target)])
    stats = assert_same(target, draft, left_padded([9, 6]), logits_processor=processors, max_new_tokens=25, **SAMPLING)
    assert stats.num_cycles


@pytest.mark.parametrize("do_sample", [False, True])
def test_the_hosts_own_loop_takes_chains(pair, do_sample):
    target, draft = pair
    view = draft.with_tree("host_chain", tree_depth=3)
    if do_sample:
        torch.manual_seed(0)
        out = target.generate(**INPUTS, max_new_tokens=20, assistant_model=view, **SAMPLING)
        assert out.shape == (1, 29)
        return
    (plain, _), (ours, _) = both(target, view, INPUTS, max_new_tokens=40, do_sample=False)
    assert ours.tolist() == plain.tolist()
    with pytest.raises(ValueError, match=r"batch_size = 1|one sequence"):
        target.generate(**left_padded([9, 5]), max_new_tokens=5, do_sample=False, assistant_model=view)


def test_the_hosts_loop_drafts_what_ours_does(pair, monkeypatch):
    """Cycle by cycle the host's loop accepts as many tokens of the same chain."""
    target, draft = pair
    accepted = []
    honest = hf_eagle3.Eagle3CandidateGenerator.update_candidate_strategy

    def watch(self, input_ids, scores, num_matches):
        accepted.append(int(num_matches))
        return honest(self, input_ids, scores, num_matches)

    monkeypatch.setattr(hf_eagle3.Eagle3CandidateGenerator, "update_candidate_strategy", watch)
    options = {**INPUTS, "max_new_tokens": 40, "do_sample": False}
    target.generate(**options, assistant_model=draft.with_tree("host_chain", tree_depth=3))
    with hf_eagle3.record() as stats:
        target.generate(**options, assistant_model=draft.with_tree("chain", tree_depth=3))
    # The host's first pass has no candidates; the last cycle may be cut by the length.
    assert accepted[1:-1] == stats.accepted_tokens[0][: len(accepted) - 2]


def tensor_bytes() -> int:
    gc.collect()
    seen = {}
    for thing in gc.get_objects():
        # Asking the thing itself wakes deprecated ones; what a compiler left behind holds no data.
        if issubclass(type(thing), torch.Tensor) and not issubclass(type(thing), FakeTensor):
            storage = thing.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
    return sum(seen.values())


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_memory_grows_by_key_and_value_slots_only(name):
    """2,000 tokens: all tensors alive at the end against those after 200, per token; a window's layers do not grow."""
    target = tiny_target(name, max_position_embeddings=4096)
    draft = tiny_draft(target)
    alive = {}

    class Weigher(hf_eagle3.CycleStreamer):
        tokens = 0

        def on_cycle(self, record):
            self.tokens += len(record.tokens)
            for mark in (200, 2000):
                if self.tokens >= mark and mark not in alive:
                    alive[mark] = tensor_bytes()

    target.generate(**INPUTS, max_new_tokens=2010, do_sample=False, assistant_model=draft, streamer=Weigher())
    config = target.config
    slot = 2 * 4 * config.num_key_value_heads * config.head_dim  # keys and values, float32
    per_token = (alive[2000] - alive[200]) / 1800
    # transformers before 5.17 gives an assistant a cache without windows.
    out = target.generate(**INPUTS, **GREEDY, return_dict_in_generate=True, assistant_model=draft)
    layers = out[CACHE].is_sliding.count(False)
    draft_slot = 2 * 4 * draft.config.num_key_value_heads * draft.config.head_dim
    # Storage grows in steps, so a step more or less is in the difference; tokens and validity are 8 + 1 bytes.
    slack = 512 * (layers * slot + draft_slot) / 1800
    assert per_token <= layers * slot + draft_slot + 16 + slack
