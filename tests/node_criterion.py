"""The central correctness check: every tree node's logits equal those of decoding its path token by token.

prompt rows (left padded, ragged)  ->  verify random trees  ->  keep a random path per row  ->  verify again
                                                  |                                               |
                                        compare all nodes                               compare all nodes
"""

import torch
from transformers import DynamicCache

from hf_eagle3.configuration_eagle3 import Eagle3Config
from hf_eagle3.generation.rows import Rows
from hf_eagle3.generation.target_pass import ChainPass, TreePass
from hf_eagle3.generation.tree import DraftTree, ancestor_mask, chain
from hf_eagle3.target import Target


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


@torch.no_grad()
def reference_logits(target, tokens: torch.Tensor, num_steps: int) -> torch.Tensor:
    """Logits of the last `num_steps` tokens of one unpadded row, fed one by one through the host's cache."""
    cache = DynamicCache(config=target.config)
    target(input_ids=tokens[None, :-num_steps], past_key_values=cache, use_cache=True)
    out = []
    for i in range(len(tokens) - num_steps, len(tokens)):
        positions = torch.tensor([[i]])
        out.append(
            target(input_ids=tokens[None, i : i + 1], position_ids=positions, past_key_values=cache).logits[0, -1]
        )
    return torch.stack(out)


@torch.no_grad()
def worst_node_error(
    target,
    inputs: dict,
    num_nodes: int = 24,
    max_depth: int = 5,
    cycles: int = 3,
    seed: int = 0,
    use_chain: bool = False,
) -> float:
    """Largest |logit - reference| over all nodes, rows and cycles, relative to the reference's largest logit."""
    generator = torch.Generator().manual_seed(seed)
    vocab_size = target.config.get_text_config().vocab_size
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    num_rows, width = ids.shape
    adapter = Target(
        target, Eagle3Config.from_target(target, num_attention_heads=1, num_key_value_heads=1, head_dim=8)
    )
    cache = DynamicCache(config=target.config)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    target(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
    limit = width + 1 + cycles * (max_depth + 1) + max_depth
    rows = Rows(ids, limit + max_depth, None, width, mask if not mask.all() else None)
    kwargs = {"past_key_values": cache, "position_ids": positions, "attention_mask": mask, "use_cache": True}
    passes = (ChainPass if use_chain else TreePass)(adapter, rows, kwargs, max(num_nodes, max_depth) + 1, limit)
    rows.write(torch.randint(3, vocab_size, (num_rows, 1), generator=generator))
    rows.commit([1] * num_rows)
    worst = 0.0
    with adapter.attached():
        for _ in range(cycles):
            if use_chain:
                drawn = torch.randint(3, vocab_size, (num_rows, max_depth), generator=generator)
                tree = chain(rows.roots(), drawn, torch.zeros(num_rows, max_depth))
            else:
                tree = random_tree(rows.roots(), num_nodes, max_depth, vocab_size, generator)
            logits = passes.verify(tree)[0]
            for row in range(num_rows):
                committed = rows.ids[row, : rows.lengths[row]][-(rows.num_visible[row] + rows.lengths[row] - width) :]
                for node in range(tree.tokens.shape[1]):
                    path = path_of(tree, row, node)
                    tokens = torch.cat((committed, tree.tokens[row, path[1:]]))
                    expected = reference_logits(target, tokens, len(path))[-1]
                    error = (logits[row, node] - expected).abs().max() / expected.abs().max()
                    worst = max(worst, float(error))
            # Keep a random path per row, of a length of its own (of one length in lockstep).
            paths = [
                path_of(tree, r, int(torch.randint(tree.tokens.shape[1], (1,), generator=generator)))
                for r in range(num_rows)
            ]
            if passes.lockstep:
                paths = [list(range(len(paths[0])))] * num_rows
            nodes = torch.zeros(num_rows, max_depth + 1, dtype=torch.long)
            for row, path in enumerate(paths):
                nodes[row, : len(path)] = torch.tensor(path)
            new = torch.randint(3, vocab_size, (num_rows, max_depth + 1), generator=generator)
            for row, path in enumerate(paths):
                new[row, : len(path) - 1] = tree.tokens[row, path[1:]]
            passes.keep(nodes, [len(path) for path in paths])
            rows.write(new)
            rows.commit([len(path) for path in paths])
    return worst
