"""The loop: draft -> verify -> walk -> commit, for any number of rows.

One loop serves greedy decoding and sampling, one row and many, trees and chains. What each phase does is told in the
module of its name; here is the order, and what is passed on.

Shape letters: B rows of the batch, A active rows, N drafted nodes, T tree levels, V vocabulary, F features.
"""

import torch
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.utils import logging

from ..compat.caches import cached_columns, is_unused, is_user_provided
from ..compat.calls import cache_of, pad_token_id, prefill, put_cache
from ..compat.processors import length_limit
from ..draft_layers import at_places
from ..modeling_eagle3 import Eagle3DraftModel
from ..target import target as targets
from ..target.parts import adapts_rows
from .auto.costs import context_bucket, cost_table
from .batch import Rows
from .compiled.drafter import StaticDrafter
from .compiled.target_pass import StaticPass, static_shapes
from .draft.drafter import Drafter, Entries, joined
from .draft.prompt import attach_state, prompt_entries
from .draft.ranking import Warp
from .ending import Ending, Plan
from .fallback import plain_decode, why_plain
from .ops.transfer import on_device
from .outputs import GenerateEagle3Output, StepOutputs
from .sampling.chooser import Kind, StopChecker, TokenChooser
from .sampling.noise import StepNoise
from .settings import settle
from .stats import SpeculationStats, new_stats, publish
from .streaming import Reporter
from .tree import draft_tree as trees
from .verify.tree_pass import ChainPass, TreePass, left_by_prompt, prepared_cache
from .walk import Walk, accepted_nodes, greedy_walk, stepwise_walk


logger = logging.get_logger(__name__)


