"""EAGLE-3 for Transformers: `import hf_eagle3`, then `target.generate(**inputs, assistant_model=draft)`.

Importing this package installs the `generate` hook, once. It requires torch and transformers only.
"""

from importlib import import_module
from typing import Any

from . import compat  # noqa: F401  (first: raises on versions where the other imports would fail)
from ._version import __version__
from .adaptation import Adaptation, adapt
from .attachment import attach, detach, for_target
from .configuration_eagle3 import Eagle3Config
from .drafters.block import BlockDraftConfig, BlockDraftModel
from .drafters.eagle import EagleDraftConfig, EagleDraftModel
from .drafters.heads import HydraDraftConfig, HydraDraftModel, MedusaDraftConfig, MedusaDraftModel
from .generation.candidate_generator import Eagle3CandidateGenerator
from .generation.hook import install
from .generation.outputs import GenerateEagle3Output
from .generation.sampling.kinds import declare_row_wise
from .generation.stats import CycleRecord, CycleStreamer, SpeculationStats, record
from .hub.publish import push_to_hub
from .modeling_eagle3 import Eagle3DraftModel, Eagle3DraftOutput
from .tree_config import TreeConfig


# Names that need the extra `train` (accelerate, datasets): imported at first access.
TRAINING = ("Eagle3Trainer", "Eagle3TrainingArguments", "new_draft")
# Drafts that need no training, by the module that registers them: imported at first access.
DRAFTERS = {"LookaheadDraft": "lookahead", "SmallModelDraft": "small_model", "SuffixDraft": "suffix"}

__all__ = [
    "Adaptation",
    "BlockDraftConfig",
    "BlockDraftModel",
    "CycleRecord",
    "CycleStreamer",
    "Eagle3CandidateGenerator",
    "Eagle3Config",
    "Eagle3DraftModel",
    "Eagle3DraftOutput",
    "Eagle3Trainer",
    "Eagle3TrainingArguments",
    "EagleDraftConfig",
    "EagleDraftModel",
    "GenerateEagle3Output",
    "HydraDraftConfig",
    "HydraDraftModel",
    "LookaheadDraft",
    "MedusaDraftConfig",
    "MedusaDraftModel",
    "SmallModelDraft",
    "SpeculationStats",
    "SuffixDraft",
    "TreeConfig",
    "__version__",
    "adapt",
    "attach",
    "declare_row_wise",
    "detach",
    "new_draft",
    "record",
]


def __getattr__(name: str) -> Any:
    if name in DRAFTERS:
        return vars(import_module(f".drafters.{DRAFTERS[name]}", __name__))[name]
    if name not in TRAINING:
        raise AttributeError(f"module 'hf_eagle3' has no attribute {name!r}")
    try:
        return getattr(import_module(".training", __name__), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{name} needs {error.name}: pip install 'hf-eagle3[train]'", name=error.name
        ) from error


def _try_out() -> str | None:
    """The first end-to-end check that fails, run when transformers is newer than the last tested version."""
    from .compat.contract import first_failure

    return first_failure()


def _with_suffix(self: Eagle3DraftModel, documents=()) -> Any:
    """
    This draft with the proposals of a [`SuffixDraft`] in its trees: one budget, shared by calibrated chance.

    Args:
        documents: Token ids of texts that answers may quote, see [`SuffixDraft`].
    """
    from .drafters.grafted import GraftedDraft

    return GraftedDraft(self, documents)


Eagle3DraftModel.with_suffix = _with_suffix
# transformers' own uploads weights and configuration only.
Eagle3DraftModel.push_to_hub = BlockDraftModel.push_to_hub = push_to_hub
Eagle3DraftModel.for_target = staticmethod(for_target)
install(_try_out)
