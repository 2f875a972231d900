"""Offline features: the target's hidden states for training, computed once and stored in half precision.

A folder contains `features-00000.safetensors`, ... (consecutive samples), `target.safetensors` (embedding and head, so
that training does not need the target) and `provenance.json`, which identifies the target. A token takes about
2 (F + H) bytes, 32 KB for an 8B target: 30 TB for a billion tokens. Online training needs none of this. Does not know
the training loop.

Shape letters: L tokens of a sample, H hidden size of the target, F width of the tapped features, V vocabulary.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..checkpoint import share_weights
from ..compat.models import commit_of
from ..configuration_eagle3 import Eagle3Config
from ..target.fingerprint import fingerprint
from ..target.parts import head_options, shaped_logits, unwrap_peft
from ..target.target import Target
from .conversations import Tokenised, tokenise
from .messages import BadRow


PROVENANCE, TARGET_FILE = "provenance.json", "target.safetensors"
FORMAT = 1
COLUMNS = ("input_ids", "loss_mask", "target_features", "last_hidden_states")


@dataclass
class Provenance:
    """
    Origin of the features. Two folders with equal provenance (shards aside) may be mixed.

    Attributes:
        target, revision: Name or path that the target was loaded from, and its commit on the Hub if known.
        fingerprint: Hash of the target's weights, adapters included.
        target_layer_ids: Tapped layers.
        template_hash: Hash of the chat template and its extra arguments.
        head: Scale and soft cap of the target's head.
        shards, contents: Number of samples in each file, and a hash of their tokens.
    """

    target: str
    revision: str | None
    fingerprint: str
    target_layer_ids: list[int]
    hidden_size: int
    vocab_size: int
    dtype: str
    template_hash: str
    max_length: int
    head: dict[str, float] = field(default_factory=dict)
    shards: list[int] = field(default_factory=list)
    contents: list[str] = field(default_factory=list)
    format: int = FORMAT

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        target: Target,
        dtype: torch.dtype,
        tokenizer,
        max_length: int,
        template_kwargs: Mapping | None = None,
    ) -> "Provenance":
        """Provenance of features that `target` is going to compute."""
        return cls(
            target=model.config.name_or_path,
            revision=commit_of(model.config),
            fingerprint=fingerprint(model),
            target_layer_ids=target.layer_ids,
            hidden_size=target.config.hidden_size,
            vocab_size=target.config.vocab_size,
            dtype=str(dtype).removeprefix("torch."),
            template_hash=template_hash(tokenizer, template_kwargs),
            max_length=max_length,
            head=head_options(target.config),
        )

    @classmethod
    def read(cls, folder: Path) -> "Provenance":
        """Read the provenance of a folder; ValueError if it is missing or of another format."""
        path = folder / PROVENANCE
        if not path.is_file():
            raise ValueError(f"`{folder}` has no {PROVENANCE}; create it with `hf-eagle3 prepare features`.")
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored.get("format") != FORMAT:
            raise ValueError(f"`{folder}` has features of format {stored.get('format')}, this version reads {FORMAT}.")
        return cls(**stored)

    def write(self, folder: Path) -> None:
        """Write atomically."""
        temporary = folder / (PROVENANCE + ".tmp")
        temporary.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        os.replace(temporary, folder / PROVENANCE)

    def refuse_other(self, other: "Provenance", folder: Path) -> None:
        """
        Raises:
            ValueError: `other` has another target, template or shape; every difference is listed.
        """
        # The fingerprint identifies a target, wherever it was loaded from.
        skipped = {"shards", "contents", "target", "revision"}
        mine, theirs = asdict(self), asdict(other)
        different = [
            f"{name}: {mine[name]} there, {theirs[name]} here"
            for name in mine
            if name not in skipped and mine[name] != theirs[name]
        ]
        if different:
            raise ValueError(
                f"The features in `{folder}` belong to another target or configuration ({'; '.join(different)}). Use "
                "another folder."
            )


def content_hash(samples: Iterable[dict]) -> str:
    """Hash of the tokens of some samples."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(json.dumps(list(sample["input_ids"])).encode())
    return digest.hexdigest()[:16]


def template_hash(tokenizer: PreTrainedTokenizerBase | None, template_kwargs: Mapping | None = None) -> str:
    """16 hexadecimal digits that depend on the chat template and its extra arguments."""
    template = tokenizer.chat_template if tokenizer is not None else None
    given = [template, dict(template_kwargs)] if template_kwargs else template
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:16]


