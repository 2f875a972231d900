"""The central correctness check: every tree node's logits equal those of decoding its path token by token.

prompt rows (left padded, ragged)  ->  verify random trees  ->  keep a random path per row  ->  verify again
                                                  |                                               |
                                        compare all nodes                               compare all nodes

Both sides start from what the host's `generate` prepares. The reference is plain generate, made to write the path.
"""

import torch
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList

from hf_eagle3.compat.caches import cached_columns
from hf_eagle3.compat.calls import cache_of, prefill, put_cache
from hf_eagle3.configuration_eagle3 import Eagle3Config
from hf_eagle3.generation.batch import Batch
from hf_eagle3.generation.compiled.shapes import asks_for_static, stash_static_request, static_shapes
from hf_eagle3.generation.prefill import prepared_cache
from hf_eagle3.generation.settings import Settings
from hf_eagle3.generation.tree.draft_tree import DraftTree, ancestor_mask, chain
from hf_eagle3.generation.tree.policy import FixedPolicy
from hf_eagle3.generation.verify.chain_pass import ChainPass
from hf_eagle3.generation.verify.static_pass import StaticPass
from hf_eagle3.generation.verify.tree_pass import TreePass
from hf_eagle3.target.mode import decoding_mode
from hf_eagle3.target.target import Target
from hf_eagle3.tree_config import TreeConfig


def random_tree(roots: torch.Tensor, num_nodes: int, max_depth: int, vocab_size: int, generator) -> DraftTree:
    """A random tree per row with parents before children, at most `max_depth` deep."""
    rows = roots.shape[0]
    parents = torch.full((rows, num_nodes + 1), -1)
    depths = torch.zeros(rows, num_nodes + 1, dtype=torch.long)
    for row in range(rows):
        for node in range(1, num_nodes + 1):
            open_nodes = (depths[row, :node] < max_depth).nonzero()[:, 0]
            parent = open_nodes[torch.randint(len(open_nodes), (1,), generator=generator)]
            parents[row, node] = parent
            depths[row, node] = depths[row, parent] + 1
    tokens = torch.randint(3, vocab_size, (rows, num_nodes + 1), generator=generator)
    tokens[:, 0] = roots
    return DraftTree(
        tokens, parents, depths, ancestor_mask(parents, max_depth), torch.zeros(rows, num_nodes + 1), max_depth
    )


def path_of(tree: DraftTree, row: int, node: int) -> list[int]:
    """Nodes from the root to `node`."""
    path = [node]
    while path[0] != 0:
        path.insert(0, int(tree.parents[row, path[0]]))
    return path


class _Dictate(LogitsProcessor):
    """Makes generate write `tokens` (B, steps)."""

    def __init__(self, tokens: torch.Tensor):
        self.tokens, self.step = tokens, 0

    def __call__(self, input_ids, scores):
        forced = torch.full_like(scores, -1e9).scatter_(1, self.tokens[:, self.step : self.step + 1], 0.0)
        self.step += 1
        return forced


