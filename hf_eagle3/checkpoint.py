"""Files of a checkpoint: where they are (a directory, or the Hub through huggingface_hub), and strictly read tensors.

Does not know the model class, nor what `config.json` means (`dialects.py`). Native tensor names are the plain
directory's: `midlayer.` for the first decoder layer, `layers.N.` for further ones.

Shape letters: H hidden, V target vocabulary, D draft vocabulary.
"""

import hashlib
import json
import pickle
import re
import shutil
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from safetensors.torch import load_file


# File names that transformers, PEFT and huggingface_hub write and read.
CONFIG_NAME = "config.json"
SAFETENSORS_NAMES = ("model.safetensors", "model.safetensors.index.json")
PICKLE_NAMES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
ADAPTER_CONFIG = "adapter_config.json"  # PEFT's
HUB_ARGUMENTS = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "subfolder")
# Buffers that some trainers store; they hold nothing that is not computed from the configuration.
DOCUMENTED_SURPLUS = (re.compile(r"(^|\.)rotary_emb\.(inv_freq|cos_cached|sin_cached)$"),)

# What to do about a missing tensor.
REMEDIES = {"lm_head.weight": "; if it was trained with the target's rows for a head, load it with has_lm_head=False"}


def load_config(path_or_id: str, **hub_arguments) -> dict:
    """The parsed `config.json` of a local directory or Hub repository; `_name_or_path` says where it lies."""
    file = find_file(path_or_id, CONFIG_NAME, **hub_arguments)
    if file is None:
        if has_file(path_or_id, ADAPTER_CONFIG, **hub_arguments):
            raise OSError(
                f"`{path_or_id}` holds a LoRA adapter, not a draft; write the draft that it makes of its base with "
                f"`hf-eagle3 convert {path_or_id} FOLDER`."
            )
        raise OSError(f"There is no `{CONFIG_NAME}` in `{path_or_id}`; give a draft's directory or Hub id.")
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
    for file in weight_files(path_or_id, **hub_arguments):
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
    digest = hashlib.sha256()
    with blob.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    found = digest.hexdigest()
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


def fields_from_names(tensors: dict[str, torch.Tensor], config) -> dict:
    """
    Configuration fields that a file's tensors tell more reliably than its `config.json` (one published says 40
    layers). A head that is not there is the target's where `config`, an `Eagle3Config`, says so, or where it would be
    the target's whole head (NVIDIA's Kimi drafts); a reduced draft without one has lost it.
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
        "has_lm_head": "lm_head.weight" in tensors or (config.has_lm_head and config.has_vocabulary_mapping),
    }


def check_tensors(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], source: str) -> None:
    """
    Strict comparison by name and shape.

    Raises:
        ValueError: naming every missing, surplus or mis-shaped tensor. The original code loads with strict=False, so
            that a renamed key runs as a random draft; never here.
    """
    problems = [
        f"`{name}` is missing (expected shape {_shape(expected[name])}){REMEDIES.get(name, '')}"
        for name in expected
        if name not in found
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
    """Whether a local directory or Hub repository carries `filename`; see [`find_file`]."""
    return find_file(path_or_id, filename, **hub_arguments) is not None


class HubUnreachableError(OSError):
    """The Hub did not answer, and the cache does not tell either: nothing is known of what a repository holds."""


def find_file(path_or_id: str, filename: str, **hub_arguments) -> str | None:
    """
    Path of `filename` in a local directory or, downloaded, of a Hub repository; `None` if there is none. Offline, what
    is not in the cache counts as missing.

    Raises:
        HubUnreachableError: nothing is known of the file.
        OSError: no such repository or revision, or no access to it.
    """
    known = {name: value for name, value in hub_arguments.items() if value is not None}
    source = str(path_or_id)
    if Path(source).is_dir():
        file = Path(source, known.get("subfolder", ""), filename)
        return str(file) if file.is_file() else None
    try:
        return hf_hub_download(source, filename, **known)
    except LocalEntryNotFoundError as error:  # an EntryNotFoundError that says nothing of what the Hub has
        if known.get("local_files_only") or is_offline_mode() or _is_known_to_lack(source, filename, known):
            return None
        raise HubUnreachableError(
            f"The Hub did not answer when asked for `{filename}` of `{source}` ({_reason(error)}); try again later, "
            "or read what is cached with local_files_only=True."
        ) from error
    except EntryNotFoundError:
        return None
    except HFValidationError as error:
        raise OSError(f"`{source}` is neither a directory nor a Hub id ({error})") from error
    except RevisionNotFoundError as error:
        raise OSError(f"`{source}` has no revision `{known.get('revision')}` on the Hub.") from error
    except GatedRepoError as error:
        raise OSError(f"Access to `{source}` must be requested on its page; then log in (`hf auth login`).") from error
    except RepositoryNotFoundError as error:
        raise OSError(
            f"`{source}` is no directory, and the Hub has no such repository, or none that you may see; log in for a "
            "private one (`hf auth login`), or pass `token`."
        ) from error


def _is_known_to_lack(repo_id: str, filename: str, hub_arguments: dict) -> bool:
    """Whether huggingface_hub's cache remembers that the repository has no such file."""
    path = f"{hub_arguments['subfolder']}/{filename}" if "subfolder" in hub_arguments else filename
    place = {name: hub_arguments[name] for name in ("cache_dir", "revision") if name in hub_arguments}
    found = try_to_load_from_cache(repo_id, path, **place)
    return found is not None and not isinstance(found, str)


