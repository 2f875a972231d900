"""Checkpoint dialects: from what others publish to our configuration fields and tensor names.

Pure functions over dictionaries, plus the file look-up (transformers' and huggingface_hub's). Five dialects are read:
SafeAILab, SpecForge/SGLang, NVIDIA ModelOpt, speculators and EAGLE-3.1. Does not know the model class. Native tensor
names are the plain directory's: `midlayer.` for the first decoder layer, `layers.N.` for further ones.

Shape letters: H hidden, V target vocabulary, D draft vocabulary.
"""

import json
import pickle
import re
from pathlib import Path

import torch
from huggingface_hub.utils.sha import sha_fileobj
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils import (
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)
from transformers.utils.hub import get_checkpoint_shard_files


HUB_ARGUMENTS = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "subfolder")
# Buffers that some trainers store; they hold nothing that is not computed from the configuration.
DOCUMENTED_SURPLUS = (re.compile(r"(^|\.)rotary_emb\.(inv_freq|cos_cached|sin_cached)$"),)
SHARED_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "attention_bias",
    "attention_dropout",
    "mlp_bias",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "dtype",
    "torch_dtype",
    "quantization_config",
)
EXTRA_FIELDS = (
    "draft_vocab_size",
    "target_hidden_size",
    "norm_before_residual",
    "norm_before_fc",
    "fc_norm",
    "norm_output",
    "use_qk_norm",
    "embed_trained",
    "target_name_or_path",
    "target_revision",
    "chat_template_kwargs",
)
IDS_KEY = "eagle_aux_hidden_state_layer_ids"


def read_config(raw: dict, source: str) -> dict:
    """
    Fields of `Eagle3Config` from a `config.json` of any dialect.

    Args:
        raw: The parsed file.
        source: Where it came from, for error messages.

    Raises:
        ValueError: not an EAGLE-3 draft, or `draft_vocab_size` missing, or the two conventions of tapped layers
            disagree.
    """
    is_speculators = "speculators_model_type" in raw or "transformer_layer_config" in raw
    layer = raw.get("transformer_layer_config") if is_speculators else raw
    kind = raw.get("speculators_model_type", "eagle3")
    if kind != "eagle3" or layer is None:
        raise ValueError(f"{source} is a speculators `{kind}` checkpoint; only `eagle3` drafts are read here.")
    if raw.get("draft_vocab_size") is None:
        raise ValueError(
            f"`draft_vocab_size` is missing from {source}, so this is not an EAGLE-3 draft model (an ordinary model? "
            "load it with AutoModelForCausalLM). If it is one and predicts the whole vocabulary, add "
            f'`"draft_vocab_size": {raw.get("vocab_size")}`.'
        )
    fields = {name: layer[name] for name in SHARED_FIELDS if layer.get(name) is not None}
    fields |= {name: raw[name] for name in (*EXTRA_FIELDS, "dtype", "torch_dtype") if raw.get(name) is not None}
    if "vocab_size" not in fields:
        raise ValueError(f"`vocab_size` is missing from {source}.")
    if raw.get("embed_requires_grad"):  # speculators' word for it
        fields["embed_trained"] = True
    taps = layer.get("num_aux_hidden_states", raw.get("num_aux_hidden_states"))
    if taps is not None:
        fields["num_tapped_layers"] = taps
    ids = _target_layer_ids(raw, source)
    if ids is not None:
        fields["target_layer_ids"] = ids
    fields["sliding_window"] = _sliding_window(layer, source)
    verifier = (raw.get("speculators_config") or {}).get("verifier") or {}
    if verifier.get("name_or_path"):
        fields["target_name_or_path"] = verifier["name_or_path"]
    # The original code's file has no `rope_theta` and its trainer always used 10000.
    if not (fields.get("rope_parameters") or fields.get("rope_theta")):
        fields["rope_theta"] = 10000.0
    return fields


