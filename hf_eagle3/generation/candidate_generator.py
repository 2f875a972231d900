"""`Eagle3CandidateGenerator`: an EAGLE-3 chain inside transformers' own assisted decoding.

For people who build on that loop; it keeps that loop's limits (one sequence, no recurrent targets, another random
stream than plain sampling). Reached by `assistant_model=draft.with_tree("host_chain", tree_depth=5)`. Everything else
goes through `loop.py`. Shape letters: P committed tokens, T chain length, V target, D draft vocabulary.
"""

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from ..compat.outputs import CandidateGenerator
from ..errors import CallRefused
from ..fitting import fit_to
from ..modeling_eagle3 import Eagle3DraftModel
from ..target.target import Target
from .draft.eagle3 import Eagle3Drafter
from .draft.grow import level_pass
from .draft.interface import DraftInputs
from .draft.ranking import Warp, truncated
from .ops.transfer import additive
from .stats import PhaseTimer, new_stats


def draw_chain(
    drafter: Eagle3Drafter, position: int, length: int, do_sample: bool, warp: Warp
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    One sequence's chain below the newest entry at RoPE `position`, drawn from the draft's warped distribution or
    greedy.

    Returns:
        Tokens (1, length) and scores over the target's vocabulary (1, length, V), -inf outside the draft's.
    """
    draft, cache, vocabulary = drafter.draft, drafter.cache, drafter.vocabulary
    cache.begin_nodes(length)
    hidden, tokens, scores = drafter.hidden, [], []
    logits = vocabulary.logits(draft, drafter.normed)
    for level in range(length):
        q = logits[:, 0].float() / warp.temperature
        q = _in_target_vocabulary(truncated(q, warp) if do_sample else q, drafter)
        token = torch.multinomial(q.softmax(dim=-1), 1) if do_sample else q.argmax(dim=-1, keepdim=True)
        tokens.append(token)
        scores.append(q)
        if level + 1 == length:
            break
        rotary = draft.rotary(torch.tensor([[position + level + 1]], device=drafter.device), drafter.dtype)
        window = drafter.config.sliding_window
        above = torch.zeros(1, 1, 1, level + 1, dtype=drafter.dtype, device=drafter.device)  # a chain sees itself
        if window is not None:
            above[..., : max(0, level + 1 - window)] = torch.finfo(drafter.dtype).min
        prefix = additive(cache.seen_below(1, level + 1), drafter.dtype)[:, None, None]
        slots, mask = cache.node_slots(level, 1), cache.node_mask(prefix, above)
        hidden, logits = level_pass(draft, cache, vocabulary, token, hidden, rotary, slots, mask)
    return torch.cat(tokens, dim=1), torch.stack(scores, dim=1)


def _in_target_vocabulary(scores: torch.Tensor, drafter: Eagle3Drafter) -> torch.Tensor:
    """Scores over the draft vocabulary (1, D) placed in the target's (1, V)."""
    ids = drafter.vocabulary.target_ids
    if ids is None:
        return scores
    out = scores.new_full((1, drafter.config.vocab_size), -torch.inf)
    out[:, ids] = scores
    return out


class Eagle3CandidateGenerator(CandidateGenerator):
    """
    Proposes a chain of tokens from the hidden states of the last pass.

    Args:
        model: The target.
        draft: The draft; its `tree_config.tree_depth` is the chain's length.
        input_ids: Prompt (1, P).
        generation_config: The call's; `do_sample` decides whether the chain is drawn or taken greedily.
        logits_processor: The call's; temperature, top-k and top-p warp the draft as well.

    When sampling, the draft's scores are handed over, for speculative sampling (Leviathan et al.).
    """

    requires_model_outputs = True
    model_kwargs_overrides = {"output_hidden_states": True}

    def __init__(
        self,
        model: PreTrainedModel,
        draft: Eagle3DraftModel,
        input_ids: torch.Tensor,
        generation_config: GenerationConfig,
        logits_processor: LogitsProcessorList | None = None,
    ):
        if input_ids.shape[0] != 1:
            raise CallRefused(
                f"Assisted decoding of transformers takes one sequence, got {input_ids.shape[0]}; use another "
                "`tree_mode` for batches."
            )
        draft = fit_to(draft, model)
        self.target = Target(model, draft.config)
        self.target.read_outputs()
        tree, timer = draft.tree_config, PhaseTimer(new_stats().phase_seconds, False)
        self.drafter = Eagle3Drafter(draft, self.target, 1, timer, draft_window=tree.draft_window)
        self.depth = tree.tree_depth
        self.max_length = generation_config.max_length
        self.do_sample = bool(generation_config.do_sample)
        self.warp = Warp.of(logits_processor or [])
        self.seen = 0  # tokens whose features were fed

    @torch.no_grad()
    def get_candidates(self, input_ids: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(tokens (1, P + T), draft scores (1, T, V) or `None`), as transformers' loop expects."""
        outputs = kwargs.get("model_outputs")
        depth = min(self.depth, self.max_length - input_ids.shape[1] - 1)
        if outputs is None:  # nothing is known of the target before its first pass
            return input_ids, None
        # Of the last pass only the tokens that were accepted count; the newest token has no feature yet.
        num_features = input_ids.shape[1] - 1 - self.seen
        features = self.target.output_features(outputs)[:, :num_features]
        slots = torch.arange(self.seen, self.seen + num_features, device=input_ids.device)[None]
        tokens = input_ids[:, self.seen + 1 :]
        last = self.seen + num_features - 1
        with torch.autocast(self.drafter.device.type, enabled=False):
            self.drafter.read(DraftInputs(tokens, features, slots, slots, [num_features], last, self.seen))
            self.seen += num_features
            if depth < 1:
                return input_ids, None
            tokens, logits = draw_chain(self.drafter, input_ids.shape[1] - 2, depth, self.do_sample, self.warp)
        candidates = torch.cat((input_ids, tokens.to(input_ids.device)), dim=1)
        return candidates, logits if self.do_sample else None

    def update_candidate_strategy(self, input_ids: torch.Tensor, scores: torch.Tensor, num_matches: int) -> None:
        """The chain's length is fixed."""
