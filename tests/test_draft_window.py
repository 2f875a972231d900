"""A draft that attends to the first tokens and the latest ones only: what it sees, what it keeps, the text.

two first tokens, a window of three; the newest entry is token 7 of a sequence with one position of padding

column   0  1  2  3  4  5  6  7
token    .  1  2  3  4  5  6  7
seen        x  x        x  x  x          dropped: tokens 3 and 4
"""

import dataclasses

import pytest
import torch
from models import CACHE, common_tokens, left_padded, tiny_draft, tiny_target
from test_drafting import Watcher, sensitive
from test_generate import SAMPLING, assert_same

import hf_eagle3
from hf_eagle3 import Eagle3Config, Eagle3DraftModel
from hf_eagle3.generation.draft import kv
from hf_eagle3.generation.draft.eagle3 import Eagle3Drafter
from hf_eagle3.generation.draft.kv import DraftCache, Window


WINDOW, GREEDY, STATIC = 6, {"do_sample": False}, {"cache_implementation": "static"}
TREE, CHAIN = ("static", {"num_draft_tokens": 12, "tree_depth": 3, "tree_top_k": 4}), ("chain", {"tree_depth": 4})


@pytest.fixture
def drops_soon(monkeypatch):
    """Entries are dropped three at a time, not 64."""
    monkeypatch.setattr(Window, "slack", 3)


@pytest.fixture(scope="module")
def target():
    return tiny_target()


def drawn_cache(window: Window | None) -> DraftCache:
    """One layer, head size 1; the key of token t is t, of padding 0. Tokens 1 to 7 behind one position of padding."""
    config = Eagle3Config(hidden_size=2, num_attention_heads=1, head_dim=1, vocab_size=8)
    cache = DraftCache(config, 1, torch.float32, torch.device("cpu"), window)
    cache.reserve(8)
    cache.valid[0, 1:8] = True
    cache.keys[0][0, 0, :8, 0] = cache.values[0][0, 0, :8, 0] = torch.arange(8)
    cache.filled = 8
    return cache


def test_the_drawn_example(monkeypatch):
    monkeypatch.setattr(Window, "slack", 1)
    cache = drawn_cache(Window(3, num_sinks=2))
    seen = [1, 2, 5, 6, 7]
    assert cache.seen_below(1, level=2)[0].nonzero().flatten().tolist() == seen
    assert cache.seen(cache.valid[:, :8], torch.tensor([[7]]))[0, 0].nonzero().flatten().tolist() == seen
    cache.drop_before(8)  # token 8 will see itself, 7 and 6
    assert (cache.filled, cache.dropped) == (4, 4)
    assert cache.keys[0][0, 0, :4, 0].tolist() == cache.values[0][0, 0, :4, 0].tolist() == [1, 2, 6, 7]
    assert cache.valid[0].tolist() == [True] * 4 + [False] * (cache.valid.shape[1] - 4)
    trained = drawn_cache(Window(3, is_trained=True))  # moves on with every level, and has no first tokens
    assert trained.seen_below(1, level=2)[0].nonzero().flatten().tolist() == [7]


def test_first_tokens_inside_the_window_are_there_once(monkeypatch):
    """A sequence that begins late in its batch has nothing in front of the window."""
    monkeypatch.setattr(Window, "slack", 1)
    cache = drawn_cache(Window(3, num_sinks=2))
    cache.valid[0, :6] = False  # begins with token 6
    cache.drop_before(8)
    assert cache.keys[0][0, 0, :4, 0][cache.valid[0, :4]].tolist() == [6, 7]


def records_of(target, draft, inputs: dict, **options) -> list:
    watcher = Watcher()
    torch.manual_seed(0)
    target.generate(**inputs, max_new_tokens=30, assistant_model=draft, streamer=watcher, **options)
    return watcher.records


