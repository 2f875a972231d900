"""Finds a checkpoint's files (in a directory or on the Hub, through huggingface_hub) and loads its tensors strictly.

Does not know the model class or the meaning of `config.json` (`dialects.py`). Native tensor names are those of the
plain format: `midlayer.` for the first decoder layer, `layers.N.` for further ones.

Shape letters: H hidden, V target vocabulary, D draft vocabulary.
"""

import hashlib
import json
import pickle
import re
import shutil
from collections.abc import Callable
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
# Buffers that some trainers store although they are computed from the configuration.
DOCUMENTED_SURPLUS = (re.compile(r"(^|\.)rotary_emb\.(inv_freq|cos_cached|sin_cached)$"),)

# Remedies for missing tensors.
REMEDIES = {"lm_head.weight": "; if it was trained with the target's head, load it with has_lm_head=False"}


def load_config(path_or_id: str, **hub_arguments) -> dict:
    """The parsed `config.json` of a local directory or Hub repository; `_name_or_path` is its path."""
    file = find_file(path_or_id, CONFIG_NAME, **hub_arguments)
    if file is None:
        if has_file(path_or_id, ADAPTER_CONFIG, **hub_arguments):
            raise OSError(
                f"`{path_or_id}` is a LoRA adapter, not a draft; merge it into its base with "
                f"`hf-eagle3 convert {path_or_id} FOLDER`."
            )
        inside = f"the subfolder `{subfolder}` of " if (subfolder := hub_arguments.get("subfolder")) else ""
        raise OSError(f"There is no `{CONFIG_NAME}` in {inside}`{path_or_id}`; pass a draft's directory or Hub id.")
    return _read_json(file) | {"_name_or_path": file}


def _read_json(file: str) -> dict:
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} contains a {type(content).__name__}, not a JSON object.")
    return content


def load_tensors(
    path_or_id: str, rename: Callable[[str], str] | None = None, first: tuple[str, ...] = (), **hub_arguments
) -> dict[str, torch.Tensor]:
    """
    All tensors of a checkpoint by native name, from safetensors or `.bin` (weights only), sharded or not. `rename`
    gives the native name; default: `native_name`. Files named in `first` are preferred.

    Raises:
        OSError: no weight file.
        ValueError: a damaged file, a wrong checksum, a file without tensors or with tensors larger than their storage,
            one tensor under two names, or NaN or infinite values.
    """
    tensors: dict[str, torch.Tensor] = {}
    own = next((file for name in first if (file := find_file(path_or_id, name, **hub_arguments)) is not None), None)
    for file in weight_files(path_or_id, **hub_arguments) if own is None else [own]:
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
            native = (rename or native_name)(name)
            if native in tensors:
                raise ValueError(f"{path_or_id} stores `{native}` twice (once as `{name}`); remove one.")
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise ValueError(
                    f"`{name}` of {path_or_id} contains NaN or infinite values; the checkpoint is broken."
                )
            tensors[native] = tensor
    return {name: t for name, t in tensors.items() if not any(p.search(name) for p in DOCUMENTED_SURPLUS)}


