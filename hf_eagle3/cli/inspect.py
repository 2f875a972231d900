"""`hf-eagle3 inspect`: the decoding mode of a target, requirements for its draft, and whether a draft fits.

Reads configurations and tensor names only; models are created on the meta device.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from huggingface_hub import HfApi, is_offline_mode
from huggingface_hub.errors import NotASafetensorsRepoError
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    Cache,
    DynamicCache,
    PreTrainedConfig,
    PreTrainedModel,
)

from .. import checkpoint
from ..compat.calls import makes_dynamic_cache
from ..compat.models import attention_name, auto_class_of, set_attention_name
from ..configuration_eagle3 import OPTIONAL_FLAGS, Eagle3Config
from ..draft_model import DraftModel
from ..drafters.block import BlockDraftConfig, BlockDraftModel
from ..drafters.block.dialects import is_block_draft
from ..errors import explained
from ..fitting import fit_notes
from ..hub import engines, formats, registry
from ..hub.export import ExportTarget
from ..known_defects import corrections, defects_of
from ..model_loading import (
    MODEL_REMEDY,
    TOKENIZER_FILES,
    adapter_base,
    is_adapter,
    refuse_wrong_config,
    tokenizer_note,
)
from ..modeling_eagle3 import Eagle3DraftModel
from ..target.mode import decoding_mode, own_cache
from ..target.target import check_fit
from .tables import show_pairs


YES = {True: "yes", False: "no"}
SERVED = "would be served as it is"
FLAGS = (*OPTIONAL_FLAGS, "attention_bias", "mlp_bias")


def run(arguments: argparse.Namespace) -> int:
    report, target = {}, None
    if arguments.target:
        target = load_export_target(arguments.target)
        report["target"] = describe_target(arguments.target, target, arguments.attention)
    if arguments.draft:
        report["draft"] = describe_draft(arguments.draft, target)
    if arguments.json:
        print(json.dumps(report))
        return 0
    for i, (name, part) in enumerate(report.items()):
        if i:
            print()
        show_pairs(lines(name, part))
    return 0


def load_export_target(source: str) -> ExportTarget:
    """The target's configuration, read once unless it is not a target's."""
    what = f"`--target` {source}"
    with explained(f"{what} cannot be read", MODEL_REMEDY):
        try:
            target = ExportTarget.load(source)
        except (OSError, ValueError):
            refuse_wrong_config(what, PreTrainedConfig.get_config_dict(source)[0])  # names a draft
            raise
        refuse_wrong_config(what, target.config.to_dict())
    return target


def empty_model(config, attention: str | None) -> PreTrainedModel:
    """The target on the meta device."""
    options = {"attn_implementation": attention} if attention else {}
    auto = auto_class_of(config, (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM))
    if auto is not None:
        with torch.device("meta"):
            try:
                return auto.from_config(config, **options)
            except ImportError:  # FlashAttention need not be installed, as nothing runs
                model = auto.from_config(config, attn_implementation="eager")
                set_attention_name(model.config, attention)
                return model
    raise ValueError(f"`--target` is a {config.model_type} model, not a language model.")


def empty_cache(model: PreTrainedModel) -> Cache | None:
    """The cache with which `generate` would start."""
    if model.config.is_encoder_decoder:
        return None
    if makes_dynamic_cache(model):
        return DynamicCache(config=model.config)
    return own_cache(model)


def describe_target(source: str, target: ExportTarget, attention: str | None) -> dict:
    """The report on a target, by JSON key."""
    config = target.config
    text = config.get_text_config(decoder=True)
    with explained(f"`--target` {source} cannot be built", "See its config.json and `--attention`."):
        model = empty_model(config, attention)
    mode = decoding_mode(model, empty_cache(model))
    out = {
        "name": target.facts.name or source,
        "revision": target.facts.revision,
        "architecture": type(model).__name__,
        "mode": mode.kind,
        "reason": mode.reason,
        "parameters": model.num_parameters(),
        "layers": text.num_hidden_layers,
        "hidden_size": text.hidden_size,
        "vocab_size": text.vocab_size,
        "attention": attention_name(text),
    }
    if mode.kind == "refused":
        return out
    size = min(32000, text.vocab_size)
    draft = Eagle3Config.from_target(config, draft_vocab_size=size)
    out["needs"] = {
        "target_layer_ids": draft.target_layer_ids,
        "hidden_size": draft.hidden_size,
        "vocab_size": draft.vocab_size,
        "parameters": num_parameters(draft),
        "draft_vocab_size": size,
    }
    out["known_drafts"] = [
        {
            "draft": entry.draft,
            "source": entry.source,
            "checked": entry.checked,
            "notes": entry.notes,
            "defects": [str(defect) for defect in entry.defects],
        }
        for entry in registry.drafts_for(out["name"])
    ]
    return out


def num_parameters(config: PreTrainedConfig, kind: type[DraftModel] = Eagle3DraftModel) -> int:
    with torch.device("meta"):
        return kind(config).num_parameters()


def stored_shapes(source: str, native_name: Callable[[str], str], **hub) -> dict[str, torch.Tensor] | None:
    """Stored tensors by native name on the meta device, from safetensors headers; `None` for `.bin` files."""
    if Path(source).is_dir() or is_offline_mode():
        if not any(checkpoint.has_file(source, name, **hub) for name in checkpoint.SAFETENSORS_NAMES):
            return None
        shapes = {}
        for path in checkpoint.weight_files(source, **hub):
            with safe_open(path, framework="pt") as file:
                shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    else:
        try:
            found = HfApi().get_safetensors_metadata(source, **hub)
        except NotASafetensorsRepoError:
            return None
        shapes = {name: info.shape for part in found.files_metadata.values() for name, info in part.tensors.items()}
    return {native_name(name): torch.empty(shape, device="meta") for name, shape in shapes.items()}


def describe_draft(source: str, target: ExportTarget | None, **hub) -> dict:
    """The report on a draft, with `target` if given; for an adapter, the report on its base."""
    if is_adapter(source):
        base, revision = adapter_base(source)
        return describe_draft(base, target, revision=revision) | {"name": source, "adapter_of": base}
    raw = checkpoint.load_config(source, **hub)
    kind = BlockDraftModel if is_block_draft(raw) else Eagle3DraftModel
    config = kind.config_class.from_dict(raw)
    with explained(f"`--draft` {source} cannot be read", MODEL_REMEDY):
        stored = stored_shapes(source, kind.native_name, **hub)
    if stored is not None:
        config = config.changed(kind.fields_from_names(stored, config))
    config = config.changed(corrections(source, config, {}))
    dialect = formats.SPECULATORS if "speculators_model_type" in raw else formats.PLAIN
    out = {
        "name": source,
        "kind": kind.__name__,
        "dialect": dialect,
        "made_for": config.target_name_or_path,
        "parameters": num_parameters(config, kind),
        "decoder_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        **(block_facts(config) if kind is BlockDraftModel else {"draft_vocab_size": config.draft_vocab_size}),
        "vocab_size": config.vocab_size,
        "target_layer_ids": config.target_layer_ids,
        "rope": config.rope_parameters,
        "known_defects": [str(defect) for defect in defects_of(source)],
        "sliding_window": config.sliding_window,
        "flags": [name for name in FLAGS if vars(config).get(name)],
        "own_embedding": config.has_embed_tokens,
        "own_head": config.has_lm_head,
    }
    if target is not None:
        try:
            out["target_layer_ids"] = check_fit(target.config.get_text_config(decoder=True), config)
            out["fits"] = True
            out["notes"] = notes(source, config, target)
        except ValueError as error:
            out["fits"], out["why_not"] = False, str(error)
    facts = target.facts if target is not None else engines.TargetFacts()
    case = engines.Case(config, dialect, facts, raw)
    found = engines.findings(case)
    out["engines"] = {
        engine: [f"{f.rule.name}: {f.rule.consequence}" for f in found if f.engine == engine] or SERVED
        for engine in case.readers
    }
    return out


def block_facts(config: BlockDraftConfig) -> dict:
    """What only block drafters have, by JSON key."""
    return {
        "block_size": config.block_size,
        "predictions_per_pass": config.num_predictions,
        "mask_token_id": config.mask_token_id,
        "sees_later_positions": [config.sees_later(layer) for layer in range(config.num_hidden_layers)],
    }


def notes(draft: str, config: Eagle3Config, target: ExportTarget) -> list[str]:
    """Mismatches that do not prevent the draft from running: names, vocabulary sizes, tokenizers."""
    found = fit_notes(target.config, config, target.facts.name)
    if any(checkpoint.has_file(target.source, name) for name in TOKENIZER_FILES):
        found.append(tokenizer_note(draft, AutoTokenizer.from_pretrained(target.source)))
    return [note for note in found if note is not None]


def lines(title: str, part: dict) -> list[tuple[str, str]]:
    """One part of the report as names and values."""
    rows = [(title, str(part["name"]))]
    for name, value in part.items():
        if name == "name" or value is None or value == []:
            continue
        label = name.replace("_", " ")
        if name == "parameters":
            value = f"{value / 1e6:,.1f} million"
        if name == "known_drafts":
            rows += [(label, text) for text in known(value)]
        elif name == "needs":
            rows += [("a draft for it", text) for text in needs(value)]
        elif name in ("notes", "known_defects"):
            rows += [("note" if name == "notes" else "known defect, replaced", text) for text in value]
        elif isinstance(value, dict):
            rows += [(label, f"{key}: {'; '.join(x) if isinstance(x, list) else x}") for key, x in value.items()]
        else:
            rows.append((label, YES[value] if isinstance(value, bool) else str(value)))
    if part.get("known_drafts") == []:
        rows.append(("known drafts", "none in the list of this version; train one with `hf-eagle3 train`"))
    return rows


def known(entries: list[dict]) -> list[str]:
    out = []
    for entry in entries:
        remarks = [entry["notes"], *(f"{defect}; loading replaces it." for defect in entry["defects"])]
        checked = f"{registry.CHECKED[entry['checked']]}; {entry['source']}"
        out.append(" ".join([f"{entry['draft']} ({checked})", *filter(None, remarks)]))
    return out


def needs(value: dict) -> list[str]:
    parameters = value["parameters"]
    return [
        f"reads the outputs of layers {value['target_layer_ids']}, hidden size {value['hidden_size']}",
        f"vocabulary of {value['vocab_size']:,} tokens, of which it proposes {value['draft_vocab_size']:,} by default",
        f"{parameters / 1e6:,.1f} million parameters, {2 * parameters / 2**20:,.1f} MiB in half precision",
    ]
