"""Static shapes: the same text and the same logits at every node, few compilations, and nothing kept in memory that a
CUDA graph would use again.

    row 0   the cat sat | on  off  .   .  |        every pass: all rows, as many nodes, as many slots
    row 1   a   dog .   | and  .   .   .  |        dots: slots and nodes that a mask hides, rows that ended

What compiles here compiles by dynamo alone, with backends that run what they are given; inductor's run is nightly."""

import gc

import pytest
import torch
from architectures import NEWER, architecture_names, tiny_model
from models import CACHE, left_padded, tiny_draft, tiny_target
from node_criterion import worst_node_error
from test_architectures import REFUSED, model_or_skip, prompts
from test_generate import SAMPLING, assert_same
from test_node_criterion import TOLERANCE, without_padding, without_raggedness, without_tree, without_window
from transformers import (
    CompileConfig,
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    StaticCache,
)

from hf_eagle3.generation.auto import costs
from hf_eagle3.generation.compiled import shapes
from hf_eagle3.generation.compiled import slots as static_cache
from hf_eagle3.generation.draft import static as static_drafting
from hf_eagle3.generation.draft.eagle3 import Eagle3Drafter
from hf_eagle3.generation.tree.draft_tree import DraftTree
from hf_eagle3.generation.verify import masks as verify_masks
from hf_eagle3.generation.verify import tree_pass as target_pass


INDEXED = "(DynamicIndexedLayer hold more than slots|attention kinds)"  # with a newer host, with an older
TARGETS = ("llama", "qwen3", "mixtral", "gemma3", "mistral", "gpt2")
PROMPTS = ([9], [13, 4, 9])
STATIC = {"cache_implementation": "static"}
GREEDY = {"do_sample": False}
TREES = {
    "tree": ("static", {"num_draft_tokens": 40, "tree_depth": 4, "tree_top_k": 6}),
    "chain": ("chain", {"tree_depth": 4}),
    "auto": ("auto", {"num_draft_tokens": 40, "tree_depth": 4, "tree_top_k": 6}),
}


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch._dynamo.reset()
    static_drafting.forget_storage()


@pytest.fixture(scope="module", params=TARGETS)
def pair(request):
    target = tiny_target(request.param)
    return target, tiny_draft(target)


def compiling(backend, **options) -> dict:
    """Options of a call whose passes are compiled by `backend`, on any device."""
    config = CompileConfig(backend=backend, mode=None, **options)
    config._compile_all_devices = True
    return STATIC | {"compile_config": config}


class Counted:
    """A backend that counts what it compiles and runs it as it is."""

    def __init__(self):
        self.graphs = 0

        def backend(graph, example_inputs):
            self.graphs += 1
            return graph.forward

        self.options = compiling(backend, fullgraph=True)


# -- the text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLING], ids=["greedy", "sampling"])
@pytest.mark.parametrize("lengths", PROMPTS, ids=str)
@pytest.mark.parametrize("shape", TREES)
def test_text_is_identical(pair, shape, lengths, sampling):
    target, draft = pair
    mode, sizes = TREES[shape]
    stats = assert_same(
        target, draft.with_tree(mode, **sizes), left_padded(lengths), max_new_tokens=30, **sampling, **STATIC
    )
    assert shape != "tree" or sum(map(sum, stats.accepted_tokens)) > 0, "nothing was accepted: the test shows nothing"


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLING], ids=["greedy", "sampling"])
def test_rows_that_end_early(pair, sampling):
    options = {"max_new_tokens": 40, "eos_token_id": [5, 6, 7]}
    stats = assert_same(*pair, left_padded([13, 4, 9, 7, 11, 3]), **options, **sampling, **STATIC)
    assert len(set(stats.generated_lengths)) > 1, "all rows ended together: the test shows nothing"


def test_a_tree_with_fewer_nodes_than_levels(pair):
    for sizes in ({"num_draft_tokens": 2, "tree_depth": 3, "tree_top_k": 1}, {"num_draft_tokens": 1, "tree_top_k": 2}):
        draft = pair[1].with_tree("static", **sizes)
        for options in (STATIC, {}):
            stats = assert_same(pair[0], draft, left_padded([5]), max_new_tokens=9, **GREEDY, **options)
            assert max(map(max, stats.tree_depths)) <= sizes["num_draft_tokens"]


