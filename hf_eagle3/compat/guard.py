"""Whether drafts may be used with the installed transformers at all.

On a proved version: yes, unless a point of contact is missing (a fork). On a newer one, the end-to-end checks of the
contract run at the first call of a process, in under a second, and a success is stored on disk. If a check fails,
`generate` runs without the draft: same text, no speedup. Does not know what the checks are.
"""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from huggingface_hub import constants
from transformers.utils import logging

from .._version import __version__
from .points import GENERATE, PROCESSORS, first_fault
from .versions import NEWEST_PROVED, OLDEST, is_proved, transformers_version


logger = logging.get_logger(__name__)

STRICT = "HF_EAGLE3_STRICT"  # 1: raise instead of running without the draft


class Guard:
    """
    Args:
        try_out: Runs the end-to-end checks; returns the failure, or `None`.
        memory: File that stores which versions passed.
    """

    def __init__(self, try_out: Callable[[], str | None], memory: Path | None = None):
        self._try_out, self._lock = try_out, threading.RLock()
        self._memory = memory or Path(constants.HF_HOME) / "hf_eagle3" / "transformers_versions.json"
        self._fault: str | None = None
        self._is_decided = self._is_trying = self._has_warned = False

    def refuses(self) -> str | None:
        """
        Why drafts cannot be used, logged once per process; `None` if they can.

        Raises:
            RuntimeError: they cannot be used and the environment variable `HF_EAGLE3_STRICT` is 1.
        """
        if not self._is_decided:
            self._decide()
        if self._fault is None:
            return None
        if os.environ.get(STRICT) == "1":
            raise RuntimeError(f"{self._fault} ({STRICT}=1)")
        if not self._has_warned:
            self._has_warned = True
            logger.warning(f"{self._fault} `generate` runs without the draft: same text, no speedup.")
        return self._fault

    def _decide(self) -> None:
        with self._lock:
            if self._is_decided or self._is_trying:  # the checks call `generate` with a draft themselves
                return
            self._is_trying = True
            try:
                fault = self._find_fault()
            finally:
                self._is_trying = False
            if fault is not None:
                self._fault = (
                    f"hf_eagle3 {__version__} cannot use a draft with transformers {transformers_version}: {fault}. "
                    "Install a newer hf_eagle3 or an older transformers: `pip install "
                    f"'transformers>={OLDEST},<={NEWEST_PROVED}'`."
                )
            self._is_decided = True

    def _find_fault(self) -> str | None:
        found = first_fault((GENERATE,))
        if found is not None:
            point, fault = found
            return f"{point.path} ({point.used_for}) is {fault}"
        if not is_proved():
            slower = first_fault((PROCESSORS,))
            if slower is not None:
                logger.warning(
                    f"transformers {transformers_version} is newer than hf_eagle3 {__version__} was tested with: "
                    f"{slower[0].path} is {slower[1]}, so calls that use it are slower. A newer hf_eagle3 may "
                    "support it."
                )
            if self._versions not in self._passed_versions():
                fault = self._try_out()
                if fault is not None:
                    return fault
                self._store()
        return None

    @property
    def _versions(self) -> str:
        return f"transformers {transformers_version}, hf_eagle3 {__version__}, torch {torch.__version__}"

    def _passed_versions(self) -> list[str]:
        try:
            found = json.loads(self._memory.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # missing, unreadable or damaged
            return []
        return found if isinstance(found, list) else []

    def _store(self) -> None:
        """Store a success. Not of development versions, which may change; failures are checked again."""
        if "dev" in transformers_version:
            return
        try:
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            part = self._memory.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps([*self._passed_versions(), self._versions], indent=1), encoding="utf-8")
            part.replace(self._memory)
        except OSError:  # not writable: the checks run again next time
            pass
