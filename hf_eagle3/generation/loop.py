"""The loop: draft -> verify -> walk -> commit, for any number of sequences.

One loop serves greedy decoding and sampling, one sequence and many, trees and chains, whatever drafts. What each phase
does is in the module of its name; here is the order, and what is handed on.

Shape letters: B sequences of the batch, A active ones, N drafted nodes, T tree levels, V vocabulary, F features.
"""

from typing import Any

import torch
from transformers import Cache, PreTrainedModel
from transformers.utils import logging

from ..draft_layers import at_places
from .call import Call, build_call
from .draft.interface import DraftInputs, Prompt, Roots
from .ending import Plan, resolve
from .fallback import plain_decode, why_plain
from .ops.transfer import on_device
from .outputs import GenerateEagle3Output
from .prefill import Preparation, PromptPass, Request, read_prompt
from .stats import publish
from .tree.draft_tree import DraftTree, root_only, with_padding
from .tree.policy import Outlook
from .verify.tree_pass import TreePass
from .walk import Walk, accepted_nodes, greedy_walk, stepwise_walk


logger = logging.get_logger(__name__)


def speculative_decode(
    model: PreTrainedModel, draft: Any, input_ids: torch.Tensor, prepared: dict, model_kwargs: dict
) -> GenerateEagle3Output | torch.Tensor:
    """
    What transformers' `_sample` does, faster: the same tokens, from a draft's proposals.

    Args:
        model, draft: Target and draft.
        input_ids: Prompt, (B, P), left padded.
        prepared: `logits_processor`, `stopping_criteria`, `generation_config` and `streamer`, as `generate` prepared
            them.
        model_kwargs: The rest of what it prepared.

    Returns:
        Sequences (B, P + generated), or a [`GenerateEagle3Output`] with `return_dict_in_generate`.

    Raises:
        ValueError: draft and target do not fit, the target allows no speculation, or logits are NaN.
    """
    plain = why_plain(model, input_ids, prepared["generation_config"].max_length, model_kwargs)
    if plain is not None:
        return plain_decode(model, input_ids, prepared, model_kwargs, *plain)
    preparation = Preparation(Request(model, draft, input_ids, model_kwargs=model_kwargs, **prepared))
    target, timer = preparation.target, preparation.timer
    with target.attached(), torch.no_grad():
        prompt = read_prompt(preparation)
        loop = Loop(build_call(preparation, prompt))
        try:
            with timer.phase("prefill"):
                loop.begin(prompt, model_kwargs.get("inputs_embeds"))
            with target.decoding_optimised():
                while loop.batch.active:
                    tree, plan = loop.propose(), None
                    while plan is None:
                        with timer.phase("verify_forward"):
                            logits, features, outputs = loop.call.passes.verify(tree)
                        with timer.phase("walk"):
                            walk = loop.walk(tree, logits)
                            plan = resolve(tree, walk, loop.batch, loop.call.stopper, loop.call.pace)
                        if plan is None:
                            tree = loop.without_draft()
                    with timer.phase("commit"):
                        loop.observe(tree, logits)
                        loop.commit(tree, walk, plan, features, outputs)
                        loop.remove_ended(plan)
                    loop.learn(tree, walk, plan)
                loop.complete_cache()
        finally:
            loop.close()
    return loop.result()


