"""Lengths counted by value: exact quantiles and histograms without a list of all lengths."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.stats.parts import Histogram, LengthGap, Lengths, Sides

_BINS = 30  # about so many
_TAIL = 0.005  # share of the values beyond which the outer bins reach


class Tally:
    """How often each value occurs. Its size depends on how many different values there are, not on how many values."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, values: NDArray[np.integer]) -> None:  # type: ignore[type-arg]
        """Counts (n,) whole numbers."""
        self._counts.update(values.tolist())

    def sorted(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the different values, ascending, and how often each occurs."""
        values = np.array(sorted(self._counts), np.int64)
        return values, np.array([self._counts[value] for value in values.tolist()], np.int64)

    def lengths(self) -> Lengths:
        """Returns what the values are."""
        values, counts = self.sorted()
        if not len(values):
            return Lengths()
        total = int(counts.sum())
        p50, p90, p99 = (quantile(values, counts, share) for share in (0.5, 0.9, 0.99))
        mean = int((values * counts).sum()) / total
        return Lengths(total, int(values[-1]), mean, p50, p90, p99, histogram(values, counts))

    def gap(self, unit: str) -> LengthGap:
        """Returns what the values are as differences of lengths."""
        values, counts = self.sorted()
        if not len(values):
            return LengthGap(unit)
        longer, shorter = values > 0, values < 0
        total = int(counts.sum())
        return LengthGap(
            unit=unit,
            pairs=total,
            chosen_longer=int(counts[longer].sum()),
            rejected_longer=int(counts[shorter].sum()),
            by=quantile(values[longer], counts[longer], 0.5),
            rejected_by=-quantile(values[shorter], counts[shorter], 0.5) if shorter.any() else 0.0,
            mean=int((values * counts).sum()) / total,
            histogram=histogram(values, counts),
        )


class SideTallies:
    """The lengths of prompts, chosen and rejected responses."""

    def __init__(self) -> None:
        self.prompt, self.chosen, self.rejected = Tally(), Tally(), Tally()

    def add(self, lengths: NDArray[np.int32]) -> None:
        """Counts (n, 3) lengths; negative ones do not exist."""
        for tally, column in zip((self.prompt, self.chosen, self.rejected), lengths.T, strict=True):
            tally.add(column[column >= 0])

    def sides(self) -> Sides:
        """Returns what the lengths are."""
        return Sides(self.prompt.lengths(), self.chosen.lengths(), self.rejected.lengths())


def quantile(values: NDArray[np.int64], counts: NDArray[np.int64], share: float) -> float:
    """Returns a quantile of values that occur so often, interpolated linearly as `numpy.quantile` does.

        values 3 5, counts 2 1     share 0.75     4.0, between 3 3 5

    `values` ascend. The result is 0 if there are none.
    """
    if not len(values):
        return 0.0
    ends = np.cumsum(counts)
    place = share * (int(ends[-1]) - 1)
    low = int(place)
    high = min(low + 1, int(ends[-1]) - 1)
    left, right = (int(values[np.searchsorted(ends, at, side="right")]) for at in (low, high))
    part = place - low
    if part >= 0.5:  # as numpy does, to the last bit
        return right - (right - left) * (1 - part)
    return left + (right - left) * part


def histogram(values: NDArray[np.int64], counts: NDArray[np.int64]) -> Histogram:
    """Returns the histogram of values that occur so often; `values` ascend, and there is at least one."""
    low = int(quantile(values, counts, _TAIL))
    high = int(quantile(values, counts, 1 - _TAIL))
    width = _round_width((high - low + 1) / _BINS)
    edges = [*range(low // width * width, high + width + 1, width)]
    edges[0] = min(edges[0], int(values[0]))
    edges[-1] = max(edges[-1], int(values[-1]))
    found, _ = np.histogram(values, bins=edges, weights=counts)
    return Histogram(tuple(edges), tuple(int(count) for count in found))


def _round_width(least: float) -> int:
    """Returns the smallest of 1, 2, 5, 10, 20, 50 … that is not below a number."""
    width = 1
    while True:
        for factor in (1, 2, 5):
            if factor * width >= least:
                return factor * width
        width *= 10
