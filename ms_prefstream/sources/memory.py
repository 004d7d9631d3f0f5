"""Rows that are in memory already: a list, or anything with a length and an index."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import orjson

from ms_prefstream.errors import SourceError
from ms_prefstream.sources.base import RawRow
from ms_prefstream.sources.files import hash_of
from ms_prefstream.sources.passes import no_rows
from ms_prefstream.sources.row_ids import as_row_ids
from ms_prefstream.sources.turns import TURNS

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
