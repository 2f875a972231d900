"""What is remembered of each visitor, bounded: last run, chat, caches. Does not know models or pages."""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from conversation import Conversation, KeptCache
from progress import Progress


@dataclass
class Session:
    """
    Attributes:
        progress: Of the last run.
        conversation: Chat so far.
        caches: Its keys and values by way; empty where they were dropped.
        stop: Set to end this visitor's run.
    """

    progress: Progress = field(default_factory=Progress)
    conversation: Conversation = field(default_factory=lambda: Conversation([], []))
    caches: dict[str, KeptCache] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)


class Sessions:
    """
    By key; the longest unused go first.

    Args:
        most: Sessions remembered.
        most_caches: Of these, the most recently used may keep caches.
    """

    def __init__(self, most: int, most_caches: int):
        self.most, self.most_caches = most, most_caches
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def use(self, key: str | None) -> Session:
        """The session of `key`, now the most recently used. Without a key, one that nobody will find again."""
        if key is None:
            return Session()
        with self._lock:
            session = self._sessions.setdefault(key, Session())
            self._sessions.move_to_end(key)
            while len(self._sessions) > self.most:
                self._sessions.popitem(last=False)
            kept = [other for other in reversed(self._sessions.values()) if other is session or other.caches]
            for other in kept[self.most_caches :]:
                other.caches = {}  # a run that still uses them has the old dictionary
            return session

    def forget(self, key: str | None) -> None:
        """The visitor left: stop what runs, drop the rest."""
        with self._lock:
            session = self._sessions.pop(key, None)
        if session is not None:
            session.stop.set()

    def forget_all(self) -> None:
        """Another pair was loaded: conversations and caches are of the old one."""
        with self._lock:
            self._sessions.clear()

    def __len__(self) -> int:
        return len(self._sessions)