def _sliding_window(layer: dict, source: str) -> int | None:
    """
    The window of the draft's attention. A file may state one that no layer uses: `layer_types` decides, or what
    Qwen3's configuration makes of `use_sliding_window` and `max_window_layers`.
    """
    window, count = layer.get("sliding_window"), layer.get("num_hidden_layers", 1)
    first = layer.get("max_window_layers", 28)
    uses = layer.get("use_sliding_window", False)
    kinds = layer.get("layer_types") or ["sliding_attention" if uses and i >= first else "" for i in range(count)]
    sliding = [kind == "sliding_attention" for kind in kinds]
    if window is None or not any(sliding):
        return None
    if not all(sliding):
        raise ValueError(
            f"{source}: `layer_types` {kinds} mixes full and sliding attention in one draft, which is not supported; "
            "layers of one kind are."
        )
    return window


def _target_layer_ids(raw: dict, source: str) -> list[int] | None:
    top = raw.get(IDS_KEY)  # indices into `hidden_states`: layer output + 1
    nested = (raw.get("eagle_config") or {}).get(IDS_KEY)  # SGLang's: the layer itself
    from_top = None if top is None else [i - 1 for i in top]
    if from_top is not None and nested is not None and from_top != list(nested):
        raise ValueError(
            f"{source}: `{IDS_KEY}` {top} (indices into hidden_states) and `eagle_config.{IDS_KEY}` {nested} "
            "(layers) do not name the same layers; pass `target_layer_ids=[...]` (zero-based layers) to say "
            "which are right."
        )
    return from_top if from_top is not None else nested


def load_config(path_or_id: str, **hub_arguments) -> dict:
    """The parsed `config.json` of a local directory or Hub repository; `_name_or_path` says where it lies."""
    file = _find(path_or_id, CONFIG_NAME, hub_arguments)
    if file is None:
        where = "" if Path(path_or_id).is_dir() else ", no such directory, and the Hub has none or was not reached"
        raise OSError(f"There is no `{CONFIG_NAME}` in `{path_or_id}`{where}; give a draft's directory or Hub id.")
    return _read_json(file) | {"_name_or_path": file}


def _read_json(file: str) -> dict:
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, not an object with names and values.")
    return content