def estimate_bytes(num_tokens: int, target: Target) -> int:
    """Approximate size on disk of the features of `num_tokens` tokens."""
    width = (len(target.layer_ids) + 1) * target.config.hidden_size
    return num_tokens * (2 * width + 16) + 4 * target.config.vocab_size * target.config.hidden_size


class FeatureWriter:
    """
    Writes features of tokenised samples; an interrupted run can be resumed.

    Args:
        folder: Output folder.
        model: The target.
        draft_config: Determines the tapped layers.
        tokenizer: The tokenizer of the samples; its chat template is recorded.
        dtype: bfloat16 or float16; bfloat16 cannot overflow.
        max_length: Longer samples are truncated.
        samples_per_shard: Number of samples per file.
        template_kwargs: Extra arguments of the chat template; recorded.

    Raises:
        ValueError: the folder contains features of another target or configuration.
    """

    def __init__(
        self,
        folder: str | Path,
        model: PreTrainedModel,
        draft_config: Eagle3Config,
        tokenizer: PreTrainedTokenizerBase | None = None,
        dtype: torch.dtype = torch.bfloat16,
        max_length: int = 2048,
        samples_per_shard: int = 512,
        template_kwargs: Mapping | None = None,
    ):
        if dtype not in (torch.bfloat16, torch.float16):
            raise ValueError(f"`dtype` is {dtype}; features are stored in bfloat16 or float16.")
        self.folder, self.dtype, self.max_length = Path(folder), dtype, max_length
        self.samples_per_shard = samples_per_shard
        base = unwrap_peft(model)
        self.target = Target(base, draft_config)
        self.provenance = Provenance.of(base, self.target, dtype, tokenizer, max_length, template_kwargs)
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / PROVENANCE).exists():
            stored = Provenance.read(self.folder)
            stored.refuse_other(self.provenance, self.folder)
            self.provenance.shards, self.provenance.contents = stored.shards, stored.contents
        else:
            save_file(head_weights(base), self.folder / TARGET_FILE)
            self.provenance.write(self.folder)

    def write(self, samples: Sequence[dict], progress: Iterable | None = None) -> int:
        """
        Compute and write the missing ones of `samples` ({"input_ids", "loss_mask"}); returns how many were written.

        Raises:
            ValueError: the samples differ from those already written, or one of them is unusable.
        """
        self._refuse_other_samples(samples)
        done = sum(self.provenance.shards)
        device, written = self.target.embedding_weight.device, 0
        for start in range(done, len(samples), self.samples_per_shard):
            shard: dict[str, Tensor] = {}
            chosen = range(start, min(start + self.samples_per_shard, len(samples)))
            for index in chosen:
                sample = self._checked(samples[index], index)
                ids = torch.tensor([sample.input_ids], device=device)
                if index == 0:
                    self.target.check_head(ids[:, :32])
                features, hidden = self.target.read(ids, torch.ones_like(ids))
                values = (ids[0], torch.tensor(sample.loss_mask), features[0], hidden[0])
                for name, value in zip(COLUMNS, values, strict=True):
                    value = value.to(self.dtype) if value.is_floating_point() else value.to(torch.int32)
                    shard[f"{index - start}.{name}"] = value.cpu().contiguous()
                if progress is not None:
                    progress.update()
            number = len(self.provenance.shards)
            save_file(shard, self.folder / f"{shard_name(number)}.tmp")
            os.replace(self.folder / f"{shard_name(number)}.tmp", self.folder / shard_name(number))
            self.provenance.shards.append(len(chosen))
            self.provenance.contents.append(content_hash(samples[i] for i in chosen))
            self.provenance.write(self.folder)
            share_weights(self.folder, PROVENANCE)
            written += len(chosen)
        return written

    def _checked(self, sample: dict, index: int) -> Tokenised:
        try:
            out = tokenise(sample, None, self.max_length, vocab_size=self.provenance.vocab_size)
            if not out.input_ids:
                raise BadRow("It has no tokens.")
        except BadRow as error:
            raise ValueError(f"Sample {index + 1} is unusable: {error} Remove it (`tokenised` does).") from None
        return out

    def _refuse_other_samples(self, samples: Sequence[dict]) -> None:
        start = 0
        for count, expected in zip(self.provenance.shards, self.provenance.contents, strict=True):
            chosen = range(start, start + count)
            start += count
            if start > len(samples) or content_hash(samples[i] for i in chosen) != expected:
                raise ValueError(
                    f"`{self.folder}` contains features of other samples (up to number {start}); use another folder."
                )


