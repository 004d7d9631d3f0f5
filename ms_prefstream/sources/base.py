"""The two kinds of sources, as protocols, and what their implementations share."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import SourceError
from ms_prefstream.sample import Block

_ROWS_AT_ONCE = 256

RawRow: TypeAlias = Any
"""One row as the data set wrote it: normally a dict, checked by the format."""

RawPass: TypeAlias = Iterator[tuple[str, RawRow]]
"""One pass over (origin, raw row)."""


@runtime_checkable
class RandomAccess(Protocol):
    """Source whose rows can be read in any order. Prefer it: a step is then a pure function."""

    name: str
    """Name in messages: a path, or the type of an object."""

    def __len__(self) -> int:
        """Returns the number of rows, without reading them all."""

    def read(self, rows: Sequence[int]) -> list[RawRow]:
        """Returns the rows with these ids, in this order; a `RowError` in the place of a row that cannot be parsed."""

    def origin(self, row: int) -> str:
        """Returns where a row comes from, for people: ``"data/train.jsonl:17"`` (lines count from 1)."""

    def fingerprint(self) -> str:
        """Returns a short hash that changes when the data changes; it may look at samples of large data."""


@runtime_checkable
class OnePass(Protocol):
    """Source that can only be read from the front: compressed files, generators, streams."""

    name: str
    """Name in messages."""

    def start(self, skip: int = 0) -> RawPass:
        """Returns a pass over (origin, raw row), which skips the first `skip` rows without parsing them.

        A row that cannot be parsed is yielded as a `RowError`. A source that can be read only once raises
        `SourceError` on the second pass and names the remedy.
        """

    def fingerprint(self) -> str:
        """Returns a short hash of what identifies the data: pieces of files, or the type of an iterable."""


Source: TypeAlias = RandomAccess | OnePass


@runtime_checkable
class SkipsRows(Protocol):
    """One-pass source that reports how many rows it skipped, so that skipping can continue in the next source."""

    name: str

    def begin(self, skip: int) -> tuple[int, RawPass]:
        """Skips up to `skip` rows. Returns how many rows were skipped, and the pass over the rest."""


def start_pass(source: SkipsRows, skip: int = 0) -> RawPass:
    """Returns a pass over (origin, raw row), which skips the first `skip` rows without parsing them.

    Classes with a method `begin` use this function as their method `start`. Too few rows to skip, or no rows at all
    (from the first `next`), raise `SourceError`.
    """
    skipped, rows = source.begin(skip)
    if skipped < skip:
        raise SourceError(
            f"{source.name}: {skip} rows were to be skipped, but there are only {skipped}. The data got shorter since "
            "the position was saved: restore it, or start a new run."
        )
    return rows if skip else _at_least_one(rows, source)


def _at_least_one(rows: RawPass, source: SkipsRows) -> RawPass:
    first = next(rows, None)
    if first is None:
        raise no_rows(source.name, getattr(source, "ended", ""))
    yield first
    yield from rows


def begin_parts(begins: Iterable[Callable[[int], tuple[int, RawPass]]], skip: int) -> tuple[int, RawPass]:
    """Skips up to `skip` rows over several parts, given the method `begin` of each; later parts are opened lazily."""
    left, begins = skip, iter(begins)
    rows: RawPass = iter(())
    while left and (begin := next(begins, None)):
        skipped, rows = begin(left)
        left -= skipped
    return skip - left, itertools.chain(rows, itertools.chain.from_iterable(begin(0)[1] for begin in begins))


def no_rows(name: str, ended: str = "") -> SourceError:
    """Returns the error for a source without a single row; `ended` says why its pass ended, in brackets."""
    return SourceError(
        f"{name}: found no rows{ended}, expected at least one. Check that the data was written to the end."
    )


def skip_items(items: Iterator[Any], count: int) -> int:
    """Consumes up to `count` items at C speed. Returns how many there were."""
    counter = itertools.count()
    deque(zip(itertools.islice(items, count), counter), maxlen=0)  # noqa: B905 - the counter has no end
    return next(counter)


def rows_in_order(source: RandomAccess, first: int = 0) -> Iterator[RawRow]:
    """Yields the rows from number `first` on, read some at a time."""
    for begin in range(first, len(source), _ROWS_AT_ONCE):
        yield from source.read(range(begin, min(begin + _ROWS_AT_ONCE, len(source))))


def sources_in(source: Any) -> Iterator[Any]:
    """Yields the opened sources that a mix or a list of sources consists of; of any other source, the source itself."""
    parts = getattr(source, "parts", ())
    if not parts:
        yield source
    for part in parts:
        yield from sources_in(getattr(part, "source", part))


def fills_nulls(source: Any) -> bool:
    """Returns whether a source, or a part of it, fills missing keys of nested objects with null, as Arrow does."""
    return any(getattr(one, "fills_nulls", False) is True for one in sources_in(source))


# Row ids of a source that consists of parts (files, row groups, sources). `bounds` is (parts + 1,) int64: the first row
# id of each part, and the number of rows as the last entry.


def read_parts(
    rows: Sequence[int], bounds: NDArray[np.int64], name: str, read: Callable[[int, NDArray[np.int64]], list[RawRow]]
) -> list[RawRow]:
    """Returns rows of several parts, in the order of `rows`; each part is read once.

    Args:
        rows: Row ids, in any order.
        bounds: First row id of each part.
        name: The source, for errors.
        read: Returns rows of a part, given the part's number and (k,) row ids within it, sorted.
    """
    ids = as_row_ids(rows, int(bounds[-1]), name)
    found: list[RawRow] = [None] * len(ids)
    for part, positions in by_part(ids, bounds):
        for position, row in zip(positions.tolist(), read(part, ids[positions] - bounds[part]), strict=True):
            found[position] = row
    return found


def read_blocks(
    rows: Sequence[int], bounds: NDArray[np.int64], name: str, read: Callable[[int, NDArray[np.int64]], Block]
) -> Block:
    """Returns rows of several parts that are caches, in the order of `rows`, as one block; see `read_parts`."""
    ids = as_row_ids(rows, int(bounds[-1]), name)
    parts = list(by_part(ids, bounds))
    if not parts:
        return Block.empty(0, 1)
    joined = Block.join([read(part, ids[positions] - bounds[part]) for part, positions in parts])
    return joined.take(np.argsort(np.concatenate([positions for _, positions in parts])))


def locate(row: int, bounds: NDArray[np.int64], name: str) -> tuple[int, int]:
    """Returns the number of the part that a row lies in, and the row's id within that part."""
    as_row_ids([row], int(bounds[-1]), name)
    part = int(np.searchsorted(bounds, row, side="right")) - 1
    return part, row - int(bounds[part])


def as_row_ids(rows: Sequence[int], count: int, name: str) -> NDArray[np.int64]:
    """Returns row ids as an array; raises `SourceError` if one is negative or not below `count`."""
    ids = np.asarray(rows, dtype=np.int64)
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= count):
        wrong = int(ids[(ids < 0) | (ids >= count)][0])
        raise SourceError(
            f"{name}: row {wrong} was requested, but there are {count} rows (ids 0 to {count - 1}). "
            "The data may have changed since the order was planned: start a new run, or restore the data."
        )
    return ids


def by_part(ids: NDArray[np.int64], bounds: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yields the number of each part that (n,) row ids lie in, and (k,) positions in `ids`, sorted by row id."""
    order = np.argsort(ids, kind="stable")
    if bounds.size == 2 and ids.size:  # the usual case, a single part, at half the cost
        yield 0, order
        return
    parts = np.searchsorted(bounds, ids[order], side="right") - 1
    cuts = np.flatnonzero(np.diff(parts)) + 1
    for part, positions in zip(np.split(parts, cuts), np.split(order, cuts), strict=True):
        if positions.size:
            yield int(part[0]), positions
