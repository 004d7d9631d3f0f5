"""Bin packing: which rows share a packed row, computed on the histogram of their lengths instead of row by row.

First-fit with a few open bins leaves 6.5 % of the columns empty where a packed row holds three pairs on average (1024
tokens, CValues-like lengths). Sorting the rows first still leaves 2.7 %: at a bin's end no row is as short as the room.
So the end of a bin is planned. As soon as two rows can fill it to the last token, they do. Of all such pairs the most
similar lengths are taken, which saves the short rows for the bins that need them. That leaves 0.8 % at 1024 tokens and
0.1 % at 4096. Rows of one length are placed many at a time: a million rows cost little more than ten thousand.
`benchmarks/packing.py` measures all of this.

A few hundred rows offer few such pairs, and one more bin matters. There best-fit decreasing, row by row, is tried too.
"""

from __future__ import annotations

import bisect
import heapq
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.plan.shuffle import keyed_order
from ms_prefstream.sample import runs

_FEW = 2**12  # up to so many rows are packed in both ways; best-fit takes some ten milliseconds for them
_SLACK = 64  # tokens that a closing pair may leave empty; a longer search finds almost nothing


@dataclass(frozen=True, eq=False)
class Bins:
    """Rows in bins.

        rows 0 1 4 2 3     starts 0 3 5      two bins: 0 1 4 and 2 3

    Attributes:
        rows: (n,) whole numbers, the rows of the first bin, then those of the second, and so on.
        starts: (count + 1,) whole numbers, where each bin begins in `rows`, and n at the end.
    """

    rows: NDArray[np.integer[Any]]
    starts: NDArray[np.integer[Any]]

    @property
    def count(self) -> int:
        """The number of bins."""
        return len(self.starts) - 1

    def of(self, number: int) -> NDArray[np.int64]:
        """Returns the rows of one bin as a new int64 array."""
        return self.rows[self.starts[number] : self.starts[number + 1]].astype(np.int64)

    def take(self, numbers: NDArray[np.int64]) -> Bins:
        """Returns some of the bins, in this order; a bin may be taken several times."""
        sizes = np.diff(self.starts)[numbers]
        starts = np.zeros(len(numbers) + 1, np.int64)
        np.cumsum(sizes, out=starts[1:])
        return Bins(self.rows[runs(self.starts[numbers], sizes)], starts)


def pack_rows(sizes: NDArray[np.integer[Any]], capacity: int, most: int) -> Bins:
    """Puts rows into as few bins as greedy rules find, each row into exactly one.

        sizes 5 3 7 3 2     capacity 10, most 3      bins 0 1 4 | 2 3      (5 + 3 + 2, 7 + 3)

    The result depends only on the sizes and their order. Bins are in the order of their first rows.

    Args:
        sizes: (n,) tokens of each row, 1 to `capacity`.
        capacity: Tokens of a bin.
        most: Rows that a bin may hold.

    Raises:
        ValueError: A size is out of bounds, or there is no row.
    """
    if not sizes.size or int(sizes.min()) < 1 or int(sizes.max()) > capacity or most < 1:
        found = f"{sizes.min()} to {sizes.max()}" if sizes.size else "no"
        raise ValueError(f"found {found} tokens a row, expected 1 to {capacity}; at most {most} rows a bin")
    contents, counts, times = _Histogram(np.bincount(sizes), capacity).fill(most)
    # Each entry of `contents` says: `copies` consecutive bins, beginning with bin `first`, hold a row of this size.
    # Sorted by size, the entries of one size cover its rows in order.
    first = np.repeat(np.cumsum(times) - times, counts)
    copies = np.repeat(times, counts)
    by_size = np.argsort(contents, kind="stable")
    owner = np.empty(sizes.size, np.int64)
    owner[np.argsort(sizes, kind="stable")] = runs(first[by_size], copies[by_size])
    bins = grouped(owner, int(times.sum()))
    if sizes.size <= _FEW and bins.count > -(-int(sizes.sum()) // capacity):
        other = _best_fit(sizes, capacity, most)
        return other if other.count < bins.count else bins
    return bins


def exactly(bins: Bins, wanted: int, key: np.random.SeedSequence) -> Fitted:
    """Returns exactly as many bins as are wanted; leaves out or repeats as few rows as possible.

    Of too many bins some are left out, chosen by the key. Of too few, the one with the most rows a part is split, again
    and again. Only when every bin has one row, bins are repeated from the first one.

        rows 0 1 4 | 2 3     wanted 3      0 1 | 4 | 2 3
    """
    if bins.count > wanted:
        kept = bins.take(np.sort(keyed_order(bins.count, key)[:wanted]))
        return Fitted(kept, bins.count, bins.rows.size - kept.rows.size, 0)
    if bins.count < wanted:
        split = _split(bins, wanted)
        filled = split.take(np.arange(wanted) % split.count)
        return Fitted(filled, bins.count, 0, filled.rows.size - bins.rows.size)
    return Fitted(bins, bins.count, 0, 0)


class Fitted(NamedTuple):
    """Exactly as many bins as requested.

    Attributes:
        bins: The bins.
        made: How many bins there were before.
        left_out: Rows that are in no bin any more, because there were too many bins.
        repeats: Rows that are in one bin more than before, because there were fewer rows than bins.
    """

    bins: Bins
    made: int
    left_out: int
    repeats: int


def grouped(owner: NDArray[np.int64], count: int) -> Bins:
    """Makes bins from the bin of each row: bins in the order of their first rows, rows ascending within a bin.

        owner 1 1 0 0 1      rows 0 1 4 2 3, starts 0 3 5

    `owner` is (n,) int64, 0 to count - 1; every bin has a row.
    """
    opened = np.empty(count, np.int64)
    opened[owner[::-1]] = np.arange(owner.size)[::-1]  # the last assignment wins: the first row
    number = np.empty(count, np.int64)
    number[np.argsort(opened)] = np.arange(count)
    owner = number[owner]
    starts = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(owner, minlength=count), out=starts[1:])
    return Bins(np.argsort(owner, kind="stable"), starts)