def head_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """
    Embedding and head of a target, which are stored with its features.

    Raises:
        ValueError: the head is not a plain linear layer (quantised, or with an adapter).
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings().weight
    if type(head) is not torch.nn.Linear:
        raise ValueError(
            f"The target's head is a {type(head).__name__}; offline features need a plain linear layer. Merge its "
            "adapter, or train online."
        )
    weights = {"embedding": embedding.detach().cpu().contiguous()}
    if head.weight.data_ptr() != embedding.data_ptr():
        weights["head"] = head.weight.detach().cpu().contiguous()
    if head.bias is not None:
        weights["bias"] = head.bias.detach().cpu().contiguous()
    return weights


def shard_name(number: int) -> str:
    """File name of shard `number`."""
    return f"features-{number:05d}.safetensors"


class FeatureDataset(torch.utils.data.Dataset):
    """The samples of a feature folder, read from disk on access."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.places = [
            (number, index)
            for number, count in enumerate(Provenance.read(self.folder).shards)
            for index in range(count)
        ]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        return self._read(position, COLUMNS)

    def tokens(self) -> Iterator[dict[str, Tensor]]:
        """`input_ids` and `loss_mask` of every sample, without reading its features."""
        return (self._read(position, COLUMNS[:2]) for position in range(len(self)))

    def _read(self, position: int, names: Sequence[str]) -> dict[str, Tensor]:
        number, index = self.places[position]
        with safe_open(self.folder / shard_name(number), "pt") as shard:
            return {name: shard.get_tensor(f"{index}.{name}") for name in names}


class CachedTarget:
    """
    Replaces the target in training on offline features: its embedding and head only.

    Args:
        folder: Written by [`FeatureWriter`] or `hf-eagle3 prepare features`.
        model: The target, to check that the features belong to it.
        tokenizer, template_kwargs: Likewise, to check the chat template and its extra arguments.

    Raises:
        ValueError: the features belong to another target or chat template.
    """

    def __init__(
        self,
        folder: str | Path,
        model: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        template_kwargs: Mapping | None = None,
    ):
        self.folder = Path(folder)
        self.provenance = Provenance.read(self.folder)
        if model is not None and fingerprint(unwrap_peft(model)) != self.provenance.fingerprint:
            raise ValueError(
                f"The features in `{folder}` were computed with `{self.provenance.target}`; the weights of "
                f"`{model.config.name_or_path}` differ."
            )
        if tokenizer is not None and template_hash(tokenizer, template_kwargs) != self.provenance.template_hash:
            raise ValueError(
                f"The features in `{folder}` were computed with another chat template or other `chat_template_kwargs`."
            )
        weights = load_file(self.folder / TARGET_FILE)
        self.embedding = weights["embedding"]
        self.head_weight = weights.get("head", self.embedding)
        self.head_bias = weights.get("bias")

    def check_fits(self, config: Eagle3Config) -> None:
        """Raises ValueError if the draft of `config` reads other layers or another target."""
        names = ("target_layer_ids", "target_hidden_size", "vocab_size")
        found = (config.target_layer_ids, config.target_hidden_size, config.vocab_size)
        expected = (self.provenance.target_layer_ids, self.provenance.hidden_size, self.provenance.vocab_size)
        for name, mine, theirs in zip(names, found, expected, strict=True):
            if mine != theirs:
                raise ValueError(f"The draft has `{name}` {mine}, the features in `{self.folder}` have {theirs}.")

    def to(self, device: torch.device) -> None:
        """Move embedding and head to `device`."""
        tied = self.head_weight is self.embedding
        self.embedding = self.embedding.to(device)
        self.head_weight = self.embedding if tied else self.head_weight.to(device)
        self.head_bias = self.head_bias if self.head_bias is None else self.head_bias.to(device)

    def embedding_rows(self, ids: Tensor) -> Tensor:
        """Embeddings (..., H) of token ids (...)."""
        return F.embedding(ids.to(self.embedding.device), self.embedding)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (n, V) of last hidden states (n, H)."""
        with torch.autocast(hidden.device.type, enabled=False):
            product = F.linear(hidden.to(self.head_weight.dtype), self.head_weight, self.head_bias)
            return shaped_logits(product, self.provenance.head)

    def head_rows(self, ids: Tensor | None) -> Tensor:
        """Rows of the head for target ids (D,), (D, H); `None`: all rows."""
        return self.head_weight if ids is None else self.head_weight[ids.to(self.head_weight.device)]
