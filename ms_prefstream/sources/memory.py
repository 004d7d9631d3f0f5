"""Rows that are in memory already: a list, or anything with a length and an index; and sources of the user's own."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from typing import Any

from ms_prefstream.errors import SourceError
from ms_prefstream.sources.base import RandomAccess, RawRow, as_row_ids, no_rows
from ms_prefstream.sources.content_hash import sampled_rows_hash

_HASHED_ROWS = 2**14  # some ten milliseconds for rows of usual length


class MemoryRows:
    """Rows of an object with `__len__` and `__getitem__`; the object is not copied.

    A row that is a plain dict is returned as a shallow copy, so that a map function may change its keys.
    """

    def __init__(self, rows: Any) -> None:
        self.name = type(rows).__name__
        self._rows = rows
        self.fills_nulls = getattr(rows, "fills_nulls", False)
        if len(rows) == 0:
            raise no_rows(self.name)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, rows: Sequence[int]) -> list[RawRow]:
        """Returns the rows with these ids, in this order; an error of the object becomes a `SourceError`."""
        with lock_of(self._rows):
            return [self._row(row) for row in as_row_ids(rows, len(self), self.name).tolist()]

    def origin(self, row: int) -> str:
        """Returns where a row comes from: ``"row 17 of list"``, the object's own index, counted from 0."""
        return f"row {row} of {self.name}"

    def fingerprint(self) -> str:
        """Returns a hash of type, length and all rows; beyond 16,384 rows, of 64 evenly spread ones."""
        return sampled_rows_hash(type(self._rows), self, _HASHED_ROWS)

    def _row(self, row: int) -> RawRow:
        try:
            found = self._rows[row]
        except Exception as error:
            raise SourceError(
                f"{self.origin(row)}: reading it raised {type(error).__name__}: {error}. Every index from 0 to the "
                "length minus 1 must give a row."
            ) from error
        return dict(found) if type(found) is dict else found


class OwnRows:
    """Random-access source of a class of the user, read by one thread at a time."""

    def __init__(self, source: RandomAccess) -> None:
        self.name = source.name
        self._source = source
        self.fills_nulls = getattr(source, "fills_nulls", False)

    def __len__(self) -> int:
        return len(self._source)

    def read(self, rows: Sequence[int]) -> list[RawRow]:
        """Returns the rows with these ids, in this order."""
        with lock_of(self._source):
            return self._source.read(rows)

    def origin(self, row: int) -> str:
        """Returns where a row comes from."""
        with lock_of(self._source):
            return self._source.origin(row)

    def fingerprint(self) -> str:
        """Returns the source's own fingerprint."""
        with lock_of(self._source):
            return self._source.fingerprint()


_guard = threading.Lock()
_locks: weakref.WeakValueDictionary[int, threading.RLock] = weakref.WeakValueDictionary()


def lock_of(thing: object) -> threading.RLock:
    """Returns the lock under which one thread at a time reads an object; streams that share the object share it."""
    with _guard:
        return _locks.setdefault(id(thing), threading.RLock())


def _new_locks() -> None:
    """Drops locks that other threads held in the parent when this process was forked: nobody would release them."""
    global _guard, _locks
    _guard, _locks = threading.Lock(), weakref.WeakValueDictionary()


os.register_at_fork(after_in_child=_new_locks)