def _reason(error: Exception) -> str:
    """What lies under an error of huggingface_hub, in one line."""
    return " ".join(str(error.__cause__ or error).split())


def _shard_names(file: str) -> list[str]:
    """Shards lie beside their index; a name that leads elsewhere is not followed."""
    shards = _read_json(file).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise ValueError(f"{file} has no `weight_map` of tensor names to file names.")
    names = sorted(set(shards.values()))
    for name in names:
        if not re.fullmatch(r"[\w-][\w.-]*\.(safetensors|bin)", name):
            raise ValueError(f"{file} names the weight file {name!r}; only plain names of files beside it are read.")
    return names


def weight_files(path_or_id: str, **hub_arguments) -> list[str]:
    """
    Paths of all weight files, safetensors before `.bin`. Where the Hub does not answer, those in the cache.

    Raises:
        OSError: there are none, or an index names one that is not there; see also [`find_file`].
    """
    try:
        return _weight_files(path_or_id, hub_arguments)
    except HubUnreachableError as error:
        try:
            return _weight_files(path_or_id, hub_arguments | {"local_files_only": True})
        except OSError:
            raise error from None


def _weight_files(path_or_id: str, hub_arguments: dict) -> list[str]:
    for single, index in (SAFETENSORS_NAMES, PICKLE_NAMES):
        if (file := find_file(path_or_id, single, **hub_arguments)) is not None:
            return [file]
        if (file := find_file(path_or_id, index, **hub_arguments)) is not None:
            names = _shard_names(file)
            files = [find_file(path_or_id, name, **hub_arguments) for name in names]
            if None in files:
                raise OSError(f"{file} names `{names[files.index(None)]}`, which is not in `{path_or_id}`.")
            return files
    raise OSError(
        f"There are no weights in `{path_or_id}` (looked for {SAFETENSORS_NAMES[0]}, {PICKLE_NAMES[0]} and their "
        "indices)."
    )


def share_weights(folder: str | Path, neighbour: str = CONFIG_NAME) -> None:
    """
    Weight files in `folder` may be read by whoever may read the file `neighbour` beside them: safetensors writes them
    for their owner alone, whatever the umask.
    """
    for file in Path(folder).glob("*.safetensors"):
        shutil.copymode(Path(folder, neighbour), file)
