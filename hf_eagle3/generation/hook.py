"""What becomes of `target.generate(..., assistant_model=draft)`; every other assistant is left alone.

Refusals with their remedies live here. How a draft gets here is known to `compat/hooks.py`.
"""

import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import logging

from ..compat import hooks
from ..compat.caches import cached_columns, can_go_back
from ..compat.calls import cache_of
from ..compat.guard import Guard
from ..compat.models import attention_name, is_stateful
from ..compat.outputs import is_assisted
from ..errors import CallRefused
from ..modeling_eagle3 import Eagle3DraftModel
from ..target.mode import accepted_mode
from ..target.parts import unwrapped
from .attached import ATTACHED, OptionRefused, attached_call, is_handed_on, option
from .candidate_generator import Eagle3CandidateGenerator
from .compiled.shapes import stash_static_request
from .draft import kinds
from .draft.interface import as_draft, drafter_kind
from .fallback import with_stats
from .loop import speculative_decode
from .named import draft_named
from .observed import observed
from .stats import new_stats
from .verify.attention import release_tree_masks


logger = logging.get_logger(__name__)

# Options of transformers that would be ignored or bent: what to do instead.
REFUSED_OPTIONS = {
    "prompt_lookup_num_tokens": "prompt lookup is another way to draft; give either it or `assistant_model`",
    "use_mtp": "multi-token prediction is another way to draft; give either it or `assistant_model`",
    "assistant_early_exit": "early exit is another way to draft; give either it or `assistant_model`",
    "assistant_ensemble_weight": "it changes the output distribution; the draft here never does",
    "speculation_type": "it names another way to draft; give either it or an EAGLE-3 draft",
    "dola_layers": "contrasting layers is a decoding of its own; leave `assistant_model` out",
    "penalty_alpha": "contrastive search is a decoding of its own; leave `assistant_model` out",
    "force_words_ids": "constrained beam search needs beams; leave `assistant_model` out",
    "constraints": "constrained beam search needs beams; leave `assistant_model` out",
}
HOST_CHAIN = "host_chain"
NO_WAY_BACK = (
    "The tree mode 'host_chain' is transformers' own loop, which cannot go back to an earlier state of {}. Take "
    "another `tree_mode`."
)


def draft_of(assistant_model) -> Any | None:
    """Our draft in `assistant_model`, itself or wrapped (PEFT, `torch.compile`, DataParallel); else `None`."""
    model = unwrapped(assistant_model) if isinstance(assistant_model, nn.Module) else assistant_model
    return as_draft(model)


def refuse_wrong_class(assistant_model) -> None:
    """A draft's weights loaded as an ordinary model run as a random one; nothing else has `draft_vocab_size`."""
    if isinstance(assistant_model, PreTrainedModel) and "draft_vocab_size" in assistant_model.config.to_dict():
        raise ValueError(
            f"`assistant_model` is a {type(assistant_model).__name__} made from an EAGLE-3 draft's "
            "configuration; load it with `hf_eagle3.Eagle3DraftModel.from_pretrained`."
        )


def _limited(draft: Any, num_tokens: int | None) -> Any:
    if num_tokens is None:
        return draft
    sizes = asdict(draft.tree_config.limited(num_tokens))
    return draft.with_tree(sizes.pop("tree_mode"), **sizes)


def refuse_options(target: PreTrainedModel, draft: Any, mode, config: GenerationConfig, given: dict):
    """
    Refuse what cannot be honoured.

    Raises:
        OptionRefused: the option, its value, and what to do instead.
    """
    is_host_chain = draft.tree_config.tree_mode == HOST_CHAIN
    if is_host_chain and not isinstance(draft, Eagle3DraftModel):
        raise ValueError(
            f"The tree mode 'host_chain' takes EAGLE-3 drafts, not a {type(draft).__name__}; take 'chain' instead."
        )
    if target is draft:
        raise ValueError("`assistant_model` is the model itself; pass the draft that was trained for it.")
    if (config.num_beams or 1) > 1:
        raise OptionRefused(
            f"`num_beams` is {config.num_beams}; a draft works with one beam. Leave one of the two out."
        )
    given_options = config.to_dict()  # not every transformers has all of them
    for name, remedy in REFUSED_OPTIONS.items():
        value = given_options.get(name)
        if value not in (None, False, *drafter_kind(draft).speculation_types):
            raise OptionRefused(f"`{name}` ({value!r}) does not go with a draft as `assistant_model`: {remedy}.")
    if config.use_cache is False:
        raise OptionRefused("`use_cache=False` does not go with a draft as `assistant_model`; leave it out.")
    if config.cache_implementation not in (None, "dynamic", "static"):
        raise OptionRefused(
            f"`cache_implementation` {config.cache_implementation!r} is not supported with a draft; leave it out (the "
            'dynamic cache), or give "static".'
        )
    if config.cache_implementation == "static" and is_host_chain:
        raise OptionRefused(
            "`cache_implementation` 'static' does not go with the tree mode 'host_chain', transformers' own loop; "
            "leave it out or take another `tree_mode`."
        )
    shows_attentions = config.return_dict_in_generate and config.output_attentions
    attention = attention_name(target.config.get_text_config(decoder=True))
    if is_host_chain and shows_attentions and attention != "eager":
        raise OptionRefused(
            "`output_attentions` with the tree mode 'host_chain', transformers' own loop, needs eager attention; "
            "leave it out or take another `tree_mode`."
        )
    if given.get("synced_gpus"):
        raise OptionRefused("`synced_gpus` is not supported with a draft; generate without ZeRO-3/FSDP sharding.")
    if given.get("assistant_tokenizer") is not None:
        raise OptionRefused(
            "`assistant_tokenizer` has no meaning for an EAGLE-3 draft: it shares the target's vocabulary."
        )
    if not is_assisted(mode):
        raise OptionRefused(
            f"Generation mode {mode.value!r} does not go with a draft as `assistant_model`; leave one out."
        )
    if is_host_chain and is_stateful(target):
        raise OptionRefused(NO_WAY_BACK.format(type(target).__name__))