def _check_sum(file: str) -> None:
    """
    Verify files in huggingface_hub's cache, whose blobs are named by the Hub's SHA-256. The download itself only
    compares sizes.
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
            f"{file} is damaged: its checksum is {found[:12]}..., the Hub's is {blob.name[:12]}...; download it again "
            "with force_download=True."
        )


def _checked(part: object, file: str) -> dict[str, torch.Tensor]:
    """The tensors of one file, validated before use."""
    if not isinstance(part, dict) or not all(isinstance(t, torch.Tensor) for t in part.values()):
        raise ValueError(f"{file} is not a dictionary of tensors, so it is not a weight file.")
    for name, tensor in part.items():
        # A pickled view can declare any shape over a few bytes.
        if (
            tensor.layout != torch.strided
            or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
        ):
            raise ValueError(
                f"`{name}` of {file} declares shape {_shape(tensor)} but stores less; the file is broken."
            )
    return part


def native_name(name: str) -> str:
    """
    Map `layers.0.` of newer writers to `midlayer.`, which all engine versions read; AutoModel writes `model.` first.
    """
    return re.sub(r"^layers\.0\.", "midlayer.", name.removeprefix("model."))


def fields_from_names(tensors: dict[str, torch.Tensor], config) -> dict:
    """
    Configuration fields that the tensors determine more reliably than `config.json` (a published one says 40 layers).

    A missing head means the target's if `config`, an `Eagle3Config`, says so, or if D == V (NVIDIA's Kimi drafts). A
    draft with a reduced vocabulary and no head is incomplete.
    """
    extra_layers = {int(m.group(1)) for name in tensors if (m := re.match(r"layers\.(\d{1,9})\.", name))}
    if gap := set(range(1, 1 + len(extra_layers))) - extra_layers:
        raise ValueError(f"The weights have decoder layers {sorted(extra_layers)} but no layer {min(gap)}.")
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
    Compare names and shapes strictly. (The original code loads with strict=False: renamed keys run as random weights.)

    Raises:
        ValueError: names every missing, unexpected or mis-shaped tensor.
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
        f"`{name}` has shape {_shape(found[name])}, config.json implies {_shape(expected[name])}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    if problems:
        raise ValueError(f"{source} does not fit its configuration:\n  " + "\n  ".join(problems))


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def has_file(path_or_id: str, filename: str, **hub_arguments) -> bool:
    """Whether a local directory or Hub repository has `filename`; see [`find_file`]."""
    return find_file(path_or_id, filename, **hub_arguments) is not None


def base_of_adapter(folder: str | Path) -> str | None:
    """Directory or Hub id of the base of the PEFT adapter in `folder`; `None` if `folder` is not a local adapter."""
    file = Path(folder, ADAPTER_CONFIG)
    return _read_json(str(file)).get("base_model_name_or_path") if file.is_file() else None


def with_model_files(folder: str, *names: str) -> str:
    """`folder`, or the base of the PEFT adapter in it if `folder` has none of the files `names`."""
    has_one = any(Path(folder, name).is_file() for name in names)
    return folder if has_one else base_of_adapter(folder) or folder


class HubUnreachableError(OSError):
    """The Hub did not respond and the cache has no answer: the contents of a repository are unknown."""


def find_file(path_or_id: str, filename: str, **hub_arguments) -> str | None:
    """
    Local path of `filename` in a directory or Hub repository, downloaded if needed; `None` if it does not exist.
    Offline, files that are not cached count as missing.

    Raises:
        HubUnreachableError: it is unknown whether the file exists.
        OSError: no such repository or revision, or no access to it.
    """
    known = {name: value for name, value in hub_arguments.items() if value is not None}
    source = str(path_or_id)
    if Path(source).is_dir():
        file = Path(source, known.get("subfolder", ""), filename)
        return str(file) if file.is_file() else None
    try:
        return hf_hub_download(source, filename, **known)
    except LocalEntryNotFoundError as error:  # subclass of EntryNotFoundError; says nothing about the Hub
        if known.get("local_files_only") or is_offline_mode() or _is_known_to_lack(source, filename, known):
            return None
        raise HubUnreachableError(
            f"The Hub did not respond to a request for `{filename}` of `{source}` ({_reason(error)}); try again "
            "later, or use the cache with local_files_only=True."
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
            f"`{source}` is not a directory, and the Hub has no such repository, or it is private; log in "
            "(`hf auth login`) or pass `token`."
        ) from error


def _is_known_to_lack(repo_id: str, filename: str, hub_arguments: dict) -> bool:
    """Whether huggingface_hub's cache has recorded that the repository lacks the file."""
    path = f"{hub_arguments['subfolder']}/{filename}" if "subfolder" in hub_arguments else filename
    place = {name: hub_arguments[name] for name in ("cache_dir", "revision") if name in hub_arguments}
    found = try_to_load_from_cache(repo_id, path, **place)
    return found is not None and not isinstance(found, str)


def _reason(error: Exception) -> str:
    """The cause of a huggingface_hub error, in one line."""
    return " ".join(str(error.__cause__ or error).split())


def _shard_names(file: str) -> list[str]:
    """File names in a shard index. Only plain names are accepted, as a path could point outside the checkpoint."""
    shards = _read_json(file).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise ValueError(f"{file} has no `weight_map` of tensor names to file names.")
    names = sorted(set(shards.values()))
    for name in names:
        if not re.fullmatch(r"[\w-][\w.-]*\.(safetensors|bin)", name):
            raise ValueError(
                f"{file} names the weight file {name!r}; only plain file names in the same directory are read."
            )
    return names


def weight_files(path_or_id: str, **hub_arguments) -> list[str]:
    """
    Paths of all weight files, safetensors before `.bin`. If the Hub does not respond, those in the cache.

    Raises:
        OSError: there are none, or an index names a missing one; see also [`find_file`].
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
    Give weight files in `folder` the permissions of the file `neighbour`: safetensors ignores the umask and makes them
    readable by their owner only.
    """
    for file in Path(folder).glob("*.safetensors"):
        shutil.copymode(Path(folder, neighbour), file)