def speculative_decode(
    model: PreTrainedModel, draft: Eagle3DraftModel, input_ids: torch.Tensor, prepared: dict, model_kwargs: dict
) -> GenerateEagle3Output | torch.Tensor:
    """
    What the host's `_sample` does, sooner: the same tokens, from a draft's proposals.

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
    run = Generation(model, draft, input_ids, model_kwargs=model_kwargs, **prepared)
    with run.target.attached(), torch.no_grad():
        try:
            run.prefill()
            with run.target.decoding_optimised():
                while run.rows.active:
                    tree, plan = run.propose(), None
                    while plan is None:
                        with run.stats.phase("verify_forward"):
                            logits, features, outputs = run.passes.verify(tree)
                        with run.stats.phase("walk"):
                            walk = run.walk(tree, logits)
                            plan = run.ending.resolve(tree, walk)
                        if plan is None:
                            tree = run.without_draft()
                    with run.stats.phase("commit"):
                        run.commit(tree, walk, plan, features, outputs)
                    run.learn(tree, walk, plan)
                run.complete_cache()
        finally:
            run.close()
    return run.result()


class Generation:
    """The state of one call and its phases; `speculative_decode` holds the order."""

    def __init__(
        self, model, draft, input_ids, logits_processor, stopping_criteria, generation_config, streamer, model_kwargs
    ):
        self.model, self.draft, self.config = model, draft, generation_config
        self.input_ids, self.model_kwargs = input_ids, model_kwargs
        self.processors, self.criteria = logits_processor, stopping_criteria
        if input_ids.shape[1] == 0 and model_kwargs.get("inputs_embeds") is None:
            raise ValueError("`input_ids` is empty; give a prompt of at least one token.")
        self.target = targets.Target(model, draft.config)
        self.static = static_shapes(model, generation_config, input_ids, model_kwargs)
        self.cache: Cache | None = prepared_cache(model, model_kwargs)
        self.settings = settle(self.target, draft, self.cache, generation_config, self.static is not None)
        self.tree_config, self.planner = self.settings.sizes, self.settings.planner
        self.costs, self.costs_size = None, None  # the planner's, and the rows and context that they are for
        self.stats: SpeculationStats = new_stats()
        self.is_timed = self.stats.synchronize
        self.stats.mode = "chain" if self.tree_config.is_chain else "tree"
        self.stats.reason = self.settings.mode.reason
        self.returns_cache = bool(generation_config.return_dict_in_generate)
        self.returns_cache |= is_user_provided(self.cache) if self.static is None else self.static.is_callers
        self.reporter = Reporter(streamer, self.stats)
        self.pending: list[Entries] = []
        self.passes: TreePass | ChainPass | None = None
        self.drafts = True  # until the draft's scores are not finite
        if not self.target.uses_hooks:
            self.model_kwargs["output_hidden_states"] = True
            generation_config.prefill_chunk_size = None  # the outputs would show the last chunk only

    # -- prefill ------------------------------------------------------------------------------------------------------

    def prefill(self) -> None:
        """The prompt through the host, the first token, and everything that needs to know the prompt's width."""
        ids, kwargs = self.input_ids, self.model_kwargs
        before = cached_columns(self.cache, 0)
        with self.stats.phase("prefill"), self.target.capturing():
            outputs = prefill(self.model, ids, self.config, kwargs | self.target.prefill_options)
        features = self.target.features(outputs)  # (B, new columns, F)
        if self.static is not None:
            self.target.read_outputs()
            kwargs["output_hidden_states"] = True
        if cache_of(outputs) is not None:
            self.cache = cache_of(outputs)
        if self.model.training and is_unused(self.cache):
            raise ValueError(
                f"{type(self.model).__name__} keeps no cache in this state (training with gradient checkpointing); "
                "call `eval()` before `generate`."
            )
        put_cache(kwargs, self.cache)
        kwargs |= left_by_prompt(self.model, outputs, kwargs)
        columns = cached_columns(self.cache, before + features.shape[1])
        # Plain generate takes one token even where a criterion is met by the prompt.
        self.max_length = max(min(length_limit(self.criteria), self.config.max_length), ids.shape[1] + 1)
        width = self.max_length + self.tree_config.tree_depth + 2
        mask = kwargs.get("attention_mask")
        self.rows = self.reporter.rows = Rows(ids, width, pad_token_id(self.config), columns, mask)
        self.stopper = StopChecker(self.criteria, self.rows)
        self.rows.pads_ended_rows = self.stopper.pads_finished_rows
        self.outputs = StepOutputs(self.config, self.rows.num_rows, self.target.config)
        logits = outputs.logits[:, -1:]
        self._set_up_choice(logits.shape[-1])
        self._set_up_passes()
        self.stats.start_rows(self.rows.num_rows)
        with self.stats.phase("prefill"):
            tree = trees.root_only(self.rows.ids[:, 0])
            walk = self.walk(tree, logits)
            plan = self.ending.resolve(tree, walk)
            self.outputs.add_prefill(walk, outputs)
            del outputs
            self.rows.commit(plan.counts)
            self.rows.pad_done()
            embeds = kwargs.get("inputs_embeds")
            self.pending = [prompt_entries(self.drafter, self.rows, self.cache, features, before, walk.tokens, embeds)]
            self.reporter.report(tree, walk, plan)
            self._finish_rows(plan)

    def _set_up_choice(self, vocab_size: int) -> None:
        rows, noise = self.rows, None
        draft_ids = self.draft.target_token_ids
        if self.config.do_sample:
            device = rows.ids.device
            noise = StepNoise((rows.num_rows, vocab_size), device, None if draft_ids is None else draft_ids.to(device))
        self.noise = noise
        self.chooser = TokenChooser(self.processors, noise, rows)
        self.is_stepwise = Kind.STEPWISE in (self.chooser.kind, self.stopper.kind)
        # Unknown processors may draw random numbers themselves: then noise is drawn at its step, not ahead of it.
        shares_noise = noise is not None and self.tree_config.shared_noise and not self.is_stepwise
        shared, warp = noise if shares_noise else None, Warp.of(self.processors)
        given = (self.draft, self.target, rows.num_rows, self.stats, shared, warp)
        if self.static is None:
            self.drafter = Drafter(*given)
        else:
            self.drafter = StaticDrafter(self.static, self.settings, self.max_length + rows.cache_shift, *given)

    def _set_up_passes(self) -> None:
        chain_only = self.settings.mode.kind == "chain"
        given = (self.target, self.rows, self.model_kwargs, self.settings.room, self.max_length)
        if self.static is not None:
            self.passes = StaticPass(*given, self.static, self.settings)
        else:
            self.passes = (ChainPass if chain_only else TreePass)(*given)
        # Without an EOS criterion plain generate lets ended rows run on with real tokens until all have ended. The
        # host's cache cannot lose rows that it must hand back, nor unknown processors rows that they may look at.
        rows = self.rows
        unpadded = not rows.pads_ended_rows and not self.stopper.only_length
        keeps_cache = chain_only and (self.returns_cache or type(self.cache) is not DynamicCache)
        keeps_rows = unpadded or self.is_stepwise or keeps_cache or adapts_rows(self.model)
        self.runs_on = keeps_rows and rows.num_rows > 1
        self.lockstep = self.passes.lockstep or self.is_stepwise or self.runs_on
        self.ending = Ending(rows, self.stopper, self.noise, self.lockstep, self.runs_on)

    # -- one cycle ----------------------------------------------------------------------------------------------------

    def propose(self) -> trees.DraftTree:
        """
        A tree for every active row, as deep as the longest rest allows; only roots where nothing is left to gain.
        """
        rows = self.rows
        roots = self.target.on_input_device(rows.roots())
        rest = self.max_length - min(rows.active_lengths)
        depth = min(self.tree_config.tree_depth, rest - 1)
        if depth < 1 or not self.drafts:
            return trees.root_only(roots)
        if self.stats.num_iterations == 0:  # the prompt: the draft's part of prefill; the first token is out by then
            self._feed("prefill")
        if self.planner is not None:
            depth = self._begin_planned(depth)
            if depth < 1:
                return trees.root_only(roots)
        positions = on_device(rows.draft_positions, self.drafter.device)
        sizes = self.tree_config.shallower(depth)
        self._feed("draft_forward")
        with torch.autocast(self.drafter.device.type, enabled=False):
            tree = self.drafter.grow(roots, positions, sizes, rows.steps, rows.active, self.planner)
        return trees.with_padding(tree.to(roots.device), rows.idle_places, rows.pad_token_id)

    def without_draft(self) -> trees.DraftTree:
        """
        The cycle again as a plain step. One node's value that is not finite reaches all others of a pass, through
        weights of zero; plain `generate` never runs that token.
        """
        self.passes.forget_nodes()
        if self.planner is not None:
            self.planner.abandon()
        return trees.root_only(self.target.on_input_device(self.rows.roots()))

    def _feed(self, phase: str) -> None:
        """What the target has computed since the last draft."""
        with torch.autocast(self.drafter.device.type, enabled=False), self.stats.phase(phase):
            for entries in joined(self.pending):
                self.drafter.absorb(entries)
        self.pending = []

    def _begin_planned(self, depth: int) -> int:
        rows, is_static = self.rows, self.static is not None
        num_rows = rows.num_rows if is_static else len(rows.active)
        size = (num_rows, context_bucket(max(rows.cached_columns)))
        if size != self.costs_size:
            self.costs_size = size
            self.costs = cost_table(self.model, self.draft.midlayer, *size, is_static)
        cycles_left = None
        if len(rows.active) > 1:
            cycles_left = rows.cycles_left([len(row) for row in self.stats.accepted_tokens], self.max_length)
        depth = self.planner.begin(self.costs, num_rows, depth, self.stats.phase_seconds, cycles_left)
        if self.drafter.device.type != "cpu":  # where kernels run on, only a synchronised cycle shows what it costs
            self.stats.synchronize = self.is_timed or self.planner.is_measuring
        return depth

    def learn(self, tree: trees.DraftTree, walk: Walk, plan: Plan) -> None:
        """What a planned cycle cost and which of its nodes were accepted, for the next choices."""
        if self.planner is not None and self.planner.is_underway:
            is_timed, accepted = self.stats.synchronize or self.drafter.device.type == "cpu", None
            if tree.num_draft_tokens:
                accepted = accepted_nodes(tree, walk, on_device(plan.accepted, tree.tokens.device))
                if not all(plan.is_live):  # padding teaches nothing
                    live = on_device([a for a, is_live in enumerate(plan.is_live) if is_live], tree.tokens.device)
                    tree, accepted = tree.select_rows(live), accepted[live]
            self.planner.end(tree, accepted, plan.accepted, is_timed)

    def walk(self, tree: trees.DraftTree, logits: torch.Tensor) -> Walk | None:
        """
        Tokens chosen along the tree, on the device where plain generate chooses them. `None`: processors that must see
        each step once would see NaN.
        """
        device = self.rows.ids.device
        logits, tree = logits.to(device), tree.to(device)
        if self.chooser.is_plain_argmax and not self.is_stepwise and not self.outputs.needs_steps:
            return greedy_walk(tree, logits)
        rows = self.rows
        if self.is_stepwise and tree.num_draft_tokens and bool(logits[:, 0].isnan().any()):
            return None
        stops: list[int | None] = [None] * len(rows.active)

        def check_stop(tokens, scores) -> bool:
            newest = torch.stack(tokens, dim=1)
            rows.write(newest)
            done = len(tokens) - 1
            lengths = [length + done for length in rows.active_lengths]
            kept = None if self.outputs.scores is None else (*self.outputs.scores, *scores)
            found = self.stopper.stopping_index(rows.active, lengths, newest[:, -1:].tolist(), kept)
            is_new = [index == 0 and not rows.is_done[row] for index, row in zip(found, rows.active, strict=True)]
            stops[:] = [done if new else None for new in is_new]
            return any(is_new)

        walk = stepwise_walk(
            tree,
            logits,
            self.chooser,
            rows.active,
            rows.active_lengths,
            rows.steps,
            keep_scores=self.outputs.needs_steps,
            check_stop=check_stop if self.is_stepwise else None,
            ended=rows.idle_places,
            pad_token_id=rows.pad_token_id,
        )
        walk.stops = stops if self.is_stepwise else None
        return walk

    def commit(self, tree, walk: Walk, plan: Plan, features: torch.Tensor, outputs) -> None:
        """Move accepted slots down, queue their features for the draft, and let ended rows go."""
        rows, steps, longest = self.rows, self.rows.steps, max(plan.counts)
        nodes, device = walk.nodes.to(features.device), features.device
        self.outputs.add(rows.active, steps, plan.counts, walk, outputs, self.passes.attended)
        self.passes.keep(nodes, plan.counts)
        places = on_device([rows.cached_columns, [1 + p for p in rows.draft_positions]], device)[:, :, None]
        if longest == 1:  # the root alone, as in every plain step
            features = features[:, :1]
        else:
            features = at_places(features, nodes[:, :longest])
            places = places + torch.arange(longest, device=device)
        self.pending.append(
            Entries(
                tokens=walk.tokens[:, :longest],
                features=features,
                columns=places[0],
                positions=places[1],
                counts=plan.counts,
                last_column=max(rows.cached_columns) + longest - 1,
            )
        )
        if not plan.is_draft_finite and self.drafts:
            self.drafts = False
            if self.planner is not None:
                self.planner.abandon()
            logger.warning_once(
                "The draft's scores are NaN: its weights or its dtype are broken (float16 overflows where bfloat16 "
                "does not). The rest runs without it: the same text, not faster."
            )
        self.stats.num_iterations += 1
        self.stats.num_draft_tokens += tree.num_draft_tokens * sum(plan.is_live)
        for a, row in enumerate(rows.active):
            if plan.is_live[a]:
                self.stats.count_cycle(row, plan.accepted[a], len(plan.tokens[a]), tree.max_depth, plan.is_cut[a])
        rows.commit(plan.counts)
        rows.pad_done()
        self.reporter.report(tree, walk, plan)
        self._finish_rows(plan)

    def _finish_rows(self, plan: Plan) -> None:
        rows = self.rows
        if self.noise is not None:
            self.noise.forget_before(min(rows.steps, default=0))
        if not any(plan.ends):
            return
        kept = rows.finish([place for place, end in enumerate(plan.ends) if end])
        if kept:
            self.passes.select_rows(kept, drop=not self.returns_cache)
            self.drafter.select_rows(kept)
            self.pending = [entries.select_rows(kept) for entries in self.pending]

    # -- the end ------------------------------------------------------------------------------------------------------

    def complete_cache(self) -> None:
        """A cache that outlives the call also holds padding behind sequences that ended before others."""
        rows = self.rows
        longest = max(rows.lengths)
        early = [row for row, length in enumerate(rows.lengths) if length < longest]
        if early and self.returns_cache and isinstance(self.passes, TreePass):
            self.passes.cache_padding(early)

    def close(self) -> None:
        """Nothing of ours stays: the host's cache is ordinary again, the generator where plain generate leaves it."""
        if self.passes is None:  # interrupted in the prompt: the cache is still the host's own
            return
        rows = self.rows
        if self.noise is not None:
            self.noise.rewind_to(max(rows.lengths) - rows.prompt_length)
        if self.static is not None:
            self.drafter.close()
        self.cache = self.passes.close(self.returns_cache)  # may raise: a cache of the caller's may be too short
        if self.static is None and self.returns_cache:
            attach_state(self.cache, self.drafter, rows, self.pending)

    def result(self) -> GenerateEagle3Output | torch.Tensor:
        """What `generate` returns: sequences (B, P + generated), or all that was asked for."""
        rows = self.rows
        self.reporter.end()
        length = max(rows.lengths)
        self.stats.prompt_lengths = [rows.prompt_length] * rows.num_rows
        if self.planner is not None:
            self.stats.choices = self.planner.choices
        self.stats.generated_lengths = [rows.ends.get(r, n) - rows.prompt_length for r, n in enumerate(rows.lengths)]
        publish(self.stats)
        sequences = rows.ids[:, :length].clone()
        if not self.config.return_dict_in_generate:
            return sequences
        return self.outputs.pack(sequences, length - rows.prompt_length, self.cache, self.stats)
