"""`Eagle3CandidateGenerator`: an EAGLE-3 chain inside the host's own assisted decoding.

For people who build on that loop; it keeps the host's limits (one row, no recurrent targets, another random stream
than plain sampling). Reached by `assistant_model=draft.with_tree("host_chain", tree_depth=5)`. Everything else goes
through `loop.py`. Shape letters: P committed tokens, T chain length, V target, D draft vocabulary.
"""

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from ..compat.outputs import CandidateGenerator
from ..fitting import fit_to
from ..modeling_eagle3 import Eagle3DraftModel
from ..target.target import Target
from .draft.drafter import Drafter, Entries
from .draft.ranking import Warp
from .stats import new_stats


class Eagle3CandidateGenerator(CandidateGenerator):
    """
    Proposes a chain of tokens from the hidden states of the host's last pass.

    Args:
        model: The target.
        draft: The draft; its `tree_config.tree_depth` is the chain's length.
        input_ids: Prompt (1, P).
        generation_config: The call's; `do_sample` decides whether the chain is drawn or taken greedily.
        logits_processor: The call's; temperature, top-k and top-p warp the draft as well.

    When sampling, the draft's scores are handed over, so that the host runs speculative sampling (Leviathan et al.).
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
            raise ValueError(
                f"The host's assisted decoding takes one row, got {input_ids.shape[0]}; use another `tree_mode` "
                "for batches."
            )
        draft = fit_to(draft, model)
        self.target = Target(model, draft.config)
        self.target.read_outputs()
        self.drafter = Drafter(draft, self.target, 1, new_stats())
        self.depth = draft.tree_config.tree_depth
        self.max_length = generation_config.max_length
        self.do_sample = bool(generation_config.do_sample)
        self.warp = Warp.of(logits_processor or [])
        self.seen = 0  # columns whose features were fed

    @torch.no_grad()
    def get_candidates(self, input_ids: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(tokens (1, P + T), draft scores (1, T, V) or `None`), as the host's loop expects."""
        outputs = kwargs.get("model_outputs")
        depth = min(self.depth, self.max_length - input_ids.shape[1] - 1)
        if outputs is None:  # nothing is known of the target before its first pass
            return input_ids, None
        # Of the last pass only the tokens that were accepted count; the newest token has no feature yet.
        num_features = input_ids.shape[1] - 1 - self.seen
        features = self.target.output_features(outputs)[:, :num_features]
        columns = torch.arange(self.seen, self.seen + num_features, device=input_ids.device)[None]
        tokens = input_ids[:, self.seen + 1 :]
        last = self.seen + num_features - 1
        self.drafter.absorb(Entries(tokens, features, columns, columns, [num_features], last))
        self.seen += num_features
        if depth < 1:
            return input_ids, None
        tokens, logits = self.drafter.draw_chain(input_ids.shape[1] - 2, depth, self.do_sample, self.warp)
        candidates = torch.cat((input_ids, tokens.to(input_ids.device)), dim=1)
        return candidates, logits if self.do_sample else None

    def update_candidate_strategy(self, input_ids: torch.Tensor, scores: torch.Tensor, num_matches: int) -> None:
        """The chain's length is fixed."""