@torch.no_grad()
def windowed_scores(target, draft, text: list[int], record) -> list[float]:
    """Log-probability of the first node of each level by the public forward, attention limited as defined."""
    n = len(text) - 1
    states = target(torch.tensor([text[:-1]]), output_hidden_states=True).hidden_states
    fed = draft.fuse(torch.cat([states[i + 1] for i in draft.config.target_layer_ids], dim=-1))
    rows, known = target.get_input_embeddings().weight, draft.target_token_ids.tolist()
    path, node, scores = [], 0, []
    while (children := [i for i, parent in enumerate(record.tree_parents) if parent == node]) and len(path) < 3:
        index = torch.arange(n + len(path))
        is_entry = index < n
        newest = index[:, None].clamp(max=n - 1)
        sees = (index <= index[:, None]) & ((index > newest - WINDOW) | (index < kv.NUM_SINKS))
        sees = sees | (~is_entry & (index <= index[:, None]))

        def attend(query, key, value, layer, sees=sees):
            key, value = (part.repeat_interleave(2, dim=1) for part in (key, value))
            return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=sees)

        out = draft(inputs_embeds=rows[torch.tensor([text[1:] + path])], draft_hidden_states=fed, attend=attend)
        node = children[0]
        token = record.tree_tokens[node]
        scores.append(float(out.logits[0, -1].log_softmax(-1)[known.index(token)]) + (scores[-1] if scores else 0.0))
        fed, path = torch.cat((fed, out.draft_hidden_states[:, -1:]), dim=1), [*path, token]
    return scores


@pytest.mark.parametrize("layers", [1, 2])
def test_scores_are_those_of_what_is_seen(target, layers, drops_soon):
    draft = sensitive(tiny_draft(target, num_hidden_layers=layers)).with_tree(
        *TREE[:1], shared_noise=False, draft_window=WINDOW, **TREE[1]
    )
    inputs = left_padded([17])
    records = records_of(target, draft, inputs, **GREEDY)
    text, compared = inputs["input_ids"][0].tolist(), 0
    for record in records:
        if len(record.tree_tokens) > 1:
            found, node = [], 0
            expected = windowed_scores(target, draft, text, record)
            for _ in expected:
                node = record.tree_parents.index(node)
                found.append(record.tree_scores[node])
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
            compared += 1
        text += record.tokens
    assert compared > 4


