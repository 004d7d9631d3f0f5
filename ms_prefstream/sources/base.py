"""What every source of raw rows looks like to the rest of the library."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import SourceError

RawRow: TypeAlias = Any
"""One row as the data set wrote it: normally a dict, checked by the format."""


@runtime_checkable
class RandomAccess(Protocol):
    """Rows that can be read in any order: the source of choice, since a step is then a pure function."""

    name: str

    def __len__(self) -> int:
        """The number of rows, known without reading them all."""

    def read(self, rows: Sequence[int]) -> list[RawRow]:
        """The raw rows with these ids, in this order. A row that cannot be parsed is returned as a `RowError`."""

    def origin(self, row: int) -> str:
        """Where a row comes from, for people: ``"data/train.jsonl:17"`` (lines count from 1)."""

    def fingerprint(self) -> str:
        """A short hash that changes when the data changes (size and time of files, or contents where cheap)."""


@runtime_checkable
class OnePass(Protocol):
    """Rows that can only be read from the front: compressed files, generators, streams."""

    name: str

    def start(self, skip: int = 0) -> Iterator[tuple[str, RawRow]]:
        """A pass over (origin, raw row), beginning behind the first `skip` rows without parsing them.

        A row that cannot be parsed is yielded as a `RowError` in the place of the row. A source that can be read
        only once raises `SourceError` on the second pass and names the remedy.
        """

    def fingerprint(self) -> str:
        """A short hash of what identifies the data (file names, sizes and times; the type of an iterable)."""


Source: TypeAlias = RandomAccess | OnePass


_T = TypeVar("_T")


@runtime_checkable
class Beginner(Protocol):
    """A one-pass source that can say how many rows it could skip: what a chain of sources needs to go on skipping."""

    def begin(self, skip: int) -> tuple[int, Iterator[tuple[str, RawRow]]]:
        """Skip up to `skip` rows; how many there were to skip, and the pass over the rest."""


def start_pass(source: Beginner, name: str, skip: int) -> Iterator[tuple[str, RawRow]]:
    """`begin`, with a sentence for a source that is too short or has no rows at all.

    Raises:
        SourceError: Fewer rows than `skip`; or, from the first `next`, no rows where none were skipped.
    """
    skipped, rows = source.begin(skip)
    if skipped < skip:
        raise SourceError(
            f"{name}: {skip} rows were to be skipped, but there are only {skipped}. The data got shorter since the "
            "position was saved: restore it, or start a new run."
        )
    return rows if skip else _some(rows, name, source)


def skip_items(items: Iterator[Any], count: int) -> int:
    """Throw away up to `count` items at the speed of C; how many there were."""
    counter = itertools.count()
    deque(zip(itertools.islice(items, count), counter), maxlen=0)  # noqa: B905 - the counter has no end
    return next(counter)


def no_rows(name: str, ended: str = "") -> SourceError:
    """The error for a source without a single row; `ended` says why its pass ended, in brackets."""
    return SourceError(
        f"{name}: found no rows{ended}, expected at least one. Check that the data was written to the end."
    )


def _some(rows: Iterator[_T], name: str, source: object) -> Iterator[_T]:
    count = 0
    for count, row in enumerate(rows, 1):  # noqa: B007
        yield row
    if count == 0:
        raise no_rows(name, getattr(source, "ended", ""))


def as_row_ids(rows: Sequence[int], count: int, name: str) -> NDArray[np.int64]:
    """The asked rows as an array, each proven to exist.

    Args:
        rows: Row ids, in any order; an id may come twice.
        count: How many rows the source has.
        name: The source, for the error.

    Returns:
        (n,) int64.

    Raises:
        SourceError: An id is negative or not below `count`.
    """
    ids = np.asarray(rows, dtype=np.int64)
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= count):
        wrong = int(ids[(ids < 0) | (ids >= count)][0])
        raise SourceError(
            f"{name}: row {wrong} was asked for, but there are {count} rows (ids 0 to {count - 1}). "
            "The data may have changed since the order was planned: start a new run, or restore the data."
        )
    return ids


def by_part(ids: NDArray[np.int64], bounds: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Split asked rows by the part (file, row group, source) they lie in.

    Args:
        ids: (n,) int64, row ids in the asked order.
        bounds: (parts + 1,) int64, first row id of each part; the last entry is the number of rows.

    Yields:
        A part with rows, and (k,) positions into `ids`, sorted by row id.
    """
    order = np.argsort(ids, kind="stable")
    if bounds.size == 2 and ids.size:  # the usual case, a single part, at half the cost
        yield 0, order
        return
    parts = np.searchsorted(bounds, ids[order], side="right") - 1
    cuts = np.flatnonzero(np.diff(parts)) + 1
    for positions in np.split(order, cuts):
        if positions.size:
            yield int(np.searchsorted(bounds, ids[positions[0]], side="right")) - 1, positions