class Loop:
    """The phases of a cycle; `speculative_decode` holds their order."""

    def __init__(self, call: Call):
        self.call, self.batch = call, call.batch
        self.drafts = True  # until the draft's scores are not finite
        self.cache: Cache | None = None  # the one handed back, once the call ends

    def begin(self, prompt: PromptPass, embeds: torch.Tensor | None) -> None:
        """The first token, from the prompt's pass."""
        call, batch = self.call, self.batch
        tree = root_only(batch.ids[:, 0])
        walk = self.walk(tree, prompt.outputs.logits[:, -1:])
        plan = resolve(tree, walk, batch, call.stopper, call.pace)
        call.outputs.add_prefill(walk, prompt.outputs)
        prompt.outputs = None
        batch.commit(plan.counts, plan.ended)
        call.reporter.report(tree, walk, plan)
        is_read = not all(plan.leaves)
        call.drafter.start(Prompt(prompt.features, prompt.num_cached, walk.tokens, embeds, prompt.cache, is_read))
        self.remove_ended(plan)

    def propose(self) -> DraftTree:
        """
        A tree for every active sequence, as deep as the longest rest allows; only roots where nothing is to be gained.
        """
        call, batch = self.call, self.batch
        tokens = call.target.on_input_device(batch.roots())
        depth = min(call.settings.sizes.tree_depth, call.max_length - min(batch.active_lengths) - 1)
        if depth < 1 or not self.drafts:
            return root_only(tokens)
        num_sequences = len(batch.active) if call.settings.static is None else batch.num_sequences
        outlook = Outlook(num_sequences, max(batch.cached_lengths), depth, tuple(batch.is_live))
        depth = call.settings.policy.begin(outlook)
        if depth < 1:
            return root_only(tokens)
        roots = Roots(tokens, batch.draft_positions, batch.steps, batch.active)
        tree = call.drafter.grow(roots, depth, call.settings.policy)
        return with_padding(tree.to(tokens.device), batch.padding_places, batch.pad_token_id)

    def without_draft(self) -> DraftTree:
        """
        The cycle again as a plain step. One node's value that is not finite reaches all others of a pass, through
        weights of zero; plain `generate` never runs that token.
        """
        self.call.passes.forget_nodes()
        self.call.settings.policy.abandon()
        return root_only(self.call.target.on_input_device(self.batch.roots()))

    def walk(self, tree: DraftTree, logits: torch.Tensor) -> Walk | None:
        """
        Tokens chosen along the tree, on the device where plain generate chooses them, and written behind their
        sequences. `None`: processors that must see each step once would see NaN.
        """
        call, batch = self.call, self.batch
        logits, tree = logits.to(batch.ids.device), tree.to(batch.ids.device)
        if call.chooser.is_plain_argmax and not call.is_stepwise and not call.outputs.needs_steps:
            walk = greedy_walk(tree, logits)
        elif call.is_stepwise and tree.num_draft_tokens and bool(logits[:, 0].isnan().any()):
            return None
        else:
            stopping = self._stopping if call.is_stepwise else None
            walk = stepwise_walk(tree, logits, call.chooser, batch, call.outputs.needs_steps, stopping)
        if not walk.is_written:
            batch.write(walk.tokens)
        return walk

    def _stopping(self, tokens: list[torch.Tensor], scores: list[torch.Tensor]) -> list[int | None]:
        """Per sequence, the index of the newest of `tokens` if the sequence ends with it."""
        call, batch, done = self.call, self.batch, len(tokens) - 1
        lengths = [length + done for length in batch.active_lengths]
        kept = None if call.outputs.scores is None else (*call.outputs.scores, *scores)
        found = call.stopper.stopping_index(batch.active, lengths, tokens[-1][:, None].tolist(), kept)
        return [done if index == 0 and live else None for index, live in zip(found, batch.is_live, strict=True)]

    def observe(self, tree: DraftTree, logits: torch.Tensor) -> None:
        """Drafters that learn from nodes that were not accepted see what the target computed there."""
        if self.call.drafter.reads_choices:
            self.call.drafter.observe(tree, logits)

    def commit(self, tree: DraftTree, walk: Walk, plan: Plan, features: torch.Tensor, outputs) -> None:
        """Move accepted slots down, and hand their features to the draft."""
        call, batch, longest = self.call, self.batch, max(plan.counts)
        nodes, device = walk.nodes.to(features.device), features.device
        call.outputs.add(batch.active, batch.steps, plan.counts, walk, outputs, call.passes.attended)
        call.passes.keep(nodes, plan.counts, plan.ended)
        if not plan.is_draft_finite and self.drafts:
            self.drafts = False
            call.settings.policy.abandon()
            logger.warning_once(
                "The draft's scores are NaN: its weights or its dtype are broken (float16 overflows where bfloat16 "
                "does not). The rest runs without it: the same text, not faster."
            )
        if self.drafts:
            places = on_device([batch.cached_lengths, [1 + p for p in batch.draft_positions]], device)[:, :, None]
            if longest == 1:  # the root alone, as in every plain step
                features = features[:, :1]
            else:
                features = at_places(features, nodes[:, :longest])
                places = places + torch.arange(longest, device=device)
            last = max(batch.cached_lengths) + longest - 1
            tokens = walk.tokens[:, :longest]
            first = min(batch.cached_lengths)
            call.drafter.extend(DraftInputs(tokens, features, places[0], places[1], plan.counts, last, first))
        call.stats.num_iterations += 1
        call.stats.num_draft_tokens += tree.num_draft_tokens * sum(plan.is_live)
        for a, number in enumerate(batch.active):
            if plan.is_live[a]:
                call.stats.count_cycle(number, plan.accepted[a], len(plan.tokens[a]), tree.max_depth, plan.is_cut[a])
        batch.commit(plan.counts, plan.ended)
        call.reporter.report(tree, walk, plan)

    def learn(self, tree: DraftTree, walk: Walk, plan: Plan) -> None:
        """What a cycle cost and which of its nodes were accepted, for the next choices; padding teaches nothing."""
        policy, accepted, counts = self.call.settings.policy, None, plan.accepted
        if not policy.is_adaptive:
            return
        device = tree.tokens.device
        if tree.num_draft_tokens:
            accepted = accepted_nodes(tree, walk, on_device(plan.accepted, device))
        if not all(plan.is_live):
            live = [place for place, is_live in enumerate(plan.is_live) if is_live]
            index, counts = on_device(live, device), [plan.accepted[place] for place in live]
            tree, accepted = tree.select(index), None if accepted is None else accepted[index]
        policy.end(tree, accepted, counts)

    def remove_ended(self, plan: Plan) -> None:
        """Sequences that leave the batch cost nothing from here on."""
        call, batch = self.call, self.batch
        if call.noise is not None:
            call.noise.forget_before(min(batch.steps, default=0))
        if not any(plan.leaves):
            return
        kept = batch.remove([place for place, leaves in enumerate(plan.leaves) if leaves])
        if kept:
            call.passes.select(kept, drop=not call.returns_cache)
            call.drafter.select(kept)

    # -- the end ------------------------------------------------------------------------------------------------------

    def complete_cache(self) -> None:
        """A cache that outlives the call also holds padding behind sequences that ended before others."""
        longest = max(self.batch.lengths)
        early = [number for number, length in enumerate(self.batch.lengths) if length < longest]
        if early and self.call.returns_cache and isinstance(self.call.passes, TreePass):
            self.call.passes.cache_padding(early)

    def close(self) -> None:
        """Nothing of ours stays: the cache is ordinary again, the generator where plain generate leaves it."""
        call, batch = self.call, self.batch
        if call.noise is not None:
            call.noise.rewind_to(max(batch.lengths) - batch.prompt_length)
        try:
            self.cache = call.passes.close(call.returns_cache)  # may raise: a caller's cache may be too short
        finally:
            call.drafter.close(self.cache if call.returns_cache and self.drafts else None)

    def result(self) -> GenerateEagle3Output | torch.Tensor:
        """What `generate` returns: sequences (B, P + generated), or all that was asked for."""
        batch, stats = self.batch, self.call.stats
        self.call.reporter.end()
        length = max(batch.lengths)
        stats.prompt_lengths = [batch.prompt_length] * batch.num_sequences
        stats.choices = self.call.settings.policy.choices
        stats.generated_lengths = [batch.ends.get(n, end) - batch.prompt_length for n, end in enumerate(batch.lengths)]
        publish(stats)
        sequences = batch.ids[:, :length].clone()
        if not self.call.config.return_dict_in_generate:
            return sequences
        return self.call.outputs.pack(sequences, length - batch.prompt_length, self.cache, stats)
