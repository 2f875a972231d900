"""Writes a draft as a directory that engines read, in the plain format or speculators'.

Weights are never changed, only renamed or omitted: an untrained embedding is a copy of the target's and is omitted
from the plain format, where vLLM would use it as the draft's own; speculators' format requires it. Exports that an
engine would serve wrongly are refused (`engines.py`). Does not know the Hub.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from ..checkpoint import CONFIG_NAME, share_weights, with_model_files
from ..compat.models import commit_of
from ..configuration_eagle3 import NUM_TAPPED_LAYERS, Eagle3Config
from ..draft_model import DraftModel
from ..fitting import fit_notes, fitted
from ..modeling_eagle3 import Eagle3DraftModel
from ..target.parts import head_rows
from ..target.target import check_fit
from . import engines
from .formats import BLOCK, SPECULATORS


logger = logging.get_logger(__name__)

SHARD_SIZE = "50GB"  # transformers' default
# RoPE types whose frequencies do not depend on `max_position_embeddings`, which then only sizes a table.
LENGTH_FREE_ROPE = ("default", "linear", "llama3")
SPECULATORS_VERSION = "0.9.0"  # the format version written here
# Keys of the plain config.json that speculators' stores outside `transformer_layer_config`, or not at all.
NOT_OF_A_LAYER = (
    "architectures",
    "draft_vocab_size",
    "eagle_aux_hidden_state_layer_ids",
    "eagle_config",
    "chat_template_kwargs",
    "draft_window",
    "embed_trained",
    "fc_norm",
    "has_lm_head",
    "norm_before_fc",
    "norm_before_residual",
    "norm_output",
    "rope_scaling",
    "rope_theta",
    "target_hidden_size",
    "target_name_or_path",
    "target_revision",
    "transformers_version",
    "transformers_weights",
    "use_qk_norm",
)


@dataclass(frozen=True)
class ExportTarget:
    """
    The target of an export.

    Args:
        facts: Input of the engine rules.
        config: The target's configuration, if it was loaded.
        source: Directory or Hub id to load the weights from when needed.
    """

    facts: engines.TargetFacts
    config: object | None = None
    source: str | None = None

    @classmethod
    def load(cls, source: str, name: str | None = None, revision: str | None = None) -> "ExportTarget":
        """
        From a directory or Hub id. `name` is the Hub id to write into the files if `source` is a directory.
        """
        config = AutoConfig.from_pretrained(with_model_files(source, CONFIG_NAME), revision=revision)
        commit = commit_of(config) or revision
        name = name or (None if Path(source).is_dir() else source)
        return cls(engines.TargetFacts.of(config, name, commit), config, source)

    def weights(self) -> PreTrainedModel:
        """Load the target on the CPU."""
        if self.source is None:
            raise ValueError("The target's weights are required; pass --target.")
        return AutoModelForCausalLM.from_pretrained(self.source, revision=self.facts.revision, dtype="auto")


UNKNOWN_TARGET = ExportTarget(engines.TargetFacts())


def with_target_facts(draft: DraftModel, target: ExportTarget, store_head: bool = False) -> DraftModel:
    """
    A view of `draft` whose configuration is completed from the target: tapped layers, name, context length.

    Args:
        draft: The draft, which is not modified.
        target: Its target.
        store_head: Store the target's head rows if the draft has no head of its own.

    Raises:
        ValueError: draft and target do not fit.
    """
    facts, is_block = target.facts, draft.config.model_type == BLOCK
    if target.config is not None:
        text = target.config.get_text_config(decoder=True)
        for note in fit_notes(target.config, draft.config, facts.name):
            logger.warning(note)
        check_fit(text, draft.config)
        draft = draft if is_block else fitted(draft, text.vocab_size)  # block drafters have no vocabulary of their own
    config, changes = draft.config, {}
    if facts.name is not None:
        changes |= {"target_name_or_path": facts.name, "target_revision": facts.revision}
    if target.config is not None:
        changes["target_layer_ids"] = check_fit(target.config.get_text_config(decoder=True), config)
    served = facts.max_position_embeddings or 0
    rope = config.rope_parameters.get("rope_type", "default")
    if config.max_position_embeddings < served and rope in LENGTH_FREE_ROPE:
        changes["max_position_embeddings"] = served
    tensors = draft.state_dict()
    if is_block and store_head:
        raise ValueError("`--store-head`: a block drafter's head is always the target's; omit it.")
    if not is_block and _has_unused_embedding(config):
        changes["has_embed_tokens"] = False
        tensors.pop("embed_tokens.weight")
    if store_head and not config.has_lm_head:
        changes["has_lm_head"] = True
        rows = head_rows(target.weights(), config.target_hidden_size, draft.target_token_ids)
        tensors["lm_head.weight"] = rows.detach().to(draft.dtype)
    config = config.changed(changes)
    with torch.device("meta"):
        view = type(draft)(config)
    view.load_state_dict(tensors, assign=True)
    view.generation_config = draft.generation_config
    return view


def _has_unused_embedding(config: Eagle3Config) -> bool:
    """Whether the stored embedding is unused: it was not trained, and the target's has the same width."""
    return config.has_embed_tokens and not config.embed_trained and config.hidden_size == config.target_hidden_size


