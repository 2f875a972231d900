"""A draft attached to a target: every call of its `generate` drafts, whoever makes it; the text stays its own.

target.generate(**inputs)                     plain
with attach(target, draft):
    target.generate(**inputs)                 drafted, the same text
    target.generate(**inputs, num_beams=2)    plain, said once
"""

import copy
import gc
import logging
import pickle
import weakref

import pytest
import torch
from models import CACHE, left_padded, tiny_draft, tiny_target
from transformers import GenerationConfig, pipeline

import hf_eagle3
from hf_eagle3 import embedded
from hf_eagle3.compat.versions import is_at_least
from hf_eagle3.generation import attached


OPTIONS = {"max_new_tokens": 20, "do_sample": False}


@pytest.fixture
def pair():
    target = tiny_target()
    draft = tiny_draft(target)
    yield target, draft
    hf_eagle3.detach(target)


def counted(target, inputs=None, **options):
    """(tokens, cycles) of one call."""
    with hf_eagle3.record() as stats:
        out = target.generate(**inputs or left_padded([9]), **OPTIONS | options)
    return (out if isinstance(out, torch.Tensor) else out.sequences).tolist(), stats


@pytest.mark.parametrize("lengths", [[9], [9, 4, 6]], ids=["one", "batch"])
@pytest.mark.parametrize("do_sample", [False, True])
def test_calls_draft_until_it_is_detached(pair, lengths, do_sample):
    target, draft = pair
    inputs = left_padded(lengths)

    def run():
        torch.manual_seed(3)
        return counted(target, inputs, do_sample=do_sample)

    plain, stats = run()
    assert stats.num_cycles == 0
    hf_eagle3.attach(target, draft)
    tokens, stats = run()
    assert tokens == plain
    assert sum(map(sum, stats.accepted_tokens)) > 0
    assert len(stats.accepted_tokens) == len(lengths)  # one call is recorded once
    hf_eagle3.detach(target)
    tokens, stats = run()
    assert (tokens, stats.num_cycles) == (plain, 0)


def test_blocks_nest_and_end(pair):
    target, draft = pair
    with hf_eagle3.attach(target, draft, "chain", tree_depth=2):
        with hf_eagle3.attach(target, draft, "chain", tree_depth=3) as inner:
            assert inner.draft.tree_config.tree_depth == 3
            assert max(counted(target)[1].tree_depths[0]) == 3
        assert max(counted(target)[1].tree_depths[0]) == 2
    assert counted(target)[1].num_cycles == 0
    assert draft.tree_config.tree_mode == "static", "the draft itself keeps its tree"


def test_an_assistant_of_the_call_goes_first(pair):
    target, draft = pair
    hf_eagle3.attach(target, draft, "chain", tree_depth=2)
    assert max(counted(target, assistant_model=draft)[1].tree_depths[0]) > 2
    assert max(counted(target, num_assistant_tokens=1)[1].tree_depths[0]) == 1


REFUSED = {
    "beams": {"num_beams": 2},
    "beams in a configuration": {"generation_config": GenerationConfig(num_beams=2, pad_token_id=0)},
    "no cache": {"use_cache": False},
    "prompt lookup": {"prompt_lookup_num_tokens": 3, "eos_token_id": 2},  # transformers 5.8 needs the latter
    "attentions": {"output_attentions": True, "return_dict_in_generate": True},
}


@pytest.mark.parametrize("options", REFUSED.values(), ids=REFUSED)
def test_what_no_draft_serves_runs_plain_and_says_so_once(pair, options, caplog):
    target, draft = pair
    plain, _ = counted(target, **options)
    hf_eagle3.attach(target, draft)
    for _ in range(2):
        tokens, stats = counted(target, **options)
        assert tokens == plain
        assert (stats.num_cycles, stats.mode) == (0, "plain")
        assert stats.reason
    said = [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING]
    assert len([line for line in said if "without its attached draft" in line]) == 1
    assert not [line for line in said if "assisted" in line], "transformers must not warn about an assistant"
    assert counted(target)[1].num_cycles > 0, "other calls still draft"


