"""What a rule about serving engines is, and what it is asked about. Knows no engine; the rules are in `engines.py`."""

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedConfig

from ..compat.models import optional_field
from ..configuration_eagle3 import default_target_layer_ids
from .formats import CONVERTERS, EAGLE3, NAMES, ORIGINAL, READERS


@dataclass(frozen=True)
class TargetFacts:
    """
    What an export needs to know about the target.

    Args:
        name: Hub id.
        revision: Commit or tag, if known.
        architectures: As in its configuration.
        num_layers: Number of decoder layers.
        max_position_embeddings: Longest sequence the target serves.
    """

    name: str | None = None
    revision: str | None = None
    architectures: tuple[str, ...] = ()
    num_layers: int | None = None
    max_position_embeddings: int | None = None

    @classmethod
    def of(cls, config, name: str | None = None, revision: str | None = None) -> "TargetFacts":
        """From a target's configuration (the text part of a multimodal one)."""
        text = config.get_text_config(decoder=True)
        return cls(
            name=name,
            revision=revision,
            architectures=tuple(config.architectures or ()),
            num_layers=text.num_hidden_layers,
            max_position_embeddings=optional_field(text, "max_position_embeddings"),
        )


@dataclass(frozen=True)
class Case:
    """
    The input of the rules: a draft's configuration, of any kind, in a dialect, for a target; `written` is the parsed
    `config.json` if that file would be served, instead of one that this package writes.
    """

    draft: PreTrainedConfig
    dialect: str
    target: TargetFacts
    written: dict | None = None

    @property
    def readers(self) -> tuple[str, ...]:
        """Engines that read such drafts in this dialect."""
        known = READERS[self.dialect]
        return known if self.draft.model_type == EAGLE3 else tuple(engine for engine in known if engine != ORIGINAL)

    @property
    def converters(self) -> tuple[str, ...]:
        """Engines with a program that makes a file of their own from such drafts in this dialect."""
        return CONVERTERS[self.dialect] if self.draft.model_type == EAGLE3 else ()

    @property
    def usual_layers(self) -> list[int] | None:
        """Layers that an engine reads if the file names none."""
        return default_target_layer_ids(self.target.num_layers) if self.target.num_layers else None


@dataclass(frozen=True)
class Rule:
    """
    A property of a draft that some engines do not support.

    Args:
        name: Name for `--allow`.
        engines: The engines without support.
        silent: Whether they serve the draft wrongly instead of raising an error.
        applies: Whether a draft has the property.
        consequence: What the engine does.
        remedy: What to do instead.
        kinds: Of drafts that it is about, as `model_type`.
    """

    name: str
    engines: tuple[str, ...]
    silent: bool
    applies: Callable[[Case], bool]
    consequence: str
    remedy: str
    kinds: tuple[str, ...] = (EAGLE3,)


@dataclass(frozen=True)
class Finding:
    """A rule that applies for one engine."""

    engine: str
    rule: Rule

    def __str__(self) -> str:
        return f"{NAMES[self.engine]} {self.rule.consequence} (`{self.rule.name}`); {self.rule.remedy}"
