"""Rows in bins, and their arithmetic: which rows each bin holds, some bins of many, exactly so many bins."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.plan.keys import keyed_order


@dataclass(frozen=True, eq=False)
class Bins:
    """Rows in bins.

        rows 0 1 4 2 3     starts 0 3 5      two bins: 0 1 4 and 2 3

    Attributes:
        rows: (n,) whole numbers, the rows of the first bin, then those of the second, and so on.
        starts: (count + 1,) whole numbers, where each bin begins in `rows`, and behind them n.
    """

    rows: NDArray[np.integer[Any]]
    starts: NDArray[np.integer[Any]]

    @property
    def count(self) -> int:
        """The number of bins."""
        return len(self.starts) - 1

    def of(self, number: int) -> NDArray[np.int64]:
        """The rows of one bin, int64, memory of its own."""
        return self.rows[self.starts[number] : self.starts[number + 1]].astype(np.int64)

    def take(self, numbers: NDArray[np.int64]) -> Bins:
        """Some of the bins, in this order; a bin may come several times."""
        sizes = np.diff(self.starts)[numbers]
        starts = np.zeros(len(numbers) + 1, np.int64)
        np.cumsum(sizes, out=starts[1:])
        return Bins(self.rows[runs(self.starts[numbers], sizes)], starts)


class Fitted(NamedTuple):
    """Exactly so many bins as were wanted.

    Attributes:
        bins: The bins.
        left_out: Rows that stand in no bin any more.
        repeats: Rows that stand in bins once more than before.
    """

    bins: Bins
    left_out: int
    repeats: int


def grouped(owner: NDArray[np.int64], count: int) -> Bins:
    """Bins from the bin of each row: bins in the order of their first rows, rows ascending within a bin.

        owner 1 1 0 0 1      rows 0 1 4 2 3, starts 0 3 5

    Args:
        owner: (n,) int64, 0 to count - 1; every bin has a row.
        count: How many bins there are.
    """
    opened = np.empty(count, np.int64)
    opened[owner[::-1]] = np.arange(owner.size)[::-1]  # the value assigned last stays, which is the first row
    number = np.empty(count, np.int64)
    number[np.argsort(opened)] = np.arange(count)
    owner = number[owner]
    starts = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(owner, minlength=count), out=starts[1:])
    return Bins(np.argsort(owner, kind="stable"), starts)


def runs(firsts: NDArray[np.integer[Any]], lengths: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Numbers that count on from each first one: firsts 5 0, lengths 3 2 -> 5 6 7 0 1; int64."""
    before = np.cumsum(lengths) - lengths
    numbers: NDArray[np.int64] = np.repeat(firsts - before, lengths) + np.arange(int(lengths.sum()))
    return numbers


def exactly(bins: Bins, wanted: int, key: np.random.SeedSequence) -> Fitted:
    """As many bins as are wanted; as few rows as possible are lost or repeated for it.

    Of too many bins some are left out, chosen by the key. Too few bins are split, each time the one with the most rows
    a part; only when every bin has one row, bins come again from the first on.

        rows 0 1 4 | 2 3     wanted 3      0 1 | 4 | 2 3

    Args:
        bins: At least one.
        wanted: How many, 1 or more.
        key: Chooses what is left out.
    """
    if bins.count > wanted:
        kept = bins.take(np.sort(keyed_order(bins.count, key)[:wanted]))
        return Fitted(kept, bins.rows.size - kept.rows.size, 0)
    if bins.count < wanted:
        split = _split(bins, wanted)
        filled = split.take(np.arange(wanted) % split.count)
        return Fitted(filled, 0, filled.rows.size - bins.rows.size)
    return Fitted(bins, 0, 0)


def _split(bins: Bins, wanted: int) -> Bins:
    """The bins cut into `wanted` parts, or into single rows where there are fewer."""
    sizes: list[int] = np.diff(bins.starts).tolist()
    parts = [1] * len(sizes)
    largest = [(-float(size), number) for number, size in enumerate(sizes)]
    heapq.heapify(largest)
    for _ in range(min(wanted, bins.rows.size) - bins.count):
        number = largest[0][1]
        parts[number] += 1
        heapq.heapreplace(largest, (-sizes[number] / parts[number], number))
    pieces = [
        size // count + (piece < size % count)
        for size, count in zip(sizes, parts, strict=True)
        for piece in range(count)
    ]
    return Bins(bins.rows, np.concatenate([[0], np.cumsum(pieces)]))