def _split(bins: Bins, wanted: int) -> Bins:
    """Cuts the bins into `wanted` parts, or into single rows where there are fewer."""
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


def _best_fit(sizes: NDArray[np.integer[Any]], capacity: int, most: int) -> Bins:
    """Puts rows into bins one by one, longest first, each into the fullest bin with room; arguments as for `pack_rows`.

        sizes 6 5 4 3 2     capacity 10      6 | 6, 5 | 6 4, 5 | 6 4, 5 3 | 6 4, 5 3 2

    Rows of one size keep their order. It is a Python loop over the rows, for thousands of them.
    """
    owner = np.empty(sizes.size, np.int64)
    rows_in: list[int] = []
    open_bins: list[tuple[int, int]] = []  # (room, bin), ascending; full ones are removed
    lengths = sizes.tolist()
    for row in np.argsort(-sizes.astype(np.int64), kind="stable").tolist():
        size = lengths[row]
        place = bisect.bisect_left(open_bins, (size, 0))
        if place < len(open_bins):
            room, number = open_bins.pop(place)
        else:
            room, number = capacity, len(rows_in)
            rows_in.append(0)
        owner[row] = number
        rows_in[number] += 1
        if room > size and rows_in[number] < most:
            bisect.insort(open_bins, (room - size, number))
    return grouped(owner, len(rows_in))


class _Histogram:
    """The number of rows left of each size, with bit sets that find sizes, and pairs of sizes, in one operation."""

    def __init__(self, counts: NDArray[np.int64], capacity: int) -> None:
        self._counts: list[int] = counts.tolist()
        self._capacity = capacity
        self._rows = int(counts.sum())
        self._tokens = int((counts * np.arange(counts.size)).sum())
        self._left = self._mirror = 0  # bit s, and bit capacity - s, for each remaining size s
        for size in np.flatnonzero(counts).tolist():
            self._left |= 1 << size
            self._mirror |= 1 << (capacity - size)

    def fill(self, most: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Returns for each kind of bin: its sizes (all concatenated), how many sizes, and how many equal bins."""
        contents: list[int] = []
        counts: list[int] = []
        times: list[int] = []
        while self._left:
            sizes = self._one_bin(most)
            contents += sizes
            counts.append(len(sizes))
            times.append(1 + self._again(sizes))
        return np.array(contents, np.int64), np.array(counts, np.int64), np.array(times, np.int64)

    def _one_bin(self, most: int) -> list[int]:
        """Takes out the sizes of the next bin, the longest remaining row first."""
        # Rows may be so short that bins run out of places, not of tokens. Each bin must then hold short rows, too.
        crowded = self._tokens * most < self._capacity * self._rows
        mean = self._tokens // self._rows
        sizes: list[int] = []
        room = self._capacity
        while self._left and len(sizes) < most:
            places = most - len(sizes)
            limit = room
            if crowded and sizes:
                limit = min(room, max(room - (places - 1) * mean, self._smallest()))
            longest = self._longest(limit)
            if longest < 0:
                break
            found: tuple[int, ...] = (longest,)
            if sizes and not crowded and places > 1 and longest < room <= 2 * longest:
                found = self._closing_pair(room, longest) or found
            for size in found:
                self._take(size)
                room -= size
            sizes += found
        return sizes

    def _smallest(self) -> int:
        return (self._left & -self._left).bit_length() - 1

    def _longest(self, limit: int) -> int:
        """Returns the largest remaining size of at most `limit`; -1 if there is none."""
        return (self._left & ((2 << limit) - 1)).bit_length() - 1

    def _closing_pair(self, room: int, alone: int) -> tuple[int, int] | None:
        """Returns two sizes that fill the room better than `alone`: as fully, then as equally, as possible."""
        for total in range(room, max(alone, room - _SLACK), -1):
            half = (total + 1) // 2
            # Bit s is set where both s and total - s remain; from the half on, so that each pair is found once.
            pairs = (self._left & self._mirror >> (self._capacity - total)) >> half
            while pairs:
                longer = half + (pairs & -pairs).bit_length() - 1
                if longer != total - longer or self._counts[longer] > 1:
                    return longer, total - longer
                pairs &= pairs - 1
        return None

    def _again(self, sizes: list[int]) -> int:
        """Takes out the same bin as many more times as the remaining rows allow."""
        kinds = {size: sizes.count(size) for size in set(sizes)}
        times = min(self._counts[size] // count for size, count in kinds.items())
        if times:
            for size, count in kinds.items():
                self._take(size, times * count)
        return times

    def _take(self, size: int, count: int = 1) -> None:
        self._counts[size] -= count
        self._rows -= count
        self._tokens -= size * count
        if not self._counts[size]:
            self._left ^= 1 << size
            self._mirror ^= 1 << (self._capacity - size)
