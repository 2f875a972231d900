"""Drafts given by name, a directory or Hub id: loaded once per target. Does not know calls."""

import weakref
from pathlib import Path

from transformers import PreTrainedModel
from transformers.utils import logging

from ..checkpoint import load_config
from ..draft_model import DraftModel
from ..modeling_eagle3 import Eagle3DraftModel
from .draft.interface import draft_class


logger = logging.get_logger(__name__)
_LOADED: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # target -> name -> (its files, the draft)


def draft_named(name: str, target: PreTrainedModel) -> DraftModel:
    """The draft at a directory or Hub id, in the target's dtype, loaded again when the directory's files change."""
    known = _LOADED.setdefault(target, {})
    files = _file_versions(Path(name))
    if name not in known or known[name][0] != files:
        logger.info("Loading the draft %s for %s.", name, type(target).__name__)
        kind = draft_class(load_config(name), Eagle3DraftModel)
        draft = kind.from_pretrained(name, dtype=target.dtype).to(target.device).eval()
        known[name] = files, draft
    return known[name][1]


def _file_versions(folder: Path) -> list[tuple[str, int, int]]:
    """(path, size, time of change) of each file of a draft's directory; empty for a Hub id."""
    if not folder.is_dir():
        return []
    files = ((file, file.stat()) for file in sorted(folder.resolve().iterdir()) if file.is_file())
    return [(str(file), facts.st_size, facts.st_mtime_ns) for file, facts in files]
