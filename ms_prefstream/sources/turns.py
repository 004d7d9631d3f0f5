"""What is the user's own is read by one thread at a time: objects in memory need not be safe for threads.

Besides the training thread there are threads that answer workers, that prefetch, and those of other streams.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from typing import Any

from ms_prefstream.sources.base import RandomAccess, RawRow


class _Turns:
    """A lock for each object that is being read, as long as it is; a fork has locks of its own."""

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def of(self, thing: object) -> threading.RLock:
        """The lock of an object, which must live as long as the lock is held."""
        with self._guard:
            lock = self._locks.get(id(thing))
            if lock is None:
                lock = self._locks[id(thing)] = threading.RLock()
            return lock

    def _renew(self) -> None:
        self._guard = threading.Lock()
        self._locks: weakref.WeakValueDictionary[int, threading.RLock] = weakref.WeakValueDictionary()


TURNS = _Turns()


class OwnRows:
    """A source of a class of the user, with everything else that it has.

    Args:
        source: It.

    Attributes:
        name: Its name.
    """

    name: str

    def __init__(self, source: RandomAccess) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def read(self, rows: Sequence[int]) -> list[RawRow]:
        """The rows with these ids, in this order."""
        with TURNS.of(self._source):
            return self._source.read(rows)

    def origin(self, row: int) -> str:
        """Where a row comes from."""
        with TURNS.of(self._source):
            return self._source.origin(row)

    def fingerprint(self) -> str:
        """What the source says about its data."""
        with TURNS.of(self._source):
            return self._source.fingerprint()

    def __getattr__(self, name: str) -> Any:
        if name == "_source":  # while it is being unpickled
            raise AttributeError(name)
        return getattr(self._source, name)


def is_own(source: object) -> bool:
    """Whether a source is of a class that is not ours."""
    return not isinstance(source, type) and str(type(source).__module__).partition(".")[0] != "ms_prefstream"
