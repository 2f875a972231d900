"""The usual repairs of a pair, each as a view of the draft and as the override that makes it permanent.

Does not know measurements. Shape letters: D draft vocabulary, V target vocabulary.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedConfig

from ..compat.models import rotary_embedding
from ..configuration_eagle3 import Eagle3Config, default_target_layer_ids, num_decoder_layers
from ..draft_model import DraftModel
from ..drafters.block import BlockDraftModel
from ..modeling_eagle3 import Eagle3DraftModel
from ..target.target import check_fit


ORIGINAL_THETA = 10000.0  # the original trainer's, and SpecForge's before its pull request 270
IDS_AS_OFFSETS = "draft.d2t.sub_(torch.arange(len(draft.d2t)))"
OFFSETS_AS_IDS = "draft.d2t.add_(torch.arange(len(draft.d2t)))"


@dataclass(frozen=True)
class Repair:
    """
    One change to a draft.

    Attributes:
        kind: "rope theta", "rope scaling", "taps", "norm flag", "causal flag", "embedding", "head", "vocabulary" or
            "precision".
        what: The change in words.
        draft: A view of the draft with it, which shares the weights.
        overrides: Arguments of the draft's `from_pretrained` that make it, as source text by name.
        statement: Where no argument does: a Python statement to run after loading, before `save_pretrained`.
    """

    kind: str
    what: str
    draft: DraftModel = field(repr=False)
    overrides: dict[str, str] = field(default_factory=dict)
    statement: str | None = None


def view_of(draft: DraftModel, **fields) -> DraftModel:
    """A view of `draft` with fields of its configuration replaced; it shares the weights."""
    view = copy.copy(draft)
    view._modules, view._buffers = dict(draft._modules), dict(draft._buffers)
    view.config = draft.config.changed(fields)
    if "rope_parameters" in fields or "rope_theta" in fields:
        view._modules["rotary_emb"] = rotary_embedding(view.config).to(draft.norm.weight.device)
    if "norm_before_residual" in fields:  # the layer keeps its own copy of the flag
        layer = copy.copy(draft.midlayer)
        layer.norm_before_residual = view.config.norm_before_residual
        view._modules["midlayer"] = layer
    for name, module in (("has_lm_head", "lm_head"), ("has_embed_tokens", "embed_tokens")):
        if fields.get(name) is False:
            view._modules[module] = None
    return view


def repairs_for(draft: DraftModel, target: PreTrainedConfig) -> Iterator[Repair]:
    """Repairs that apply to `draft` beside a target with this configuration."""
    text = target.get_text_config(decoder=True)
    yield from _of_rope(draft, text)
    yield from _of_taps(draft, text)
    if isinstance(draft, BlockDraftModel):
        value = not draft.config.is_causal
        what = f"`is_causal` {value} instead of {draft.config.is_causal}"
        yield _by_fields(draft, "causal flag", what, is_causal=value)
    else:
        yield from _of_eagle3(draft)
    if draft.norm.weight.dtype in (torch.float16, torch.bfloat16):
        what = f"float32 instead of {draft.norm.weight.dtype}, in which its states overflow or round"
        yield Repair("precision", what, copy.deepcopy(draft).float(), {"dtype": "torch.float32"})


def _of_eagle3(draft: Eagle3DraftModel) -> Iterator[Repair]:
    """What only EAGLE-3's drafts have: flags, tensors of their own, a draft vocabulary."""
    for name in ("norm_before_residual", "norm_output"):
        value = not vars(draft.config)[name]
        yield _by_fields(draft, "norm flag", f"`{name}` {value} instead of {not value}", **{name: value})
    yield from _of_embedding(draft)
    if draft.lm_head is not None and draft.config.hidden_size == draft.config.target_hidden_size:
        yield _by_fields(draft, "head", "the target's output head instead of the stored one", has_lm_head=False)
    yield from _of_vocabulary(draft)


def _by_fields(draft: DraftModel, kind: str, what: str, **fields) -> Repair:
    return Repair(kind, what, view_of(draft, **fields), {name: repr(value) for name, value in fields.items()})


def _of_rope(draft: DraftModel, target: PreTrainedConfig) -> Iterator[Repair]:
    rope = draft.config.rope_parameters
    found = Eagle3Config.from_target(target).rope_parameters
    thetas = {found["rope_theta"]: "the target's", ORIGINAL_THETA: "the original trainer's"}
    for theta, whose in thetas.items():
        if theta != rope["rope_theta"]:
            what = f"RoPE theta {theta:g}, {whose}, instead of {rope['rope_theta']:g}"
            yield _by_fields(draft, "rope theta", what, rope_theta=float(theta))
    if rope.get("rope_type", "default") != "default":
        plain = {"rope_type": "default", "rope_theta": rope["rope_theta"]}
        yield _by_fields(draft, "rope scaling", f"no RoPE scaling ({rope['rope_type']})", rope_parameters=plain)
    if found.get("rope_type", "default") != "default" and found != rope:
        yield _by_fields(draft, "rope scaling", f"the target's RoPE ({found['rope_type']})", rope_parameters=found)


def _of_taps(draft: DraftModel, target: PreTrainedConfig) -> Iterator[Repair]:
    ids, count = check_fit(target, draft.config), num_decoder_layers(target)
    candidates = {
        "one layer earlier": [i - 1 for i in ids],
        "one layer later": [i + 1 for i in ids],
        "the usual layers": default_target_layer_ids(count),
    }
    seen = [ids]
    for what, others in candidates.items():
        fits = len(others) == len(ids) and len(set(others)) == len(others) and min(others) >= 0 and max(others) < count
        if fits and others not in seen:
            seen.append(others)
            yield _by_fields(draft, "taps", f"layers {others} ({what}) instead of {ids}", target_layer_ids=others)


def _of_embedding(draft: Eagle3DraftModel) -> Iterator[Repair]:
    if draft.embed_tokens is None:
        return
    if draft.config.embed_trained and draft.config.hidden_size == draft.config.target_hidden_size:
        what = "the target's embedding instead of the stored one"
        yield _by_fields(draft, "embedding", what, has_embed_tokens=False, embed_trained=False)
    elif not draft.config.embed_trained:
        yield _by_fields(draft, "embedding", "the stored embedding instead of the target's", embed_trained=True)


def _of_vocabulary(draft: Eagle3DraftModel) -> Iterator[Repair]:
    """`d2t` that stores target ids where offsets are expected, or offsets that were converted twice."""
    if not draft.config.has_vocabulary_mapping:
        return
    places = torch.arange(len(draft.d2t), device=draft.d2t.device)
    readings = (
        (-places, IDS_AS_OFFSETS, "`d2t` read as target ids"),
        (places, OFFSETS_AS_IDS, "`d2t` read as offsets that were subtracted twice"),
    )
    for change, statement, what in readings:
        offsets = draft.d2t + change
        ids = offsets + places
        if (ids >= 0).all() and (ids < draft.config.vocab_size).all() and ids.unique().numel() == ids.numel():
            view = view_of(draft)
            view._buffers["d2t"] = offsets
            yield Repair("vocabulary", what, view, statement=statement)