@pytest.mark.parametrize("max_new_tokens", [1, 2, 3, 7])
def test_the_length_limit_is_met_exactly(pair, max_new_tokens):
    assert_same(*pair, left_padded([5, 8]), max_new_tokens=max_new_tokens, **GREEDY, **STATIC)


class _Rising(LogitsProcessor):
    """Of the user's own making, not known to be row-wise."""

    def __call__(self, input_ids, scores):
        return scores + input_ids.shape[1] * torch.linspace(0, 0.05, scores.shape[1])


@pytest.mark.parametrize(
    "processor", [_Rising(), RepetitionPenaltyLogitsProcessor(1.5)], ids=["in lockstep", "row by row"]
)
def test_logits_processors(processor):
    target = tiny_target()
    options = {"logits_processor": LogitsProcessorList([processor]), "eos_token_id": 5, "max_new_tokens": 25}
    for sampling in (GREEDY, SAMPLING):
        assert_same(target, tiny_draft(target), left_padded([6, 12, 3]), **options, **sampling, **STATIC)


def test_other_ways_in():
    target = tiny_target()
    draft, ids = tiny_draft(target), left_padded([40])
    assert_same(target, draft, ids, max_new_tokens=20, prefill_chunk_size=8, **GREEDY, **STATIC)
    embeds = {"inputs_embeds": target.get_input_embeddings()(ids["input_ids"]).detach()}
    assert_same(target, draft, embeds, max_new_tokens=20, **GREEDY, **STATIC)
    assert_same(target, draft, left_padded([9]), max_new_tokens=20, num_return_sequences=3, **SAMPLING, **STATIC)
    short = {"input_ids": torch.tensor([[1]])}
    assert_same(target, draft, short, max_new_tokens=20, **GREEDY, **STATIC)


@pytest.mark.nightly
@pytest.mark.parametrize("name", [name for name in architecture_names() if name not in REFUSED])
def test_text_is_identical_or_the_architecture_refused(name):
    target = model_or_skip(name)
    draft = tiny_draft(target, tokens=torch.arange(3, 9))
    for lengths in prompts(name):
        call = {**left_padded(lengths), "max_new_tokens": 24, **GREEDY}
        if shapes.static_mode(target).kind != "tree":
            with pytest.raises(ValueError, match=r"'static' does not go with a draft on .* Leave it out"):
                target.generate(**call, assistant_model=draft, **STATIC)
            return
        plain = target.generate(**call)
        assert target.generate(**call, assistant_model=draft, **STATIC).tolist() == plain.tolist()


# -- the draft, which the text cannot show ----------------------------------------------------------------------------


