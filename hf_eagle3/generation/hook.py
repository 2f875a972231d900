"""Makes `target.generate(..., assistant_model=draft)` reach our loop, and leaves every other assistant alone.

Wraps three methods of the host's `GenerationMixin`, once per process: the validation of the generation mode, the
decoding method for assistants, and (for "host_chain") the choice of a candidate generator. Refusals with their
remedies live here.
"""

import functools

from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.generation.configuration_utils import GenerationMode

from ..fitting import fit_to
from ..modeling_eagle3 import Eagle3DraftModel
from ..target_parts import unwrap_peft
from .candidate_generator import Eagle3CandidateGenerator
from .decoding import speculative_decode
from .static_pass import set_aside


WRAPPED = "_hf_eagle3_wrapped"
# Options of the host that would be ignored or bent: what to do instead.
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


def draft_of(assistant_model) -> Eagle3DraftModel | None:
    """Our draft in `assistant_model`, itself or inside a PEFT wrapper; `None` for anyone else's assistant."""
    model = unwrap_peft(assistant_model)
    return model if isinstance(model, Eagle3DraftModel) else None


def refuse_wrong_class(assistant_model) -> None:
    """A draft's weights loaded as an ordinary model run as a random one; nothing else has `draft_vocab_size`."""
    if isinstance(assistant_model, PreTrainedModel) and "draft_vocab_size" in assistant_model.config.to_dict():
        raise ValueError(
            f"`assistant_model` is a {type(assistant_model).__name__} made from an EAGLE-3 draft's "
            "configuration; load it with `hf_eagle3.Eagle3DraftModel.from_pretrained`."
        )


def validate(
    target: PreTrainedModel, draft: Eagle3DraftModel, mode: GenerationMode, config: GenerationConfig, given: dict
):
    """
    Refuse what cannot be honoured.

    Raises:
        ValueError: the option, its value, and what to do instead.
    """
    if target is draft:
        raise ValueError("`assistant_model` is the model itself; pass the draft that was trained for it.")
    if (config.num_beams or 1) > 1:
        raise ValueError(f"`num_beams` is {config.num_beams}; a draft works with one beam. Leave one of the two out.")
    given_options = config.to_dict()  # not every transformers has all of them
    for name, remedy in REFUSED_OPTIONS.items():
        value = given_options.get(name)
        if value not in (None, False):
            raise ValueError(f"`{name}` ({value!r}) does not go with a draft as `assistant_model`: {remedy}.")
    if config.use_cache is False:
        raise ValueError("`use_cache=False` does not go with a draft as `assistant_model`; leave it out.")
    if config.cache_implementation not in (None, "dynamic", "static"):
        raise ValueError(
            f"`cache_implementation` {config.cache_implementation!r} is not supported with a draft; leave it out (the "
            'dynamic cache), or give "static".'
        )
    if config.cache_implementation == "static" and draft.tree_config.tree_mode == "host_chain":
        raise ValueError(
            "`cache_implementation` 'static' does not go with the tree mode 'host_chain', transformers' own loop; "
            "leave it out or take another `tree_mode`."
        )
    if given.get("synced_gpus"):
        raise ValueError("`synced_gpus` is not supported with a draft; generate without ZeRO-3/FSDP sharding.")
    if given.get("assistant_tokenizer") is not None:
        raise ValueError(
            "`assistant_tokenizer` has no meaning for an EAGLE-3 draft: it shares the target's vocabulary."
        )
    if mode != GenerationMode.ASSISTED_GENERATION:
        raise ValueError(
            f"Generation mode {mode.value!r} does not go with a draft as `assistant_model`; leave one out."
        )


def install() -> None:
    """Wrap the host's methods; a second call does nothing."""
    if WRAPPED in vars(GenerationMixin):
        return
    setattr(GenerationMixin, WRAPPED, True)
    host_validate = GenerationMixin._validate_generation_mode
    host_decode = GenerationMixin._assisted_decoding
    host_candidates = GenerationMixin._get_candidate_generator

    @functools.wraps(host_validate)
    def _validate_generation_mode(self, generation_mode, generation_config, generation_mode_kwargs):
        assistant = generation_mode_kwargs.get("assistant_model")
        draft = draft_of(assistant)
        if draft is None:
            if assistant is not None:
                refuse_wrong_class(assistant)
            return host_validate(self, generation_mode, generation_config, generation_mode_kwargs)
        validate(self, draft, generation_mode, generation_config, generation_mode_kwargs)
        set_aside(generation_config)

    @functools.wraps(host_decode)
    def _assisted_decoding(self, input_ids, *args, assistant_model=None, **kwargs):
        draft = draft_of(assistant_model)
        if draft is None or draft.tree_config.tree_mode == "host_chain":
            return host_decode(self, input_ids, *args, assistant_model=assistant_model, **kwargs)
        for name in ("synced_gpus", "inputs_tensor", "assistant_tokenizer", "tokenizer"):
            kwargs.pop(name, None)
        arguments = {name: kwargs.pop(name) for name in ("logits_processor", "stopping_criteria", "generation_config")}
        streamer = kwargs.pop("streamer", None)
        draft = fit_to(draft, self)
        return speculative_decode(self, draft, input_ids, *args, **arguments, streamer=streamer, model_kwargs=kwargs)

    @functools.wraps(host_candidates)
    def _get_candidate_generator(self, *args, assistant_model=None, **kwargs):
        draft = draft_of(assistant_model)
        if draft is None:
            return host_candidates(self, *args, assistant_model=assistant_model, **kwargs)
        return Eagle3CandidateGenerator(
            self, draft, kwargs["input_ids"], kwargs["generation_config"], kwargs["logits_processor"]
        )

    GenerationMixin._validate_generation_mode = _validate_generation_mode
    GenerationMixin._assisted_decoding = _assisted_decoding
    GenerationMixin._get_candidate_generator = _get_candidate_generator