def load_tensors(path_or_id: str, **hub_arguments) -> dict[str, torch.Tensor]:
    """
    All tensors of a checkpoint under their native names: safetensors or `.bin` (weights only), sharded or not.

    Raises:
        OSError: no weight file.
        ValueError: a damaged file, one whose bytes are not those that the Hub announced, one that holds no tensors or
            declares more values than it stores, one tensor under two names, or a NaN or infinite value (named).
    """
    tensors: dict[str, torch.Tensor] = {}
    for file in _weight_files(path_or_id, hub_arguments):
        _check_sum(file)
        try:
            part = (
                load_file(file)
                if file.endswith(".safetensors")
                else torch.load(file, map_location="cpu", weights_only=True)
            )
        except (SafetensorError, RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            raise ValueError(f"{file} is damaged or not a weight file ({error}); download it again.") from error
        for name, tensor in _checked(part, file).items():
            native = native_name(name)
            if native in tensors:
                raise ValueError(f"{path_or_id} stores `{native}` twice (once as `{name}`); keep one.")
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise ValueError(f"`{name}` of {path_or_id} holds NaN or infinite values; the checkpoint is broken.")
            tensors[native] = tensor
    return {name: t for name, t in tensors.items() if not any(p.search(name) for p in DOCUMENTED_SURPLUS)}


def _check_sum(file: str) -> None:
    """
    Files in huggingface_hub's cache are named by the checksum that the Hub announced (SHA-256, for weights). It
    compares sizes when it downloads; the bytes are compared here.
    """
    blob = Path(file).resolve()
    if blob.parent.name != "blobs" or not re.fullmatch("[0-9a-f]{64}", blob.name):
        return
    with blob.open("rb") as stream:
        found = sha_fileobj(stream).hex()
    if found != blob.name:
        raise ValueError(
            f"{file} is damaged: its checksum is {found[:12]}..., the Hub announced {blob.name[:12]}...; download it "
            "again with force_download=True."
        )


def _checked(part: object, file: str) -> dict[str, torch.Tensor]:
    """The tensors of one file, before anything is computed with them."""
    if not isinstance(part, dict) or not all(isinstance(t, torch.Tensor) for t in part.values()):
        raise ValueError(f"{file} does not hold tensors by name; it is no draft's weight file.")
    for name, tensor in part.items():
        # A pickled view may claim any shape over a few bytes.
        if (
            tensor.layout != torch.strided
            or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
        ):
            raise ValueError(
                f"`{name}` of {file} declares shape {_shape(tensor)} and stores less; the file is broken."
            )
    return part


def native_name(name: str) -> str:
    """`layers.0.` of newer writers is `midlayer.`, which every engine version reads."""
    return re.sub(r"^layers\.0\.", "midlayer.", name)


def fields_from_names(tensors: dict[str, torch.Tensor]) -> dict:
    """
    Configuration fields that a file's tensors tell more reliably than its `config.json` (one published says 40
    layers).
    """
    extra_layers = {int(m.group(1)) for name in tensors if (m := re.match(r"layers\.(\d{1,9})\.", name))}
    if gap := set(range(1, 1 + len(extra_layers))) - extra_layers:
        raise ValueError(f"The weights have decoder layers {sorted(extra_layers)} and no layer {min(gap)}.")
    return {
        "num_hidden_layers": 1 + max(extra_layers, default=0),
        "use_qk_norm": "midlayer.self_attn.q_norm.weight" in tensors,
        "attention_bias": "midlayer.self_attn.q_proj.bias" in tensors,
        "mlp_bias": "midlayer.mlp.gate_proj.bias" in tensors,
        "has_embed_tokens": "embed_tokens.weight" in tensors,
        "has_lm_head": "lm_head.weight" in tensors,
    }


def check_tensors(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], source: str) -> None:
    """
    Strict comparison by name and shape.

    Raises:
        ValueError: naming every missing, surplus or mis-shaped tensor. The original code loads with strict=False, so
            that a renamed key runs as a random draft; never here.
    """
    problems = [
        f"`{name}` is missing (expected shape {_shape(expected[name])})" for name in expected if name not in found
    ]
    problems += [
        f"`{name}` {_shape(found[name])} is not part of this draft model" for name in found if name not in expected
    ]
    problems += [
        f"`{name}` has shape {_shape(found[name])}, config.json makes it {_shape(expected[name])}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    if problems:
        raise ValueError(f"{source} does not fit its configuration:\n  " + "\n  ".join(problems))


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def has_file(path_or_id: str, filename: str, **hub_arguments) -> bool:
    """Whether a local directory or Hub repository carries `filename`."""
    return _find(path_or_id, filename, hub_arguments) is not None


def _find(path_or_id: str, filename: str, hub_arguments: dict) -> str | None:
    known = {name: value for name, value in hub_arguments.items() if value is not None}
    return cached_file(
        str(path_or_id),
        filename,
        _raise_exceptions_for_missing_entries=False,
        **known,
    )


def _check_index(file: str) -> None:
    """Shards lie beside their index; a name that leads elsewhere is not followed."""
    shards = _read_json(file).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise ValueError(f"{file} has no `weight_map` of tensor names to file names.")
    for name in sorted(set(shards.values())):
        if not re.fullmatch(r"[\w-][\w.-]*\.(safetensors|bin)", name):
            raise ValueError(f"{file} names the weight file {name!r}; only plain names of files beside it are read.")


def _weight_files(path_or_id: str, hub_arguments: dict) -> list[str]:
    for single, index in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        if (file := _find(path_or_id, single, hub_arguments)) is not None:
            return [file]
        if (file := _find(path_or_id, index, hub_arguments)) is not None:
            _check_index(file)
            known = {name: value for name, value in hub_arguments.items() if value is not None}
            return get_checkpoint_shard_files(str(path_or_id), file, **known)[0]
    raise OSError(
        f"There are no weights in `{path_or_id}` (looked for {SAFE_WEIGHTS_NAME}, {WEIGHTS_NAME} and their indices)."
    )