def reference_logits(target, inputs: dict, batch: Batch, tree: DraftTree, row: int) -> torch.Tensor:
    """Logits (N + 1, V) of every node of a row's tree: plain generate writes what is committed, then each path."""
    written = batch.ids[row, batch.prompt_length : batch.lengths[row] - 1].tolist()
    paths = [path_of(tree, row, node) for node in range(tree.tokens.shape[1])]
    tokens = torch.zeros(len(paths), len(written) + tree.max_depth + 2, dtype=torch.long)
    for node, path in enumerate(paths):
        dictated = written + tree.tokens[row, path].tolist()
        tokens[node, : len(dictated)] = torch.tensor(dictated)
    out = target.generate(
        **{name: _row_of(value, row, batch.num_sequences, len(paths)) for name, value in inputs.items()},
        max_new_tokens=tokens.shape[1],
        do_sample=False,
        logits_processor=LogitsProcessorList([_Dictate(tokens)]),
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack([out.logits[len(written) + len(path)][node] for node, path in enumerate(paths)])


def _row_of(value: torch.Tensor, row: int, num_rows: int, count: int) -> torch.Tensor:
    """A row's part of an input, `count` times: a row, or its share of pixels and grids."""
    part = value.chunk(num_rows)[row]
    return part.repeat(count, *[1] * (value.dim() - 1))


def random_paths(tree: DraftTree, same_length: bool, generator) -> list[list[int]]:
    """A random path per row, of a length of its own or (a chain in lockstep) of one length."""
    rows, num_nodes = tree.tokens.shape
    paths = [path_of(tree, row, int(torch.randint(num_nodes, (1,), generator=generator))) for row in range(rows)]
    return [list(range(len(paths[0])))] * rows if same_length else paths


@torch.no_grad()
def worst_node_error(
    target,
    inputs: dict,
    num_nodes: int = 24,
    max_depth: int = 5,
    cycles: int = 3,
    seed: int = 0,
    use_chain: bool | None = None,
    **options,
) -> float:
    """
    Largest |logit - reference| over all nodes, rows and cycles, relative to the reference's largest logit. Without
    `use_chain` the policy decides between tree and chain. `options` go to the generate call that is verified.

    Raises:
        ValueError: the policy refuses the target.
    """
    generator = torch.Generator().manual_seed(seed)
    limit = inputs["input_ids"].shape[1] + 1 + cycles * (max_depth + 1) + max_depth
    worst = 0.0

    def compare(model, input_ids, *, generation_config, **kwargs):
        nonlocal worst
        for name in ("logits_processor", "stopping_criteria", "synced_gpus", "streamer", "assistant_model"):
            kwargs.pop(name, None)
        passes, adapter, batch = _after_prefill(
            model, input_ids, generation_config, kwargs, (num_nodes, max_depth), limit, use_chain
        )
        vocab_size = adapter.config.vocab_size
        batch.write(torch.randint(3, vocab_size, (batch.num_sequences, 1), generator=generator))
        batch.commit([1] * batch.num_sequences, {})
        with adapter.attached():
            for _ in range(cycles):
                if isinstance(passes, ChainPass):
                    drawn = torch.randint(3, vocab_size, (batch.num_sequences, max_depth), generator=generator)
                    tree = chain(batch.roots(), drawn, torch.zeros(batch.num_sequences, max_depth))
                else:
                    tree = random_tree(batch.roots(), num_nodes, max_depth, vocab_size, generator)
                worst = max(worst, _worst_of(target, inputs, batch, tree, passes.verify(tree)[0]))
                _keep_random_paths(passes, batch, tree, vocab_size, generator)
        return input_ids

    new_tokens = limit - inputs["input_ids"].shape[1]
    target.generate(**inputs, custom_generate=compare, max_new_tokens=new_tokens, **options)
    return worst


def _after_prefill(model, input_ids, generation_config, kwargs, sizes_of_tree, limit: int, use_chain: bool | None):
    """What `build_call` sets up, without a draft: the pass, the target and the batch."""
    stash_static_request(generation_config)
    if asks_for_static(generation_config):
        put_cache(kwargs, DynamicCache())  # not the static one that `generate` has made by now
    shapes = static_shapes(model, generation_config, input_ids, kwargs)
    mode = decoding_mode(model, prepared_cache(model, kwargs))
    if mode.kind == "refused":
        raise ValueError(mode.reason)
    sizes = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8}
    adapter = Target(model, Eagle3Config.from_target(model, **sizes))
    if not adapter.uses_hooks:
        kwargs["output_hidden_states"] = True
    outputs = prefill(model, input_ids, generation_config, kwargs)
    if shapes is not None:
        adapter.read_outputs()
        kwargs["output_hidden_states"] = True
    if cache_of(outputs) is not None:
        put_cache(kwargs, cache_of(outputs))
    mask = kwargs.get("attention_mask")
    columns = cached_columns(cache_of(kwargs), input_ids.shape[1])
    batch = Batch(input_ids, limit, 0, columns, None if mask is None or mask.all() else mask)
    is_chain = mode.kind == "chain" if use_chain is None else use_chain
    num_nodes, depth = sizes_of_tree
    given = (adapter, batch, kwargs, max(sizes_of_tree) + 1, limit)
    if shapes is None:
        passes = (ChainPass if is_chain else TreePass)(*given)
    else:
        tree = TreeConfig("static", num_nodes, depth, tree_top_k=num_nodes)
        passes = StaticPass(*given, Settings(mode, tree, FixedPolicy(tree), (num_nodes + 1,), shapes))
    return passes, adapter, batch


def _worst_of(target, inputs: dict, batch: Batch, tree: DraftTree, logits: torch.Tensor) -> float:
    worst = 0.0
    for row in range(batch.num_sequences):
        expected = reference_logits(target, inputs, batch, tree, row)
        errors = (logits[row] - expected).abs().amax(dim=1) / expected.abs().amax(dim=1)
        worst = max(worst, float(errors.nan_to_num(float("inf")).max()))
    return worst


def _keep_random_paths(passes, batch: Batch, tree: DraftTree, vocab_size: int, generator) -> None:
    paths = random_paths(tree, isinstance(passes, ChainPass), generator)
    nodes = torch.zeros(batch.num_sequences, tree.max_depth + 1, dtype=torch.long)
    new = torch.randint(3, vocab_size, (batch.num_sequences, tree.max_depth + 1), generator=generator)
    for row, path in enumerate(paths):
        nodes[row, : len(path)] = torch.tensor(path)
        new[row, : len(path) - 1] = tree.tokens[row, path[1:]]
    counts = [len(path) for path in paths]
    passes.keep(nodes, counts, {})
    batch.write(new)
    batch.commit(counts, {})
