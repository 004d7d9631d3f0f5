"""Rows that are in memory already: a list, or anything with a length and an index."""

from __future__ import annotations

import os
import re
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import orjson

from ms_prefstream.errors import SourceError
from ms_prefstream.fingerprint import hash_of
from ms_prefstream.sources.base import RandomAccess, RawRow, as_row_ids, no_rows


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


_SAMPLED_ROWS = 64
_HASHED_ROWS = 2**14  # some ten milliseconds for rows of usual length
_ADDRESS = re.compile(rb" at 0x[0-9A-Fa-f]+")


class Indexable(Protocol):
    """What `MemoryRows` can read: a list, a tuple, a map-style data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Any: ...


class MemoryRows:
    """Rows of an object with `__len__` and `__getitem__`, which it looks at each time and does not copy.

    A row that is a plain dict is handed out as a shallow copy, so that a map function may change its keys.

    Args:
        rows: The object.

    Attributes:
        name: The object's type, for people.
    """

    def __init__(self, rows: Indexable) -> None:
        self.name = type(rows).__name__
        self._rows = rows
        if len(rows) == 0:
            raise no_rows(self.name)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, rows: Sequence[int]) -> list[RawRow]:
        """The rows with these ids, in this order.

        Raises:
            SourceError: An id does not exist, or the object raised an error; that error is the cause.
        """
        with TURNS.of(self._rows):
            return [self._row(row) for row in as_row_ids(rows, len(self), self.name).tolist()]

    def origin(self, row: int) -> str:
        """Where a row comes from: ``"row 17 of list"``, the object's own index, counted from 0."""
        return f"row {row} of {self.name}"

    def fingerprint(self) -> str:
        """A hash of type, length and all rows; beyond 16,384 rows of 64 evenly spread ones, blind to other changes."""
        return sampled_rows_hash(type(self._rows), len(self), self.read, _HASHED_ROWS)

    def _row(self, row: int) -> RawRow:
        try:
            found = self._rows[row]
        except Exception as error:
            raise SourceError(
                f"{self.origin(row)}: reading it raised {type(error).__name__}: {error}. Every index from 0 to the "
                "length minus 1 must give a row."
            ) from error
        return dict(found) if type(found) is dict else found


def sampled_rows_hash(
    kind: type, count: int, read: Callable[[Sequence[int]], list[RawRow]], whole: int = _SAMPLED_ROWS
) -> str:
    """A short hash of a type's name, a number of rows, and rows.

    Args:
        kind: The type.
        count: The number.
        read: Gives rows by number.
        whole: All rows are hashed if they are so many or fewer, else 64 evenly spread ones, first and last included.
    """
    last = count - 1
    sample = sorted({last * k // (_SAMPLED_ROWS - 1) for k in range(_SAMPLED_ROWS)})
    if count <= whole:
        sample = list(range(count))
    head = f"{kind.__module__}.{kind.__qualname__}:{count}".encode()
    return hash_of([head, *map(row_bytes, read(sample))])


def row_bytes(row: RawRow) -> bytes:
    """A row as bytes that are the same in every process: no addresses of objects, keys in order."""
    options = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
    try:
        text = orjson.dumps(row, default=repr, option=options)
    except TypeError:
        text = repr(row).encode("utf-8", "backslashreplace")
    return _ADDRESS.sub(b"", text)
