"""Steps of a few rows are loaded several at a time: what a call costs is shared by many rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

from ms_prefstream.load.loader import Load, Unit
from ms_prefstream.sample import Block

_TOKENS_AHEAD = 1 << 19
SAMPLES_AHEAD = 1 << 12
"""Rows of caches that are read together, at most; they take 10 microseconds each."""

RECORDS_AHEAD = 1 << 9
"""Rows of text that are read together, at most, with a length index: a step should not wait long for others."""


class ReadAhead:
    """A `LoadNext` that reads the units that come next together with the one that is loaded.

        load_next([step 3, step 4, ...])    reads step 3
        load_next([step 4, step 5, ...])    reads steps 4 and 5
        load_next([step 5, step 6, ...])    returns what was read
        load_next([step 6, step 7, ...])    reads steps 6 to 9

    With a length index a unit is a step of perhaps 8 rows, and a call for 8 rows takes as long as one for 100. Units
    that are not loaded in order are read one at a time. Not thread-safe: its owner holds a lock.

    Args:
        loader: Loads rows.
        rows: How many are read together, at most; no more than there are, or a small source is read many times.
    """

    def __init__(self, loader: Load, rows: int) -> None:
        self._loader, self._most = loader, rows
        self._read: dict[Hashable, tuple[list[int], Block]] = {}
        self._tokens = 1  # of a row, as the last rows had them
        self._reach = 0  # rows that are read together
        self._next: Hashable = None  # the first unit that was not read

    def load(self, rows: Sequence[int]) -> Block:
        """Returns the samples of these rows, in this order."""
        return self._loader.load(rows)

    def load_next(self, units: Iterable[Unit], rows_of: Callable[[Unit], list[int]]) -> tuple[list[int], Block]:
        """Returns the rows of the first unit and their samples; see `LoadNext`."""
        named = iter(units)
        first = next(named)
        known = self._read.pop(first, None)
        if known is not None:
            return known
        rows = rows_of(first)
        self._read = {}
        self._reach = min(self._most, 2 * self._reach) if first == self._next else len(rows)
        ahead = self._ahead(len(rows), named, rows_of)
        try:
            joined = self._loader.load([*rows, *itertools.chain.from_iterable(ahead.values())])
        except Exception:  # of a row that was not requested; where it was, the error comes again
            return rows, self._loader.load(rows)
        begin = len(rows)
        for unit, some in ahead.items():
            self._read[unit] = some, joined.take(slice(begin, begin + len(some)))
            begin += len(some)
        self._tokens = max(1, int(joined.lengths.sum()) // max(1, len(joined)))
        return rows, joined.take(slice(len(rows)))

    def _ahead(
        self, loaded: int, units: Iterator[Any], rows_of: Callable[[Any], list[int]]
    ) -> dict[Hashable, list[int]]:
        """Returns the rows of each unit that is read together with the current one of `loaded` rows."""
        found: dict[Hashable, list[int]] = {}
        self._next = None
        for unit in units:
            if loaded >= self._reach or loaded * self._tokens >= _TOKENS_AHEAD:
                self._next = unit
                break
            found[unit] = rows_of(unit)
            loaded += len(found[unit])
        return found
