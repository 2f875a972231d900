"""EAGLE-3 for Transformers: `import hf_eagle3`, then `target.generate(**inputs, assistant_model=draft)`.

Importing this package installs the `generate` hook, once. It needs torch and transformers only.
"""

from ._version import __version__
from .configuration_eagle3 import Eagle3Config
from .generation.candidate_generator import Eagle3CandidateGenerator
from .generation.hook import install
from .generation.outputs import GenerateEagle3Output
from .generation.processors import declare_row_wise
from .generation.stats import CycleRecord, CycleStreamer, SpeculationStats, record
from .modeling_eagle3 import Eagle3DraftModel, Eagle3DraftOutput
from .tree_config import TreeConfig


__all__ = [
    "CycleRecord",
    "CycleStreamer",
    "Eagle3CandidateGenerator",
    "Eagle3Config",
    "Eagle3DraftModel",
    "Eagle3DraftOutput",
    "GenerateEagle3Output",
    "SpeculationStats",
    "TreeConfig",
    "__version__",
    "declare_row_wise",
    "record",
]

install()
