"""Several sources one behind the other, as one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.fingerprint import hash_of
from ms_prefstream.sources.base import (
    Beginner,
    OnePass,
    RandomAccess,
    RawRow,
    Source,
    as_row_ids,
    by_part,
    skip_items,
    start_pass,
)


def concat(parts: Sequence[Source]) -> Source:
    """One source over several: random access if all parts have it, otherwise one pass over all in order."""
    if len(parts) == 1:
        return parts[0]
    random = [part for part in parts if isinstance(part, RandomAccess)]
    return JoinedRows(random) if len(random) == len(parts) else JoinedPass(parts)


class JoinedRows:
    """Random-access sources, their rows numbered through.

    Args:
        parts: The sources, in order.

    Attributes:
        name: What the rows come from, for people.
    """

    def __init__(self, parts: Sequence[RandomAccess]) -> None:
        self.name = _name(parts)
        self._parts = tuple(parts)
        self._first: NDArray[np.int64] | None = None  # (parts + 1,) first row id of each part

    def __len__(self) -> int:
        return int(self._bounds()[-1])

    def read(self, rows: Sequence[int]) -> list[RawRow]:
        """The rows with these ids, in this order; each part is asked once."""
        bounds = self._bounds()
        ids = as_row_ids(rows, int(bounds[-1]), self.name)
        result: list[RawRow] = [None] * len(ids)
        for part, positions in by_part(ids, bounds):
            local = (ids[positions] - bounds[part]).tolist()
            for position, row in zip(positions.tolist(), self._parts[part].read(local), strict=True):
                result[position] = row
        return result

    def origin(self, row: int) -> str:
        """Where a row comes from, as its part says."""
        bounds = self._bounds()
        as_row_ids([row], int(bounds[-1]), self.name)
        part = int(np.searchsorted(bounds, row, side="right")) - 1
        return self._parts[part].origin(row - int(bounds[part]))

    def fingerprint(self) -> str:
        """A hash of the parts' fingerprints in their order."""
        return hash_of([part.fingerprint().encode() for part in self._parts])

    def _bounds(self) -> NDArray[np.int64]:
        if self._first is None:
            self._first = np.cumsum([0, *map(len, self._parts)], dtype=np.int64)
        return self._first


class JoinedPass:
    """Sources of which at least one can only be read from the front: one pass over all, in order.

    Args:
        parts: The sources, in order.

    Attributes:
        name: What the rows come from, for people.
    """

    def __init__(self, parts: Sequence[Source]) -> None:
        self.name = _name(parts)
        self._parts = tuple(parts)

    @property
    def once(self) -> bool:
        """Whether there is only one pass, because a part allows no second one."""
        return any(getattr(part, "once", False) for part in self._parts)

    def start(self, skip: int = 0) -> Iterator[tuple[str, RawRow]]:
        """A pass over (origin, row) behind the first `skip` rows, which are not parsed.

        Raises:
            SourceError: A part cannot be read, or there are not that many rows.
        """
        return start_pass(self, self.name, skip)

    def begin(self, skip: int) -> tuple[int, Iterator[tuple[str, RawRow]]]:
        """How many of `skip` rows there were to skip, and the pass over the rest."""
        skipped = 0
        for number, part in enumerate(self._parts):
            here, rows = _begin(part, skip - skipped)
            skipped += here
            if skipped == skip:
                later = (_begin(other, 0)[1] for other in self._parts[number + 1 :])
                return skipped, itertools.chain(rows, itertools.chain.from_iterable(later))
        return skipped, iter(())

    def fingerprint(self) -> str:
        """A hash of the parts' fingerprints in their order."""
        return hash_of([part.fingerprint().encode() for part in self._parts])


def _begin(part: Source, skip: int) -> tuple[int, Iterator[tuple[str, RawRow]]]:
    if isinstance(part, RandomAccess):
        here = min(skip, len(part))
        return here, _in_order(part, here)
    if isinstance(part, Beginner):
        return part.begin(skip)
    rows = part.start()  # somebody's own source: it cannot say how many rows it skipped, so they are counted here
    return skip_items(rows, skip), rows


def _in_order(part: RandomAccess, first: int, at_once: int = 64) -> Iterator[tuple[str, RawRow]]:
    count = len(part)
    for begin in range(first, count, at_once):
        rows = range(begin, min(begin + at_once, count))
        yield from zip(map(part.origin, rows), part.read(rows), strict=True)


def _name(parts: Sequence[OnePass | RandomAccess | Any]) -> str:
    return f"{parts[0].name} and {len(parts) - 1} more sources"