def drafted_trees(target, draft, inputs: dict, **options) -> list[DraftTree]:
    """The trees of a call that are as deep as the call allows."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Eagle3Drafter, "grow", recorded(Eagle3Drafter.grow, found))
        torch.manual_seed(0)
        target.generate(**inputs, assistant_model=draft, max_new_tokens=40, **options)
    return [tree for tree in found if tree.max_depth == max(tree.max_depth for tree in found)]


def recorded(honest, found: list):
    def grow(self, *args):
        found.append(honest(self, *args))
        return found[-1]

    return grow


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLING], ids=["greedy", "sampling"])
@pytest.mark.parametrize("lengths", [[9], [13, 4, 9], [2]], ids=str)
@pytest.mark.parametrize(
    "changes", [{}, {"sliding_window": 6, "num_hidden_layers": 2}], ids=["plain", "window, layers"]
)
@pytest.mark.parametrize("shape", ["tree", "chain"])
def test_trees_are_those_of_growing_shapes(shape, changes, lengths, sampling):
    target = tiny_target()
    mode, sizes = TREES[shape]
    draft = tiny_draft(target, **changes).with_tree(mode, **sizes)
    inputs = left_padded(lengths)
    ends = {"eos_token_id": [5, 6]} if len(lengths) > 1 else {}
    growing, fixed = (drafted_trees(target, draft, inputs, **sampling, **ends, **x) for x in ({}, STATIC))
    assert len(growing) > 5
    for one, other in zip(growing, fixed, strict=False):  # with static shapes the last ones are as deep as any
        assert other.tokens.tolist() == one.tokens.tolist()
        assert other.parents.tolist() == one.parents.tolist()
        assert torch.equal(other.ancestors, one.ancestors)
        assert torch.equal(other.depths, one.depths)
        torch.testing.assert_close(other.scores, one.scores, atol=1e-4, rtol=1e-4)


def test_auto_drafts_level_by_level():
    target = tiny_target()
    draft = tiny_draft(target).with_tree("auto", num_draft_tokens=40, tree_depth=4, tree_top_k=6)
    costs.forget_costs()
    stats = assert_same(target, draft, left_padded([13, 4, 9]), max_new_tokens=60, **SAMPLING, **STATIC)
    assert len({choice.levels for choice in stats.choices}) > 1
    assert {choice.nodes + 1 for choice in stats.choices} <= {1, 8, 24, 41}
    assert {entry["static"] for entry in costs.relative_costs(target, draft.midlayer)} == {True}


# -- every node -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("lengths", [[12], [21, 9, 15]], ids=str)
@pytest.mark.parametrize("name", TARGETS)
def test_every_node_of_a_tree(name, lengths, attention):
    target = tiny_target(name)
    target.set_attn_implementation(attention)
    assert worst_node_error(target, left_padded(lengths), **STATIC) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "lengths", "mutation"),
    [
        ("llama", [12], without_tree),
        ("llama", [12, 3, 7], without_padding),
        ("llama", [21, 9, 15], without_raggedness),
        ("mistral", [12], without_window),
    ],
    ids=lambda value: value.__name__ if callable(value) else str(value),
)
def test_a_wrong_mask_is_seen(name, lengths, mutation, monkeypatch):
    monkeypatch.setattr(target_pass, "verification_masks", mutation(verify_masks.verification_masks))
    assert worst_node_error(tiny_target(name), left_padded(lengths), **STATIC) > 100 * TOLERANCE


def stale_slots_visible(patch):
    pad = torch.nn.functional.pad
    patch.setattr(
        torch.nn.functional, "pad", lambda x, widths, value=0: pad(x, widths, value=0 if value < -1e30 else value)
    )


def one_slot_off(patch):
    honest = static_cache.StaticSlots.begin_pass

    def begin(self, write, shortest, num_nodes):
        honest(self, write, shortest, num_nodes)
        for marks in self.indices.values():
            marks.write += 1

    patch.setattr(static_cache.StaticSlots, "begin_pass", begin)


def moved_late(patch):
    def write(self, key_states, value_states):
        write = self.indices.write[: key_states.shape[2]]
        self.keys[:, :, write], self.values[:, :, write] = key_states, value_states
        self.move()
        return self.keys, self.values

    patch.setattr(static_cache.StaticSlotLayer, "write", write)


def never_moved(patch):
    patch.setattr(static_cache.StaticSlots, "keep", lambda self, origin, goal: None)


@pytest.mark.parametrize("mutation", [stale_slots_visible, one_slot_off, moved_late, never_moved])
@pytest.mark.parametrize("lengths", [[12], [21, 9, 15]], ids=str)
def test_a_wrong_slot_is_seen(lengths, mutation, monkeypatch):
    mutation(monkeypatch)
    assert worst_node_error(tiny_target(), left_padded(lengths), **STATIC) > 100 * TOLERANCE


# -- what is compiled -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["tree", "chain"])
@pytest.mark.parametrize("lengths", PROMPTS, ids=str)
def test_few_graphs_without_breaks_serve_all_calls(lengths, shape):
    target, counted = tiny_target(), Counted()
    mode, sizes = TREES[shape]
    draft = tiny_draft(target).with_tree(mode, **sizes)
    other = SAMPLING | {"temperature": 1.3, "top_p": 0.8}
    for longer in (0, 3, 11):
        inputs = left_padded([length + longer for length in lengths])
        call = {**inputs, "max_new_tokens": 30 + longer, "eos_token_id": [5, 6]}
        # The target's pass, absorbing, growing a tree; and growing one under shared noise.
        for sampling, graphs in ((GREEDY, 3), (SAMPLING, 4), (other, 4)):
            torch.manual_seed(0)
            plain = target.generate(**call, **sampling)
            torch.manual_seed(0)
            ours = target.generate(**call, **sampling, assistant_model=draft, **counted.options)
            assert ours.tolist() == plain.tolist()
            assert counted.graphs == (4 if longer else graphs), f"prompts {longer} longer, {sampling}"


def test_auto_compiles_few_graphs():
    target, counted = tiny_target(), Counted()
    draft = tiny_draft(target).with_tree("auto", num_draft_tokens=40, tree_depth=4, tree_top_k=6)
    for seed in range(3):
        inputs = left_padded([9 + seed], seed=seed)
        plain = target.generate(**inputs, max_new_tokens=100, **GREEDY)
        ours = target.generate(**inputs, max_new_tokens=100, assistant_model=draft, **GREEDY, **counted.options)
        assert ours.tolist() == plain.tolist()
    # The draft's two, and the target's for its first number of nodes, for any other, and for a single one.
    assert counted.graphs <= 2 + 3


@pytest.mark.nightly
@pytest.mark.parametrize(
    "name",
    ["gpt_oss", "deepseek_v3", "gemma2[softcap]", "opt", "phi3", "cohere2", "qwen3", "mixtral", "gemma3", "gpt2"],
)
def test_no_graph_breaks_in_other_architectures(name):
    target, counted = tiny_model(name), Counted()
    draft, call = tiny_draft(target, tokens=torch.arange(3, 9)), {**left_padded([13, 4, 9]), "max_new_tokens": 24}
    ours = target.generate(**call, **GREEDY, assistant_model=draft, **counted.options)
    assert ours.tolist() == target.generate(**call, **GREEDY).tolist()
    assert counted.graphs == 3


def test_a_python_number_in_a_pass_would_be_seen(monkeypatch):
    """What the tests above catch: a slot that is no tensor is compiled in, and compiled again at the next pass."""

    def write(self, key_states, value_states):
        start = self.span.write
        self.keys[:, :, start : start + key_states.shape[2]] = key_states
        self.values[:, :, start : start + key_states.shape[2]] = value_states
        return self.keys, self.values

    monkeypatch.setattr(static_cache.StaticSlotLayer, "write", write)
    target, counted = tiny_target(), Counted()
    target.generate(
        **left_padded([9]), max_new_tokens=30, assistant_model=tiny_draft(target), **GREEDY, **counted.options
    )
    assert counted.graphs > 3


class GraphMemory:
    """
    A backend whose results live as long as a CUDA graph's: at the next cycle their memory is taken back. Values turn
    into NaN, and the tensors themselves lose their elements, so that even looking at one fails.
    """

    def __init__(self):
        self.given: list[torch.Tensor] = []
        self.taken_back = 0

        def backend(graph, example_inputs):
            def replay(*args):
                results = [x.clone() if isinstance(x, torch.Tensor) else x for x in graph.forward(*args)]
                self.given += [x for x in results if isinstance(x, torch.Tensor)]
                return tuple(results)

            return replay

        self.options = compiling(backend, fullgraph=True)

    def step(self) -> None:
        for tensor in self.given:
            tensor.fill_(torch.nan if tensor.is_floating_point() else -1)
            tensor.data = torch.empty(0)
        self.taken_back += len(self.given)
        self.given.clear()


@pytest.fixture
def memory(monkeypatch):
    found = GraphMemory()
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", found.step)
    return found


EVERYTHING = {
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
    "output_hidden_states": True,
}


@pytest.mark.parametrize(
    ("shape", "lengths", "sampling"),
    [("tree", [9], SAMPLING), ("tree", [13, 4, 9], GREEDY), ("chain", [13, 4, 9], SAMPLING), ("auto", [9], GREEDY)],
    ids=str,
)
def test_nothing_outlives_a_replay(shape, lengths, sampling, memory):
    target = tiny_target()
    mode, sizes = TREES[shape]
    draft = tiny_draft(target).with_tree(mode, **sizes)
    options = {"max_new_tokens": 30, "eos_token_id": [5, 6], **sampling, **EVERYTHING}
    torch.manual_seed(0)
    plain = target.generate(**left_padded(lengths), **options)
    torch.manual_seed(0)
    ours = target.generate(**left_padded(lengths), **options, assistant_model=draft, **memory.options)
    assert ours.sequences.tolist() == plain.sequences.tolist()
    assert memory.taken_back > 10
    memory.step()  # another call's first replay
    near = {"atol": 1e-3, "rtol": 1e-3}
    for step in range(len(plain.logits)):
        alive = [row for row, length in enumerate(ours.speculation.generated_lengths) if length > step]
        for name in ("logits", "scores"):
            torch.testing.assert_close(getattr(ours, name)[step][alive], getattr(plain, name)[step][alive], **near)
        for ours_layer, plain_layer in zip(ours.hidden_states[step], plain.hidden_states[step], strict=True):
            torch.testing.assert_close(ours_layer[alive], plain_layer[alive], **near)


def features_of_a_cycle_ago(patch):
    honest, kept = shapes.StaticShapes.forward, []

    def forward(self, inputs):
        outputs = honest(self, inputs)
        kept.append(outputs.hidden_states)
        outputs.hidden_states = kept[-2:][0]
        return outputs

    patch.setattr(shapes.StaticShapes, "forward", forward)


def states_of_rows_that_go_on(patch):
    """As the drafter of growing shapes does it, whose states lie in memory of their own."""
    patch.setattr(static_drafting.StaticDrafter, "select", keeping_states(static_drafting.StaticDrafter.select))


def keeping_states(honest):
    def select(self, order):
        hidden = self.hidden[order]
        honest(self, order)
        self.hidden = hidden

    return select


@pytest.mark.parametrize("mutation", [features_of_a_cycle_ago, states_of_rows_that_go_on])
def test_what_outlives_a_replay_is_seen(mutation, memory, monkeypatch):
    mutation(monkeypatch)
    target = tiny_target()
    with pytest.raises((ValueError, IndexError, RuntimeError)):
        target.generate(
            **left_padded([13, 4, 9]),
            max_new_tokens=30,
            eos_token_id=[5, 6],
            assistant_model=tiny_draft(target),
            **GREEDY,
            **memory.options,
        )


@pytest.mark.nightly
@pytest.mark.parametrize("lengths", PROMPTS, ids=str)
def test_compiled_by_inductor(lengths):
    target = tiny_target()
    draft, options = tiny_draft(target), compiling("inductor")
    for sampling in (GREEDY, SAMPLING):
        torch.manual_seed(0)
        plain = target.generate(**left_padded(lengths), max_new_tokens=40, **sampling)
        torch.manual_seed(0)
        ours = target.generate(**left_padded(lengths), max_new_tokens=40, assistant_model=draft, **sampling, **options)
        assert ours.tolist() == plain.tolist()


def test_without_an_accelerator_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: pytest.fail("compiled"))
    target = tiny_target()
    assert_same(target, tiny_draft(target), left_padded([9]), max_new_tokens=10, **GREEDY, **STATIC)


@pytest.mark.parametrize("options", [{"disable_compile": True}, {}], ids=["disabled", "on"])
def test_disable_compile_is_honoured(options):
    target, counted = tiny_target(), Counted()
    target.generate(
        **left_padded([9]),
        max_new_tokens=10,
        assistant_model=tiny_draft(target),
        **GREEDY,
        **counted.options,
        **options,
    )
    assert (counted.graphs == 0) == bool(options)


# -- what is handed back, and what stays ------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", PROMPTS, ids=str)
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3"])
def test_the_cache_is_the_hosts_static_one(name, lengths):
    target = tiny_target(name)
    options = {"max_new_tokens": 20, "return_dict_in_generate": True, "pad_token_id": 0, "eos_token_id": [5, 6]}
    plain, ours = (
        target.generate(**left_padded(lengths), **GREEDY, **options, **STATIC, **draft)
        for draft in ({}, {"assistant_model": tiny_draft(target)})
    )
    assert ours.sequences.tolist() == plain.sequences.tolist()
    assert type(ours[CACHE]) is type(plain[CACHE])
    ends = ours.speculation.generated_lengths
    for own, host in zip(ours[CACHE].layers, plain[CACHE].layers, strict=True):
        assert type(own) is type(host)
        assert int(own.get_seq_length()) == int(host.get_seq_length())
        assert own.keys.shape == host.keys.shape
        for row, end in enumerate(ends):
            held = slice(None) if end == max(ends) else slice(0, max(lengths) + end - 1)
            if own.is_sliding and end != max(ends):
                continue
            torch.testing.assert_close(own.keys[row, :, held], host.keys[row, :, held], atol=1e-4, rtol=1e-3)
            torch.testing.assert_close(own.values[row, :, held], host.values[row, :, held], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLING], ids=["greedy", "sampling"])
@pytest.mark.parametrize("lengths", [*PROMPTS, [7, 13, 4, 9]], ids=str)
@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_a_static_cache_of_the_callers_is_filled_turn_by_turn(name, lengths, sampling):
    target = tiny_target(name, **({"sliding_window": 64} if name == "mistral" else {}))
    length = 200 if name != "mistral" else 64
    texts, caches = [], []
    for draft in ({}, {"assistant_model": tiny_draft(target)}):
        cache, call = StaticCache(config=target.config, max_cache_len=length), left_padded(lengths)
        if not shapes.keeps_every_column(cache):
            pytest.skip("before transformers 5.24 a layer with a window does not say whether it can be cropped")
        for turn, count in enumerate((9, 5, 4)):
            torch.manual_seed(turn)
            options = sampling | {"max_new_tokens": count, "eos_token_id": [5, 6], "pad_token_id": 0}
            out = target.generate(**call, **options, **{CACHE: cache}, **draft)
            texts.append(out.tolist())
            ids = torch.cat((out, torch.full((len(out), 2), 11)), dim=1)
            mask = torch.cat((call["attention_mask"], torch.ones_like(ids[:, call["input_ids"].shape[1] :])), dim=1)
            call = {"input_ids": ids, "attention_mask": mask}
        caches.append(cache)
    assert texts[:3] == texts[3:]
    for plain, ours in zip(*(cache.layers for cache in caches), strict=True):
        assert int(ours.get_seq_length()) == int(plain.get_seq_length()) > 0
        torch.testing.assert_close(ours.keys, plain.keys, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(ours.values, plain.values, atol=1e-4, rtol=1e-3)


def test_a_static_cache_of_the_callers_stays_as_it_was_where_a_call_fails():
    target = tiny_target()
    call = {**left_padded([9]), "assistant_model": tiny_draft(target), **GREEDY}
    small = StaticCache(config=target.config, max_cache_len=16)
    with pytest.raises(ValueError, match="room for 16 tokens, and this call needed 28"):
        target.generate(**call, max_new_tokens=20, **{CACHE: small})
    assert not small.layers[0].is_initialized
    assert target.generate(**call, max_new_tokens=8, **{CACHE: small}).shape == (1, 17)

    windows = tiny_target("mistral")
    cache = StaticCache(config=windows.config, max_cache_len=200)
    with pytest.raises(ValueError, match="forget columns behind their sliding window"):
        windows.generate(**call | {"assistant_model": tiny_draft(windows)}, max_new_tokens=5, **{CACHE: cache})


def test_a_cache_that_was_handed_back_is_nobody_elses():
    target, counted = tiny_target(), Counted()
    draft = tiny_draft(target)
    options = {"max_new_tokens": 20, "return_dict_in_generate": True, "assistant_model": draft, **GREEDY}
    first = target.generate(**left_padded([9]), **options, **counted.options)[CACHE]
    keys = [layer.keys.clone() for layer in first.layers]
    target.generate(**left_padded([12], seed=1), **options, **counted.options)
    for before, layer in zip(keys, first.layers, strict=True):
        assert torch.equal(before, layer.keys)


def test_storage_is_used_again_and_goes_with_its_target():
    target, counted = tiny_target(), Counted()
    draft, found = tiny_draft(target), []
    honest = static_cache.StaticSlots.fill

    def fill(self, cache):
        found.append(self)
        return honest(self, cache)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(static_cache.StaticSlots, "fill", fill)
        for new_tokens in (10, 30):
            options = {"max_new_tokens": new_tokens, "assistant_model": draft, **GREEDY}
            target.generate(**left_padded([9]), **options, **counted.options)
        assert found[0] is found[1]
        target.generate(**left_padded([9]), max_new_tokens=200, assistant_model=draft, **GREEDY, **counted.options)
        assert found[2] is not found[0]
        target.generate(**left_padded([9]), max_new_tokens=10, assistant_model=draft, **GREEDY, **STATIC)
    assert len(shapes.KEPT_SLOTS._pieces) == 1
    del target
    found.clear()
    torch._dynamo.reset()
    gc.collect()
    assert len(shapes.KEPT_SLOTS._pieces) == 0


def test_what_an_earlier_call_had_still_to_move_is_forgotten():
    target, counted = tiny_target(), Counted()
    draft = tiny_draft(target)
    target.generate(**left_padded([9]), max_new_tokens=10, assistant_model=draft, **GREEDY, **counted.options)
    longer = {**left_padded([60]), "max_new_tokens": 10, "return_dict_in_generate": True, "output_logits": True}
    plain = target.generate(**longer, **GREEDY)
    ours = target.generate(**longer, **GREEDY, assistant_model=draft, **counted.options)
    for one, other in zip(ours.logits, plain.logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_nan_of_an_earlier_call_does_not_stay():
    target, counted = tiny_target(), Counted()
    draft = tiny_draft(target)
    call = {**left_padded([9]), "max_new_tokens": 20, "assistant_model": draft, **GREEDY}
    expected = target.generate(**call, **counted.options)
    slots = shapes.KEPT_SLOTS.take(target)
    for layer in slots.layers:
        layer.keys.fill_(torch.nan)
        layer.values.fill_(torch.nan)
    shapes.KEPT_SLOTS.put(target, slots)
    columns = static_drafting.KEPT_CACHES.take(draft.midlayer)
    for held in (*columns.keys, *columns.values):
        held.fill_(torch.nan)
    static_drafting.KEPT_CACHES.put(draft.midlayer, columns)
    assert target.generate(**call, **counted.options).tolist() == expected.tolist()


def test_max_cache_len_makes_room_for_later_calls():
    target = tiny_target()
    if not hasattr(target.generation_config, "max_cache_len"):
        pytest.skip("this transformers has no `max_cache_len`")
    draft, found = tiny_draft(target), []
    for room in ({}, {"max_cache_len": 500}):
        out = target.generate(
            **left_padded([9]),
            max_new_tokens=10,
            assistant_model=draft,
            return_dict_in_generate=True,
            **GREEDY,
            **STATIC,
            **room,
        )
        found.append(out[CACHE].layers[0].max_cache_len)
    assert found == [18, 500]


def test_where_no_draft_may_help_the_host_has_its_static_cache():
    target = tiny_model("llama[dynamic]", max_position_embeddings=24)
    draft = tiny_draft(target, tokens=torch.arange(3, 9))
    options = {"max_new_tokens": 24, "return_dict_in_generate": True, **GREEDY, **STATIC}
    plain, ours = (target.generate(**left_padded([20]), **options, assistant_model=x) for x in (None, draft))
    assert ours.speculation.mode == "plain"
    assert type(ours[CACHE]) is type(plain[CACHE])
    # Older hosts keep frequencies that grew once, so that plain generate does not repeat itself.
    assert ours.sequences.tolist() == plain.sequences.tolist() or not NEWER


# -- what does not go -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("qwen3_next", STATIC, r"`cache_implementation` 'static' .* recurrent .* Leave it out"),
        ("llama", STATIC | EVERYTHING | {"output_attentions": True}, r"`output_attentions` .* leave one out"),
    ],
    ids=["recurrent", "attentions"],
)
def test_refusals_name_option_value_and_remedy(name, options, message):
    target = tiny_target(name)
    with pytest.raises(ValueError, match=message):
        target.generate(**left_padded([9]), max_new_tokens=5, assistant_model=tiny_draft(target), **options, **GREEDY)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("bloom", "hooks on its layers"), ("deepseek_v32", INDEXED)],
)
def test_layers_that_are_more_than_slots_are_refused(name, reason):
    if name not in architecture_names():
        pytest.skip(f"this transformers has no {name}")
    target = tiny_model(name)
    draft = tiny_draft(target, tokens=torch.arange(3, 9))
    with pytest.raises(ValueError, match=rf"'static' does not go with a draft on {type(target).__name__}: .*{reason}"):
        target.generate(**left_padded([9]), max_new_tokens=5, assistant_model=draft, **GREEDY, **STATIC)


def test_a_cache_of_the_users_beside_it_is_refused():
    target = tiny_target()
    call = {**left_padded([9]), "max_new_tokens": 5, "assistant_model": tiny_draft(target), **GREEDY, **STATIC}
    with pytest.raises(ValueError, match="`cache_implementation`"):
        target.generate(**call, **{CACHE: DynamicCache()})
    assert target.generate(**call).shape == (1, 14)


def test_the_hosts_own_loop_is_refused():
    target = tiny_target()
    draft = tiny_draft(target).with_tree("host_chain")
    with pytest.raises(ValueError, match="'static' does not go with the tree mode 'host_chain'"):
        target.generate(**left_padded([9]), max_new_tokens=5, assistant_model=draft, **GREEDY, **STATIC)
