"""What a tree's scores mean: each node's is the draft's own log-probability of its path, computed here the slow way.

The slow way uses the public forward only: entries with true features for the committed text, then the path's tokens
with the draft's own states fed back, all in one causal pass.

    entry        0         1        |  2 (level 1)   3 (level 2)
    token        x_1       x_2      |  node          node below it
    state fed    g_0       g_1      |  a of entry 1  a of entry 2
    position     0         1        |  2             3
"""

import pytest
import torch
from models import left_padded, tiny_draft, tiny_target

import hf_eagle3
from hf_eagle3.generation import candidate_generator
from hf_eagle3.generation.auto.calibration import Calibration
from hf_eagle3.generation.auto.planner import AutoPlanner
from hf_eagle3.generation.draft import eagle3
from hf_eagle3.generation.draft.eagle3 import Eagle3Drafter
from hf_eagle3.generation.draft.interface import DraftInputs
from hf_eagle3.generation.stats import PhaseTimer, new_stats
from hf_eagle3.target.target import Target


class Watcher(hf_eagle3.CycleStreamer):
    def __init__(self):
        self.records = []

    def on_cycle(self, record):
        self.records.append(record)


def sensitive(draft):
    """Weights scaled up, so that positions and states matter."""
    with torch.no_grad():
        for parameter in draft.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10)
    return draft


@torch.no_grad()
def slow_scores(target, draft, text: list[int], record) -> list[float]:
    """Log-probability of every node's path below `text`, whose last token is the root."""
    ids = torch.tensor([text])
    states = target(ids[:, :-1], output_hidden_states=True).hidden_states
    features = torch.cat([states[i + 1] for i in draft.config.target_layer_ids], dim=-1)
    true_states = draft.fuse(features)  # (1, n, H)
    rows = target.get_input_embeddings().weight
    known = {token: i for i, token in enumerate(draft.target_token_ids.tolist())}

    def log_q(path: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """(own state, log-probabilities) after the committed text and `path` below it."""
        fed = (
            true_states
            if not path
            else torch.cat((true_states, *[log_q(path[:i])[0] for i in range(len(path))]), dim=1)
        )
        embeds = rows[torch.tensor([text[1:] + path])]
        out = draft(inputs_embeds=embeds, draft_hidden_states=fed)
        return out.draft_hidden_states[:, -1:], out.logits[0, -1].log_softmax(-1)

    scores, paths = [0.0], [[]]
    for node in range(1, len(record.tree_tokens)):
        parent, token = record.tree_parents[node], record.tree_tokens[node]
        scores.append(scores[parent] + float(log_q(paths[parent])[1][known[token]]))
        paths.append([*paths[parent], token])
    return scores


@pytest.mark.parametrize("lengths", [[9], [11, 4, 7]], ids=str)
@pytest.mark.parametrize(
    "tree",
    [("static", {"num_draft_tokens": 12, "tree_depth": 3, "tree_top_k": 4}), ("chain", {"tree_depth": 4})],
    ids=str,
)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm_output": True, "fc_norm": True},
        {"num_hidden_layers": 2, "norm_before_residual": True},
        {"sliding_window": 5},  # the tree and half of the text
        {"sliding_window": 2},  # narrower than the tree is deep
    ],
    ids=str,
)
def test_scores_are_log_probabilities_of_paths(lengths, tree, changes):
    target = tiny_target()
    draft = sensitive(tiny_draft(target, **changes)).with_tree(tree[0], shared_noise=False, **tree[1])
    watcher, inputs = Watcher(), left_padded(lengths)
    torch.manual_seed(0)
    out = target.generate(
        **inputs, max_new_tokens=14, do_sample=True, eos_token_id=[5, 6], assistant_model=draft, streamer=watcher
    )
    check_scores(target, draft, lengths, out, watcher.records)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("counts", [[150, 150, 150], [150, 100, 7]], ids=str)
def test_a_long_prompt_read_in_parts_leaves_the_same(layers, counts, monkeypatch):
    """The newest entry of each row may stand in any part."""
    target = tiny_target()
    draft = sensitive(tiny_draft(target, num_hidden_layers=layers))
    torch.manual_seed(0)
    places = torch.arange(150).expand(3, -1)
    features = torch.randn(3, 150, draft.config.fused_features_size)
    inputs = DraftInputs(torch.randint(draft.config.vocab_size, (3, 150)), features, places, places, counts, 149)
    found = []
    for most in (eagle3.MOST_ELEMENTS, 1):
        monkeypatch.setattr(eagle3, "MOST_ELEMENTS", most)
        drafter = Eagle3Drafter(draft, Target(target, draft.config), 3, PhaseTimer(new_stats().phase_seconds, False))
        with torch.no_grad():
            drafter.read(inputs)
        valid = drafter.cache.valid[:, None, :, None]
        found.append((drafter.hidden, drafter.normed, *[keys * valid for keys in drafter.cache.keys]))
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)
    rows = target.get_input_embeddings().weight[inputs.tokens]
    for row, count in enumerate(counts):
        with torch.no_grad():
            slow = draft(inputs_embeds=rows[row : row + 1, :count], target_features=features[row : row + 1, :count])
        torch.testing.assert_close(found[0][0][row], slow.draft_hidden_states[0, -1:], rtol=1e-3, atol=1e-3)


