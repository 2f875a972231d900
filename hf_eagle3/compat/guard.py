"""Whether drafts may be used with this transformers at all.

On a proved version: yes, unless a point of contact is missing (a fork). On a newer one the end-to-end part of the
contract runs at the first call of a process, in under a second, and a success is remembered on disk. Where something
fails, `generate` runs without the draft: the same text, not faster.
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
        try_out: Runs the contract end to end; returns what fails, or `None`.
        memory: File that remembers which versions passed.
    """

    def __init__(self, try_out: Callable[[], str | None], memory: Path | None = None):
        self._try_out, self._lock = try_out, threading.RLock()
        self._memory = memory or Path(constants.HF_HOME) / "hf_eagle3" / "transformers_versions.json"
        self._fault: str | None = None
        self._is_decided = self._is_trying = self._has_warned = False

    def refuses(self) -> str | None:
        """
        Why drafts cannot be used here, said once per process; `None`: they can.

        Raises:
            RuntimeError: they cannot, and the environment variable `HF_EAGLE3_STRICT` is 1.
        """
        if not self._is_decided:
            self._decide()
        if self._fault is None:
            return None
        if os.environ.get(STRICT) == "1":
            raise RuntimeError(f"{self._fault} ({STRICT}=1)")
        if not self._has_warned:
            self._has_warned = True
            logger.warning(f"{self._fault} `generate` runs without the draft: the same text, not faster.")
        return self._fault

    def _decide(self) -> None:
        with self._lock:
            if self._is_decided or self._is_trying:  # trying out calls `generate` with a draft itself
                return
            self._is_trying = True
            try:
                fault = self._found()
            finally:
                self._is_trying = False
            if fault is not None:
                self._fault = (
                    f"hf_eagle3 {__version__} cannot use a draft with transformers {transformers_version}: {fault}. Take a "
                    f"newer hf_eagle3 or an older version: `pip install 'transformers>={OLDEST},<={NEWEST_PROVED}'`."
                )
            self._is_decided = True

    def _found(self) -> str | None:
        found = first_fault((GENERATE,))
        if found is not None:
            point, fault = found
            return f"{point.path} ({point.used_for}) is {fault}"
        if not is_proved():
            slower = first_fault((PROCESSORS,))
            if slower is not None:
                logger.warning(
                    f"transformers {transformers_version} is newer than hf_eagle3 {__version__} knows: {slower[0].path} is "
                    f"{slower[1]}, so that calls with it are drafted more slowly. A newer hf_eagle3 may know it."
                )
            if self._pair not in self._remembered():
                fault = self._try_out()
                if fault is not None:
                    return fault
                self._remember()
        return None

    @property
    def _pair(self) -> str:
        return f"transformers {transformers_version}, hf_eagle3 {__version__}, torch {torch.__version__}"

    def _remembered(self) -> list[str]:
        try:
            found = json.loads(self._memory.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # none yet, not readable, or damaged
            return []
        return found if isinstance(found, list) else []

    def _remember(self) -> None:
        """Only what passed and will not change: a development version may, and a failure is looked for again."""
        if "dev" in transformers_version:
            return
        try:
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            part = self._memory.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps([*self._remembered(), self._pair], indent=1), encoding="utf-8")
            part.replace(self._memory)
        except OSError:  # a disk that cannot be written costs the time again, nothing else
            pass
