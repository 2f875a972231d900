"""Bounded session store: last run, chat and caches of each user. Does not know models or pages."""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from conversation import Conversation, KeptCache
from progress import Progress


@dataclass
class Session:
    """
    Attributes:
        progress: State of the last run.
        conversation: Chat so far.
        caches: Keys and values of the chat by method; empty if dropped.
        stop: Set to stop this user's run.
    """

    progress: Progress = field(default_factory=Progress)
    conversation: Conversation = field(default_factory=lambda: Conversation([], []))
    caches: dict[str, KeptCache] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)


class Sessions:
    """
    Sessions by key; the least recently used ones are dropped first.

    Args:
        max_sessions: Number of sessions to keep.
        max_caches: Number of sessions, the most recently used ones, that may keep caches.
    """

    def __init__(self, max_sessions: int, max_caches: int):
        self.max_sessions, self.max_caches = max_sessions, max_caches
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def use(self, key: str | None) -> Session:
        """The session of `key`, marked as most recently used. Without a key, a temporary one."""
        if key is None:
            return Session()
        with self._lock:
            session = self._sessions.setdefault(key, Session())
            self._sessions.move_to_end(key)
            while len(self._sessions) > self.max_sessions:
                self._sessions.popitem(last=False)
            kept = [other for other in reversed(self._sessions.values()) if other is session or other.caches]
            for other in kept[self.max_caches :]:
                other.caches = {}  # a running generation keeps the old dictionary
            return session

    def forget(self, key: str | None) -> None:
        """Stop the user's run and delete the session."""
        with self._lock:
            session = self._sessions.pop(key, None)
        if session is not None:
            session.stop.set()

    def forget_all(self) -> None:
        """Delete all sessions, for instance because another pair was loaded."""
        with self._lock:
            self._sessions.clear()

    def __len__(self) -> int:
        return len(self._sessions)