@pytest.mark.parametrize("options", [GREEDY, SAMPLING, SAMPLING | STATIC], ids=["greedy", "sampling", "static"])
@pytest.mark.parametrize("lengths", [[19], [21, 3, 9]], ids=str)
@pytest.mark.parametrize(
    "changes", [{}, {"num_hidden_layers": 2}, {"sliding_window": WINDOW}], ids=["plain", "layers", "trained"]
)
def test_what_is_dropped_changes_no_tree(target, changes, lengths, options, monkeypatch):
    """The same masks over a cache that keeps everything give the same trees."""
    draft = sensitive(tiny_draft(target, **changes)).with_tree(TREE[0], draft_window=WINDOW, **TREE[1])
    found, dropped, honest = [], [], DraftCache.drop_before

    def watched(self, slot):
        honest(self, slot)
        dropped.append(self.dropped)

    monkeypatch.setattr(DraftCache, "drop_before", watched)
    for slack in (10**6, 3):
        monkeypatch.setattr(Window, "slack", slack)
        ends = {"eos_token_id": [5, 6]} if len(lengths) > 1 else {}
        found.append(records_of(target, draft, left_padded(lengths), **options, **ends))
    assert max(dropped) > 10
    assert len(found[0]) == len(found[1]) > 5
    for whole, part in zip(*found, strict=True):
        assert (part.tree_tokens, part.tree_parents) == (whole.tree_tokens, whole.tree_parents)
        torch.testing.assert_close(part.tree_scores, whole.tree_scores, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("options", [GREEDY, SAMPLING, SAMPLING | STATIC], ids=["greedy", "sampling", "static"])
@pytest.mark.parametrize("tree", [TREE, CHAIN, ("auto", {})], ids=["tree", "chain", "auto"])
def test_text_is_identical(target, tree, options, drops_soon):
    draft = tiny_draft(target).with_tree(tree[0], draft_window=WINDOW, **tree[1])
    ends = {"eos_token_id": [5, 6]}
    stats = assert_same(target, draft, left_padded([21, 3, 9]), max_new_tokens=40, **options, **ends)
    assert sum(sum(row) for row in stats.accepted_tokens) > 0


def test_text_is_identical_in_the_hosts_loop(target, drops_soon):
    draft = tiny_draft(target).with_tree("host_chain", tree_depth=3, draft_window=WINDOW)
    assert_same(target, draft, left_padded([21]), max_new_tokens=30, **GREEDY)


def test_text_with_adapters(drops_soon):
    peft = pytest.importorskip("peft")
    target = tiny_target()
    tokens = common_tokens(target, 6)
    options = {"r": 2, "init_lora_weights": False}
    wrapped = peft.get_peft_model(target, peft.LoraConfig(target_modules=["q_proj"], **options)).eval()
    draft = tiny_draft(target, tokens=tokens).with_tree(TREE[0], draft_window=WINDOW, **TREE[1])
    adapted = peft.get_peft_model(draft, peft.LoraConfig(target_modules=["fc", "k_proj"], **options)).eval()
    inputs, call = left_padded([21, 9]), {"max_new_tokens": 30, "do_sample": False}
    assert wrapped.generate(**inputs, **call, assistant_model=adapted).equal(wrapped.generate(**inputs, **call))


def test_the_cache_stays_at_the_window(target, drops_soon, monkeypatch):
    """However long prompt and answer are, in static shapes too."""
    caches = []
    monkeypatch.setattr(Eagle3Drafter, "close", lambda self, cache: caches.append(self.cache))
    draft = tiny_draft(target).with_tree(TREE[0], draft_window=WINDOW, **TREE[1])
    for length in (60, 300):
        inputs = left_padded([length])
        target.generate(**inputs, max_new_tokens=80, assistant_model=draft, **GREEDY)
    short, long = caches
    assert short.dropped > 100
    assert long.dropped > 340
    assert max(short.filled, long.filled) < kv.NUM_SINKS + WINDOW + 3 + 8
    assert short.valid.shape == long.valid.shape


def test_turns_that_share_a_cache(target, drops_soon):
    """What was kept rides along, and the next turn goes on with it."""
    draft = tiny_draft(target).with_tree(TREE[0], draft_window=WINDOW, **TREE[1])
    first = left_padded([25])["input_ids"]
    call = {"max_new_tokens": 12, "return_dict_in_generate": True, "do_sample": False}
    out = target.generate(first, assistant_model=draft, **call)
    longer = torch.cat((out.sequences, left_padded([5], seed=3)["input_ids"]), dim=1)
    held = vars(out[CACHE])["_hf_eagle3_draft_state"]
    assert held.dropped > 0
    assert held.keys[0].shape[2] < 25
    records = Watcher()
    second = target.generate(longer, assistant_model=draft, streamer=records, **{CACHE: out[CACHE]}, **call)
    assert second.sequences.equal(target.generate(longer, **call).sequences)
    fresh = records_of(target, draft, {"input_ids": longer}, do_sample=False)
    for found, expected in zip(records.records[1:4], fresh[1:4], strict=True):
        assert found.tree_tokens == expected.tree_tokens


def test_a_prefix_that_was_run_without_a_draft(target, drops_soon, monkeypatch):
    """Its slots have no entries, so that the first tokens are those after it."""
    caches = []
    monkeypatch.setattr(Eagle3Drafter, "close", lambda self, cache: caches.append(self.cache))
    draft = tiny_draft(target).with_tree(TREE[0], draft_window=WINDOW, **TREE[1])
    call = {"max_new_tokens": 30, "return_dict_in_generate": True, "do_sample": False}
    first = target.generate(left_padded([40])["input_ids"], **call)
    longer = torch.cat((first.sequences, left_padded([3], seed=3)["input_ids"]), dim=1)
    out = target.generate(longer, assistant_model=draft, **{CACHE: first[CACHE]}, **call)
    assert out.sequences.equal(target.generate(longer, **call).sequences)
    assert caches[0].dropped > 60
    assert caches[0].valid[0].sum() <= kv.NUM_SINKS + WINDOW + 3 + 8


def test_settings(tmp_path, target):
    """The configuration's window, the view's instead of it, 0 for none; kept by a file and by another tree."""
    draft = tiny_draft(target, draft_window=9)
    draft.save_pretrained(tmp_path)
    loaded = Eagle3DraftModel.from_pretrained(tmp_path)
    assert loaded.config.draft_window == 9
    found = [
        Window.of(view.config, view.tree_config.draft_window)
        for view in (
            loaded,
            loaded.with_tree("chain", draft_window=5).with_tree("static"),
            loaded.with_tree("chain", draft_window=0),
        )
    ]
    assert found == [Window(9, kv.NUM_SINKS), Window(5, kv.NUM_SINKS), None]
    narrower = loaded.config.changed({"sliding_window": 7})
    assert Window.of(narrower, None) == Window(7, is_trained=True)
    assert Window.of(narrower, 3) == Window(3, kv.NUM_SINKS)
    assert Window.of(dataclasses.replace(narrower, draft_window=None), None) == Window(7, is_trained=True)
    for wrong in (-1, True, "8"):
        with pytest.raises(ValueError, match="`draft_window` is"):
            draft.with_tree("chain", draft_window=wrong)
    with pytest.raises(ValueError, match="`draft_window` is 0"):
        Eagle3Config(draft_window=0)
    with pytest.raises(ValueError, match="SuffixDraft has none"):
        hf_eagle3.SuffixDraft().with_tree("auto", draft_window=8)
