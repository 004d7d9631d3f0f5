"""What is the user's own is read by one thread at a time: objects in memory need not be safe for threads.

Besides the training thread there are threads that answer workers, that prefetch, and those of other streams.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from ms_prefstream.sources.base import RandomAccess, RawRow


class _Turns:
    """One lock for all such sources, since several may share an object; a fork has a lock of its own."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # a source may be made of others
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self.lock = threading.RLock()


TURNS = _Turns()


class OwnRows:
    """A source of a class of the user.

    Args:
        source: It.

    Attributes:
        name: Its name.
    """

    def __init__(self, source: RandomAccess) -> None:
        self.name = source.name
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def read(self, rows: Sequence[int]) -> list[RawRow]:
        """The rows with these ids, in this order."""
        with TURNS.lock:
            return self._source.read(rows)

    def origin(self, row: int) -> str:
        """Where a row comes from."""
        with TURNS.lock:
            return self._source.origin(row)

    def fingerprint(self) -> str:
        """What the source says about its data."""
        with TURNS.lock:
            return self._source.fingerprint()


def is_own(source: object) -> bool:
    """Whether a source is of a class that is not ours."""
    return not isinstance(source, type) and str(type(source).__module__).partition(".")[0] != "ms_prefstream"