class Seen:
    def __init__(self):
        self.values, self.ends = [], 0

    def put(self, value):
        self.values.append(value.flatten().tolist())

    def end(self):
        self.ends += 1


def test_a_refusal_behind_the_prompt_streams_the_prompt_once():
    """Static shapes are refused for a hybrid target when `generate` has streamed the prompt."""
    if not is_at_least("5.24"):
        pytest.skip("plain generate itself has no static cache for hybrid targets in 5.8")
    target = tiny_target("qwen3_next")
    draft = tiny_draft(target)
    options = {"cache_implementation": "static"}
    expected = Seen()
    plain, _ = counted(target, **options, streamer=expected)
    with hf_eagle3.attach(target, draft):
        seen = Seen()
        tokens, stats = counted(target, **options, streamer=seen)
    assert tokens == plain
    assert "static" in stats.reason
    assert (seen.values, seen.ends) == (expected.values, 1)


def test_a_streamer_sees_the_same(pair):
    target, draft = pair
    expected, seen = Seen(), Seen()
    counted(target, streamer=expected)
    hf_eagle3.attach(target, draft)
    assert counted(target, streamer=seen)[1].num_cycles > 0
    assert (seen.values, seen.ends) == (expected.values, 1)


def test_a_callers_own_decoding_is_left_alone(pair):
    target, draft = pair
    hf_eagle3.attach(target, draft)
    given = []

    def decoding(model, input_ids, **kwargs):
        given.append(kwargs)
        return input_ids

    assert counted(target, custom_generate=decoding)[0] == left_padded([9])["input_ids"].tolist()
    assert len(given) == 1


def test_errors_stay_errors(pair):
    target, draft = pair
    hf_eagle3.attach(target, draft)
    with pytest.raises(ValueError, match="penguin"):
        target.generate(**left_padded([9]), **OPTIONS, penguin=1)
    target.lm_head.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="logits are NaN"):
        target.generate(**left_padded([9]), **OPTIONS)


def test_calls_continue_on_a_cache(pair):
    target, draft = pair
    first = {"return_dict_in_generate": True, "max_new_tokens": 8}

    def two_turns():
        out = target.generate(**left_padded([9]), do_sample=False, **first)
        ids = torch.cat([out.sequences, torch.tensor([[5, 7]])], dim=1)
        return target.generate(input_ids=ids, **{CACHE: vars(out)[CACHE]}, **OPTIONS).tolist()

    plain = two_turns()
    hf_eagle3.attach(target, draft)
    assert two_turns() == plain


# -- what the target shows of it --------------------------------------------------------------------------------------


def test_nothing_of_the_draft_is_on_the_target(pair, tmp_path):
    target, draft = pair
    target.save_pretrained(tmp_path / "before")

    def shown():
        return {*vars(target)}, [name for name, _ in target.named_parameters()], len(pickle.dumps(target))

    before = shown()
    hf_eagle3.attach(target, draft)
    assert shown() == before
    target.save_pretrained(tmp_path / "after")
    files = {path.name: path.read_bytes() for path in (tmp_path / "before").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "after").iterdir()} == files
    for copied in (copy.deepcopy(target), pickle.loads(pickle.dumps(target))):
        tokens, stats = counted(copied)
        assert (tokens, stats.num_cycles) == (counted(target)[0], 0)


def test_an_attachment_keeps_no_target_alive():
    target = tiny_target()
    hf_eagle3.attach(target, tiny_draft(target))
    counted(target)
    alive = weakref.ref(target)
    del target
    gc.collect()
    assert alive() is None


# -- who calls --------------------------------------------------------------------------------------------------------


def test_a_pipeline_drafts():
    target, draft, tokenizer = embedded.load_pair()
    generator = pipeline("text-generation", model=target, tokenizer=tokenizer)
    prompts = [[{"role": "user", "content": row["prompt"]}] for row in embedded.prompts()[:3]]
    plain = generator(prompts, **OPTIONS)
    with hf_eagle3.attach(target, draft), hf_eagle3.record() as stats:
        assert generator(prompts, **OPTIONS) == plain
    assert len(stats.accepted_tokens) == 3
    assert stats.acceptance_length > 1.5