class _Drafts:
    """[`hooks.Handler`]: what is done with our drafts."""

    def __init__(self, try_out: Callable[[], str | None]):
        self.guard = Guard(try_out)

    def draft_of(self, assistant: Any) -> Any | None:
        """See `draft_of`."""
        return draft_of(assistant)

    def accepted(self, target: PreTrainedModel, assistant: Any, given: dict) -> Any | None:
        """Ours, loaded if it is a name, or `None`; raises for a draft that was loaded as something else."""
        is_name = isinstance(assistant, (str, os.PathLike))
        draft = draft_named(os.fspath(assistant), target) if is_name else draft_of(assistant)
        if draft is None:
            refuse_wrong_class(assistant)
            return None
        return _limited(draft, option("num_assistant_tokens", target, given))

    def attached(self, target: PreTrainedModel, given: dict) -> Any | None:
        """The draft attached to `target`, unless `generate` passes the call on to other code."""
        draft = ATTACHED.get(target)
        if draft is None or is_handed_on(given):
            return None
        return _limited(draft, option("num_assistant_tokens", target, given))

    def attached_call(self, target: PreTrainedModel, generate, given: dict) -> Any:
        """See `attached_call`."""
        return attached_call(target, generate, given)

    def plain(self, target: PreTrainedModel, generate, given: dict) -> Any:
        """The result of plain `generate` where drafts cannot be used, else `None`."""
        fault = self.guard.refuses()
        if fault is None:
            return None
        hooks.remove()
        release_tree_masks()
        stats = new_stats()
        stats.mode, stats.reason = "plain", fault
        own = {name: value for name, value in given.items() if name not in ("assistant_model", "assistant_tokenizer")}
        return with_stats(generate(target, **own), stats)

    def validate(self, target, draft, mode, config: GenerationConfig, given: dict) -> None:
        """See `refuse_options`."""
        refuse_options(target, draft, mode, config, given)
        stash_static_request(config)

    def fitted(self, target: PreTrainedModel, draft: Any) -> Any:
        """The draft for the target's vocabulary."""
        return drafter_kind(draft).fit(draft, target)

    def decodes(self, draft: Any) -> bool:
        """Whether our loop decodes."""
        return draft.tree_config.tree_mode != HOST_CHAIN

    def validate_cache(self, target: PreTrainedModel, input_ids: torch.Tensor, model_kwargs: dict) -> None:
        """Transformers' own loop ends in bare errors, or in another text, where our modes are refused."""
        cache = cache_of(model_kwargs)
        accepted_mode(target, cache)
        if not can_go_back(cache):
            raise CallRefused(NO_WAY_BACK.format(type(target).__name__))
        if target.training:
            raise CallRefused(
                "The tree mode 'host_chain' needs a target in evaluation; call `eval()` before `generate`."
            )
        if cached_columns(cache, 0):  # it would read the cached tokens once more, behind themselves
            raise CallRefused(
                "The tree mode 'host_chain' is transformers' own loop, which does not continue on a cache that holds "
                "tokens. Take another `tree_mode`."
            )
        if input_ids.shape[1] == 0:
            raise CallRefused(
                "The tree mode 'host_chain' is transformers' own loop, which needs `input_ids` beside "
                "`inputs_embeds`. Take another `tree_mode`."
            )

    def decode(self, target, draft, input_ids: torch.Tensor, prepared: dict, model_kwargs: dict):
        """See `speculative_decode`."""
        fitted = self.fitted(target, draft)
        return observed(
            target,
            fitted,
            input_ids,
            model_kwargs,
            lambda: speculative_decode(target, fitted, input_ids, prepared, model_kwargs),
        )

    def candidates(self, target, draft, *, input_ids, generation_config, logits_processor, **others):
        """A chain's, for transformers' own loop."""
        return Eagle3CandidateGenerator(target, draft, input_ids, generation_config, logits_processor)


def install(try_out: Callable[[], str | None]) -> None:
    """Let `generate` take drafts; a second call does nothing. For `try_out` see [`Guard`]."""
    kinds.register()
    hooks.install(_Drafts(try_out))
