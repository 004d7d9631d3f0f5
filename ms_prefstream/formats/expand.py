"""The records of a source in any order, for formats that give several records a row, or none."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import RowError, SourceError
from ms_prefstream.formats.base import Format
from ms_prefstream.formats.record import Record
from ms_prefstream.sources.base import RandomAccess

_CHUNK = 1024
_KINDS_FROM = 20_000  # rows
_KINDS_SHOWN = 8

_Made: TypeAlias = Record | tuple[Record, ...] | RowError
_Result = TypeVar("_Result")


class Expanded:
    """The records of a source, numbered one by one, with random access.

    A format without `count` gives one record a row and nothing is read in advance. With `count`, all rows are counted
    once; the cumulative counts take 8 bytes a row, and none when every row gives one record. A row that cannot be
    counted counts as one, so that reading it reports the error.

    ====================  ======================  =======================================
    rows of the source    count                   rows here
    ====================  ======================  =======================================
    a.jsonl:1, :2, :3     2, 0, 1                 a.jsonl:1#1, a.jsonl:1#2, a.jsonl:3
    ====================  ======================  =======================================

    Args:
        source: Raw rows.
        fmt: Turns them into records.

    Attributes:
        name: The source's name.
        filtered: How many rows of the source the format filtered out.
    """

    def __init__(self, source: RandomAccess, fmt: Format) -> None:
        self.name = source.name
        self.source = source
        self._format = fmt
        count = getattr(fmt, "count", None)
        self._ends: NDArray[np.int64] | None = None if count is None else _cumulative(source, count)  # (n,)
        self.filtered = 0
        if self._ends is not None:
            self.filtered = int(np.count_nonzero(np.diff(self._ends, prepend=0) == 0))
            if len(self._ends) == 0 or (self.filtered == 0 and self._ends[-1] == len(self._ends)):
                self._ends = None

    def none_passed(self) -> str:
        """Returns, for an error, that no row passes the filter, with the kinds of rows there are, most frequent first.

        An empty string if the format filtered out no row.
        """
        if not self.filtered:
            return ""
        kind: Callable[[Any], str | None] = getattr(self._format, "kind", lambda row: None)
        rows = self.source.read(range(min(len(self.source), _KINDS_FROM)))
        kinds = Counter(found for row in rows if isinstance(found := _attempt(kind, row), str))
        found = ", ".join(f"{name!r} ({count})" for name, count in kinds.most_common(_KINDS_SHOWN))
        return " that pass the filter of its format" + (
            f" (it asks for {self._format!r}; found {found})" if found else ""
        )

    def __len__(self) -> int:
        """Returns the number of records."""
        return len(self.source) if self._ends is None else int(self._ends[-1])

    def locate(self, row: int) -> tuple[int, int, int]:
        """Returns (row of the source, index of the record in it, number of its records) of a record."""
        if self._ends is None:
            return row, 0, 1
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        raw = int(np.searchsorted(self._ends, row, side="right"))
        start = int(self._ends[raw - 1]) if raw else 0
        return raw, row - start, int(self._ends[raw]) - start

    def origin(self, row: int) -> str:
        """Returns the origin for errors: ``a.jsonl:17``, or ``a.jsonl:17#2`` if line 17 gives several records."""
        raw, index, count = self.locate(row)
        origin = self.source.origin(raw)
        return f"{origin}#{index + 1}" if count > 1 else origin

    def read(self, rows: Sequence[int]) -> list[Record | RowError]:
        """Returns the records with these numbers, in this order, each with its origin; a bad row is a `RowError`."""
        places = [self.locate(row) for row in rows]
        wanted = list(dict.fromkeys(raw for raw, _, _ in places))
        made = {raw: _attempt(self._format, row) for raw, row in zip(wanted, self.source.read(wanted), strict=True)}
        return [self._pick(made[raw], index, count, row) for row, (raw, index, count) in zip(rows, places, strict=True)]

    def raws(self, rows: Sequence[int]) -> list[Any]:
        """Returns the raw rows of records, in this order; None for a row that cannot be parsed."""
        places = [self.locate(row)[0] for row in rows]
        wanted = list(dict.fromkeys(places))
        found = dict(zip(wanted, self.source.read(wanted), strict=True))
        return [None if isinstance(found[raw], RowError) else found[raw] for raw in places]

    def raw(self, row: int) -> Any:
        """Returns the raw row of a record, for the quarantine file; None if it cannot be parsed."""
        return self.raws([row])[0]

    @property
    def row_of_each(self) -> NDArray[np.int64] | None:
        """The row of the source that each record comes from, (records,); None where every row has one."""
        if self._ends is None:
            return None
        return np.repeat(np.arange(len(self._ends)), np.diff(self._ends, prepend=0))

    def fingerprint(self) -> str:
        """Returns a hash of the source's fingerprint and of how many records each row gives."""
        source = self.source.fingerprint()
        if self._ends is None:
            return source
        return hashlib.blake2b(source.encode() + self._ends.tobytes(), digest_size=16).hexdigest()

    def _pick(self, made: _Made, index: int, count: int, row: int) -> Record | RowError:
        if isinstance(made, RowError):
            return made.at(self.origin(row))
        if isinstance(made, tuple):
            if len(made) != count:
                raise SourceError(
                    f"{self.origin(row)}: format {self._format.name!r} gives {len(made)} records, but counted {count} "
                    "when the source was opened. Its count must equal the number of records, and the data must not "
                    "change while they are read."
                )
            made = made[index]
        return made if made.origin else replace(made, origin=self.origin(row))


def _cumulative(source: RandomAccess, count: Callable[[Any], int]) -> NDArray[np.int64]:
    """Returns the ends of each row's records: the cumulative sum of the counts, (n,) int64."""
    ends = np.empty(len(source), np.int64)
    for start in range(0, len(ends), _CHUNK):
        stop = min(start + _CHUNK, len(ends))
        counts = [_attempt(count, raw) for raw in source.read(range(start, stop))]
        ends[start:stop] = [1 if isinstance(found, RowError) else found for found in counts]
    np.cumsum(ends, out=ends)
    return ends


def _attempt(function: Callable[[Any], _Result], raw: Any) -> _Result | RowError:
    """Returns ``function(raw)``, or the `RowError` of a row that is bad."""
    if isinstance(raw, RowError):
        return raw
    try:
        return function(raw)
    except RowError as error:
        return error.as_value()