def check_scores(target, draft, lengths: list[int], out: torch.Tensor, records: list) -> None:
    """Every record's scores against the slow way; `out` are the texts."""
    assert len(records) > 4 * len(lengths)
    width, seen = max(lengths), dict.fromkeys(range(len(lengths)), 0)
    for record in records:
        row = record.row
        if len(record.tree_tokens) > 1:
            text = out[row, width - lengths[row] : width + seen[row]].tolist()
            expected = slow_scores(target, draft, text, record)
            assert record.tree_tokens[0] == text[-1]
            torch.testing.assert_close(record.tree_scores, expected, rtol=1e-3, atol=1e-3)
        seen[row] += len(record.tokens)


@pytest.mark.parametrize("lengths", [[9], [11, 4, 7]], ids=str)
@pytest.mark.parametrize("widths", [[3, 1, 2], [2, 4, 0]], ids=str)
def test_scores_of_trees_as_auto_draws_them(lengths, widths, monkeypatch):
    """Levels of different widths, and after plain steps, whose features must be fed before the next tree."""
    turns = iter(range(1000))
    monkeypatch.setattr(AutoPlanner, "begin", lambda self, outlook: outlook.depth if next(turns) % 4 == 3 else 0)
    monkeypatch.setattr(AutoPlanner, "width", lambda self, level, scores: widths[level - 1])
    monkeypatch.setattr(Calibration, "__call__", lambda self, log_probs: log_probs)
    monkeypatch.setattr(AutoPlanner, "num_nodes", lambda self, scores, levels: min(9, scores.shape[1]))
    target = tiny_target()
    draft = sensitive(tiny_draft(target)).with_tree("auto", tree_depth=4, tree_top_k=4, shared_noise=False)
    watcher, inputs = Watcher(), left_padded(lengths)
    torch.manual_seed(0)
    out = target.generate(**inputs, max_new_tokens=30, do_sample=True, assistant_model=draft, streamer=watcher)
    check_scores(target, draft, lengths, out, watcher.records)
    trees = [record for record in watcher.records if len(record.tree_tokens) > 1]
    assert len(trees) >= 4
    assert {len(record.tree_tokens) for record in trees} == {10}


def test_a_tree_holds_the_best_nodes_there_are():
    """Exhaustively: with every token expanded, the tree's nodes are the best of all paths of two levels."""
    target = tiny_target()
    draft = sensitive(tiny_draft(target)).with_tree("static", num_draft_tokens=15, tree_depth=2, tree_top_k=6)
    watcher = Watcher()
    out = target.generate(
        **left_padded([9]), max_new_tokens=6, do_sample=False, assistant_model=draft, streamer=watcher
    )
    record, text = watcher.records[1], out[0, :10].tolist()
    vocabulary = draft.target_token_ids.tolist()
    everything = type(record)(
        **{
            **vars(record),
            "tree_tokens": [text[-1], *vocabulary, *(vocabulary * 6)],
            "tree_parents": [-1, *[0] * 6, *(parent for parent in range(1, 7) for _ in range(6))],
        }
    )
    best = sorted(slow_scores(target, draft, text, everything)[1:], reverse=True)[:15]
    torch.testing.assert_close(sorted(record.tree_scores[1:], reverse=True), best, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("window", [None, 2, 5])
def test_a_chain_in_the_hosts_loop_is_the_same_chain(monkeypatch, window):
    target, drawn = tiny_target(), []
    draft = sensitive(tiny_draft(target, sliding_window=window))
    draw = candidate_generator.draw_chain

    def watched(*args):
        drawn.append(draw(*args))
        return drawn[-1]

    monkeypatch.setattr(candidate_generator, "draw_chain", watched)
    watcher, options = Watcher(), {"max_new_tokens": 12, "do_sample": False}
    target.generate(**left_padded([9]), **options, assistant_model=draft.with_tree("host_chain", tree_depth=3))
    target.generate(
        **left_padded([9]), **options, assistant_model=draft.with_tree("chain", tree_depth=3), streamer=watcher
    )
    chain = next(record for record in watcher.records if len(record.tree_tokens) > 1)
    tokens, scores = drawn[0]
    assert tokens[0].tolist() == chain.tree_tokens[1:]
    found = scores.log_softmax(-1).gather(2, tokens[:, :, None])[0, :, 0].cumsum(0)
    torch.testing.assert_close(found.tolist(), chain.tree_scores[1:], rtol=1e-4, atol=1e-4)