def export(
    draft: DraftModel,
    folder: str | Path,
    dialect: str = engines.PLAIN,
    target: ExportTarget = UNKNOWN_TARGET,
    only: Iterable[str] | None = None,
    allow: Iterable[str] = (),
    store_head: bool = False,
    max_shard_size: int | str = SHARD_SIZE,
) -> list[engines.Finding]:
    """
    Write `draft` to a directory in `dialect`.

    Args:
        draft: The draft.
        folder: Output directory, created if missing.
        dialect: "plain" (SGLang, vLLM, the original code, ModelOpt; of a block drafter what z-lab's, JetSpec's or
            DeepSpec's code reads) or "speculators" (vLLM, speculators).
        target: The draft's target. Required for "speculators", whose files name it and store its embedding.
        only: Engines that must be able to serve it. Default: no engine that reads the dialect may serve it wrongly.
        allow: Names of rules to ignore.
        store_head: Store the target's head rows if the draft has no head of its own.
        max_shard_size: Largest weight file.

    Returns:
        Findings that do not block the export, see [`engines.check_export`].

    Raises:
        ValueError: an engine would serve it wrongly (with every reason and remedy), or the target is missing.
    """
    if dialect == SPECULATORS and draft.config.model_type == BLOCK:
        raise ValueError(
            "speculators' format of block drafters is not written; use --to plain, which vLLM, SGLang and the "
            "projects that train them read."
        )
    view = with_target_facts(draft, target, store_head)
    facts = replace(target.facts, name=target.facts.name or draft.config.target_name_or_path)
    found = engines.check_export(engines.Case(view.config, dialect, facts), only, allow)
    folder = Path(folder)
    if dialect == engines.PLAIN:
        view.save_pretrained(folder, max_shard_size=max_shard_size)
    else:
        _save_speculators(view, folder, facts, _embedding(draft, target), max_shard_size)
    return found


def _embedding(draft: Eagle3DraftModel, target: ExportTarget) -> torch.Tensor:
    """The embedding to store, (V, H): the draft's own if it is used, else the target's."""
    if draft.embed_tokens is not None and not _has_unused_embedding(draft.config):
        return draft.embed_tokens.weight
    if target.source is None:
        raise ValueError(
            "speculators' format stores the embedding, and this draft has no trained one of its own; pass --target."
        )
    return target.weights().get_input_embeddings().weight.detach().to(draft.dtype)


def _save_speculators(
    draft: Eagle3DraftModel, folder: Path, facts: engines.TargetFacts, embedding: torch.Tensor, max_shard_size
) -> None:
    if facts.name is None:
        raise ValueError(
            "speculators' format names the target by its Hub id, which `vllm serve` loads it by; pass --target ID, or "
            "--target-name ID with a directory."
        )
    tensors = {
        (name.replace("midlayer.", "layers.0.", 1) if name.startswith("midlayer.") else name): tensor.contiguous()
        for name, tensor in draft.state_dict().items()
    }
    tensors["embed_tokens.weight"] = embedding.contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    config = speculators_config(draft.config, facts) | {"dtype": str(draft.dtype).removeprefix("torch.")}
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    draft.generation_config.save_pretrained(folder)
    save_torch_state_dict(tensors, folder, max_shard_size=max_shard_size, metadata={"format": "pt"})
    share_weights(folder)


def speculators_config(config: Eagle3Config, facts: engines.TargetFacts) -> dict:
    """`config.json` in speculators' dialect, with every flag, since readers have different defaults."""
    plain = config.to_diff_dict()
    layer = {name: value for name, value in plain.items() if name not in NOT_OF_A_LAYER}
    layer["model_type"] = "qwen3" if config.use_qk_norm else "llama"
    if config.num_tapped_layers == NUM_TAPPED_LAYERS:
        layer.pop("num_aux_hidden_states", None)
    if config.sliding_window is not None:
        layer["use_sliding_window"] = True
    written = {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "speculators_version": SPECULATORS_VERSION,
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [
                {
                    "proposal_type": "greedy",
                    "speculative_tokens": 3,
                    "verifier_accept_k": 1,
                    "accept_tolerance": 0.0,
                }
            ],
            "verifier": {"name_or_path": facts.name, "architectures": list(facts.architectures)},
        },
        "transformer_layer_config": layer,
        "draft_vocab_size": config.draft_vocab_size,
        "target_hidden_size": config.target_hidden_size if config.target_hidden_size != config.hidden_size else None,
        "norm_before_residual": config.norm_before_residual,
        "norm_before_fc": config.norm_before_fc,
        "fc_norm": config.fc_norm,
        "norm_output": config.norm_output,
        "embed_requires_grad": config.embed_trained,
        "has_lm_head": plain.get("has_lm_head"),
        "eagle_aux_hidden_state_layer_ids": [i + 1 for i in config.target_layer_ids or ()] or None,
        "tie_word_embeddings": False,
        "chat_template_kwargs": config.chat_template_kwargs,
        "draft_window": config.draft_window,
    }
    return {name: value for name, value in written.items() if value is not None}