@pytest.mark.parametrize("first", ["attached", "wrapped"])
def test_a_target_inside_peft_drafts(pair, first):
    peft = pytest.importorskip("peft")
    target, draft = pair
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    if first == "attached":
        hf_eagle3.attach(target, draft)
    wrapped = peft.get_peft_model(target, config).eval()
    if first == "wrapped":
        hf_eagle3.attach(wrapped, draft)
    tokens, stats = counted(wrapped)
    assert stats.num_cycles > 0
    hf_eagle3.detach(wrapped)
    plain, stats = counted(wrapped)
    assert (tokens, stats.num_cycles) == (plain, 0)


def test_a_target_in_training_drafts(pair):
    """As in rollouts of a trainer."""
    target, draft = pair
    target.train()
    target.gradient_checkpointing_enable()
    plain, _ = counted(target)
    hf_eagle3.attach(target, draft)
    assert counted(target)[0] == plain
    assert target.training


def test_a_call_is_logged(pair, caplog):
    target, draft = pair
    hf_eagle3.attach(target, draft)
    with caplog.at_level(logging.INFO, logger=attached.logger.name):
        counted(target, left_padded([9, 5]))
        counted(target, left_padded([9, 5]), num_beams=2)
    drafted, plain = (entry.getMessage() for entry in caplog.records if entry.levelno == logging.INFO)
    assert drafted.startswith("40 tokens in ")
    assert "tokens/s, tau " in drafted
    assert plain.startswith("40 tokens in ")
    assert "without the draft: `num_beams` is 2" in plain


# -- which draft ------------------------------------------------------------------------------------------------------


def test_a_draft_by_folder_and_the_known_one(pair, tmp_path):
    target, draft = pair
    draft.save_pretrained(tmp_path)
    with hf_eagle3.attach(target, tmp_path) as attachment:
        assert counted(target)[1].num_cycles > 0
        assert hf_eagle3.attach(target, str(tmp_path)).draft is attachment.draft, "loaded once"
    shipped, _, tokenizer = embedded.load_pair()
    inputs = {"input_ids": tokenizer("Tom has 3 apples.", return_tensors="pt")["input_ids"]}
    with hf_eagle3.attach(shipped):
        assert counted(shipped, inputs)[1].acceptance_length > 1.5


def test_for_target_takes_dtype_and_device_from_the_target():
    target, _, _ = embedded.load_pair(dtype=torch.bfloat16)
    draft = hf_eagle3.Eagle3DraftModel.for_target(target)
    assert draft.dtype == torch.bfloat16
    assert not draft.training
    assert hf_eagle3.Eagle3DraftModel.for_target(target) is draft, "loaded once"
    assert hf_eagle3.Eagle3DraftModel.for_target(target, dtype=torch.float32).dtype == torch.float32
    assert hf_eagle3.Eagle3DraftModel.for_target(str(embedded.TARGET)).config.vocab_size == target.config.vocab_size


@pytest.mark.parametrize(
    ("name", "similar"),
    [("Qwen/Qwen3-9B", "Qwen/Qwen3-8B"), ("./models/qwen3-8b", "Qwen/Qwen3-8B"), ("me/nothing-like-it-0815", None)],
)
def test_without_a_known_draft_similar_names_are_listed(name, similar):
    with pytest.raises(ValueError, match="No draft is known") as raised:
        hf_eagle3.Eagle3DraftModel.for_target(name)
    assert ("Similar names: " in str(raised.value)) == (similar is not None)
    assert similar is None or similar in str(raised.value)
    assert "hf-eagle3 train" in str(raised.value)


def test_what_is_no_draft_or_does_not_fit_is_refused_at_once(pair):
    target, _ = pair
    with pytest.raises(ValueError, match="`draft` is a LlamaForCausalLM"):
        hf_eagle3.attach(target, tiny_target())
    with pytest.raises(ValueError, match="belongs to another target"):
        hf_eagle3.attach(target, tiny_draft(tiny_target(hidden_size=48)))
    with pytest.raises(ValueError, match="No draft is known"):
        hf_eagle3.attach(target)
    assert counted(target)[1].num_cycles == 0
