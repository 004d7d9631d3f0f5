"""Which rows share a packed row: a bin packing of their lengths, done on their histogram instead of row by row.

First-fit with a few open bins leaves 6.5 % of the columns empty where a packed row holds three pairs on average (1024
tokens, CValues-like lengths), and sorting the rows first still 2.7 %: at a bin's end no row is as short as what is
left over. So the end of a bin is planned. As soon as two rows can fill it to the last token, they do, and of all such
pairs the one whose rows are most alike, so that the short rows stay for the bins that need them. That leaves 0.8 % at
1024 tokens and 0.1 % at 4096. And since there are few different lengths, rows of one length are placed many at a
time: a million rows cost little more than ten thousand. `benchmarks/packing.py` measures all of this.

A few hundred rows offer few such pairs, and a bin more is felt. There best-fit decreasing, row by row, is tried too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.plan.best_fit import best_fit
from ms_prefstream.plan.bins import Bins, grouped, runs

_FEW = 2**12  # rows that are packed in both ways; the second one takes some ten milliseconds for them
_SLACK = 64  # tokens that a closing pair may leave empty; looking further finds next to nothing


def pack_rows(sizes: NDArray[np.integer[Any]], capacity: int, most: int) -> Bins:
    """Puts rows into as few bins as greedy rules find, each row into exactly one.

        sizes 5 3 7 3 2     capacity 10, most 3      bins 0 1 4 | 2 3      (5 + 3 + 2, 7 + 3)

    The result is a function of the sizes in their order and of nothing else. Bins are in the order of their first
    rows.

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
    # Each entry of `contents` says: `copies` bins from `first` on hold a row of this size. Sorted by size, the entries
    # of one size cover its rows one behind the other.
    first = np.repeat(np.cumsum(times) - times, counts)
    copies = np.repeat(times, counts)
    by_size = np.argsort(contents, kind="stable")
    owner = np.empty(sizes.size, np.int64)
    owner[np.argsort(sizes, kind="stable")] = runs(first[by_size], copies[by_size])
    bins = grouped(owner, int(times.sum()))
    if sizes.size <= _FEW and bins.count > -(-int(sizes.sum()) // capacity):
        other = best_fit(sizes, capacity, most)
        return other if other.count < bins.count else bins
    return bins


class _Histogram:
    """How many rows of each size are left, with bit sets that find sizes, and pairs of sizes, in one operation.

    Args:
        counts: Rows of each size; its index is the size.
        capacity: Tokens of a bin.
    """

    def __init__(self, counts: NDArray[np.int64], capacity: int) -> None:
        self._counts: list[int] = counts.tolist()
        self._capacity = capacity
        self._rows = int(counts.sum())
        self._tokens = int((counts * np.arange(counts.size)).sum())
        self._left = self._mirror = 0  # bit s, and bit capacity - s, for each size s that is left
        for size in np.flatnonzero(counts).tolist():
            self._left |= 1 << size
            self._mirror |= 1 << (capacity - size)

    def fill(self, most: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """All bins: the sizes in each kind of bin one behind the other, their number, and how many bins are alike."""
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
        """The sizes in the next bin, the longest row that is left first; they are taken out."""
        # Rows may be so short that bins run out of places, not of tokens: then each bin must hold short rows, too.
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
        """The largest size that is left and at most `limit`; -1 if there is none."""
        longest = self._left.bit_length() - 1
        if longest > limit:
            longest = (self._left & ((2 << limit) - 1)).bit_length() - 1
        return longest

    def _closing_pair(self, room: int, alone: int) -> tuple[int, int] | None:
        """Two sizes that fill the room better than `alone` does: as fully, and then as much alike, as possible."""
        for total in range(room, max(alone, room - _SLACK), -1):
            half = (total + 1) // 2
            # Bit s is set where both s and total - s are left; from the half on, so that each pair comes once.
            pairs = (self._left & self._mirror >> (self._capacity - total)) >> half
            while pairs:
                longer = half + (pairs & -pairs).bit_length() - 1
                if longer != total - longer or self._counts[longer] > 1:
                    return longer, total - longer
                pairs &= pairs - 1
        return None

    def _again(self, sizes: list[int]) -> int:
        """Takes out the same bin as many more times as the rows that are left allow."""
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
