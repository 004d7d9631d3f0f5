"""The plan with a length index: exact and global, known for every rank before anything is tokenised."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import NoUsableRowsError, OptionError
from ms_prefstream.plan.options import PlanOptions
from ms_prefstream.plan.ranks import Ranks
from ms_prefstream.plan.windows import Windows


class UsableRows:
    """The rows that a mask keeps, numbered 0..count - 1; at most 2 bytes a row of the mask (4 beyond 2**31 rows).

        mask   1 0 1 1 0 1      count 4
        k      0 1 2 3
        ids    0 2 3 5

    Args:
        mask: (N,) bool, True for rows to keep.
    """

    def __init__(self, mask: NDArray[np.bool_]) -> None:
        self.count = int(np.count_nonzero(mask))
        left_out = mask.size - self.count
        dtype = np.int32 if mask.size < 2**31 else np.int64
        self._few_kept = self.count < left_out
        if self._few_kept:
            self._list = np.flatnonzero(mask).astype(dtype)
        else:
            # The i-th row left out, minus i: how many rows are kept before it.
            self._list = (np.flatnonzero(~mask) - np.arange(left_out)).astype(dtype)

    def ids(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row ids of these kept rows, int64 of the same shape; several times faster on many when they ascend."""
        if self._few_kept:
            return self._list[numbers].astype(np.int64)
        if not self._list.size:
            return numbers
        # The k-th kept row stands behind every row left out that has at most k kept rows before it. Of the list's own
        # type, or the whole list would be converted in each call.
        return numbers + np.searchsorted(self._list, numbers.astype(self._list.dtype), side="right")


_CACHED_WINDOWS = 2
_WindowKey = tuple[int, int]


class IndexedPlan(Windows):
    """Global windows over the usable rows, sorted by (length, row id), cut into global batches, dealt out by stride.

        a window's lengths, sorted   3 3 4 6 | 7 8 8 9      two global batches of 4
        on two ranks                 3 4, 3 6 | 7 8, 8 9    batch[0::2], batch[1::2]

    Rows that would be dropped are gone before planning, and every rank knows the longest row of every global step, so
    that all pad alike. Besides the index itself the plan holds at most two sorted windows.

    Args:
        options: What to plan. `rows` counts all rows of the index, for a mixture those of an epoch; logical shards
            have no meaning here.
        lengths: (N,) key length of each row (int32), held, not copied; negative where a row is unusable.
        usable: (N,) bool, False for rows that are left out; None leaves out the rows of negative length only.

    Raises:
        OptionError: The index has another number of rows, or too few usable ones for one step.
        NoUsableRowsError: The index has no usable row at all.
    """

    def __init__(
        self, options: PlanOptions, lengths: NDArray[np.integer[Any]], usable: NDArray[np.bool_] | None = None
    ) -> None:
        usable = _usable_rows(options, lengths, usable)
        self._kept = UsableRows(usable)
        super().__init__(_over_usable(options, self._kept.count, usable))
        self._lengths = lengths
        # A window is sorted by one number, length and row id side by side: five times faster than by two.
        self._row_bits = np.int64(lengths.size.bit_length())
        if int(lengths.max()).bit_length() + lengths.size.bit_length() > 63:
            raise OptionError(
                f"The length index is too large: {lengths.size} rows, the longest {lengths.max()} tokens."
            )
        self._cache: tuple[tuple[_WindowKey, NDArray[np.int64]], ...] = ()

    def rows(self, epoch: int, step: int, rank: int, world: int) -> NDArray[np.int64]:
        """The row ids of a rank's step, (G / world,) int64, ascending by length when sorted.

        Raises:
            OptionError: There is no such step, or no such rank, or `world` does not divide the global batch.
        """
        Ranks(world, rank).batch_size(self.options.global_batch)
        return self._global_batch(epoch, step)[rank::world].copy()

    def step_length(self, epoch: int, step: int) -> int:
        """The longest key length in the whole global step: what all ranks pad to."""
        return int(self._lengths[self._global_batch(epoch, step)].max())

    def _global_batch(self, epoch: int, step: int) -> NDArray[np.int64]:
        """(G,) int64 row ids of one step over all ranks."""
        window, inside = self.locate(step)
        batch = int(self.batch_order(epoch, window)[inside])
        size = self.options.global_batch
        if self.options.sorts:
            return self._sorted_window(epoch, window)[batch * size : (batch + 1) * size]
        positions = self.window_start(window) + batch * size + np.arange(size)
        return self._kept.ids(self.rows_at(epoch, positions))

    def _sorted_window(self, epoch: int, window: int) -> NDArray[np.int64]:
        """(s * G,) int64 row ids of a window, ascending by (length, row id)."""
        for key, rows in self._cache:
            if key == (epoch, window):
                return rows
        positions = self.window_start(window) + np.arange(self.steps_in(window) * self.options.global_batch)
        rows = self._kept.ids(np.sort(self.rows_at(epoch, positions)))
        keys = self._lengths[rows].astype(np.int64) << self._row_bits | rows
        keys.sort()
        rows = keys & ((np.int64(1) << self._row_bits) - 1)
        # Replaced as a whole: a reader in another thread sees the old pair or the new one.
        self._cache = (((epoch, window), rows), *self._cache[: _CACHED_WINDOWS - 1])
        return rows


def _usable_rows(
    options: PlanOptions, lengths: NDArray[np.integer[Any]], usable: NDArray[np.bool_] | None
) -> NDArray[np.bool_]:
    """(N,) bool, True for the rows that are planned."""
    rows = options.rows if options.mixture is None else options.mixture.firsts[-1]
    if lengths.shape != (rows,):
        raise OptionError(f"The length index has {lengths.size} rows, the source {rows}. Build the index anew.")
    if usable is None:
        return lengths >= 0
    if usable.shape != lengths.shape or usable.dtype != np.bool_:
        raise ValueError(f"usable is {usable.shape} {usable.dtype}, expected {lengths.shape} bool")
    return usable & (lengths >= 0)


def _over_usable(options: PlanOptions, usable: int, mask: NDArray[np.bool_]) -> PlanOptions:
    """The same options for the usable rows alone."""
    if not usable:
        raise NoUsableRowsError(
            f"The length index marks all {mask.size} rows as unusable, so nothing is left to train on."
        )
    mixture = options.mixture
    if mixture is not None:
        mixture = mixture.over(mask)
        usable = mixture.rows
    if options.drop_remainder and usable < options.global_batch:
        raise OptionError(
            f"Only {usable} of {options.rows} rows are usable, less than one global batch "
            f"(global_batch={options.global_batch}). Use a batch of at most {usable} rows over all ranks, or "
            "drop_remainder=False, which repeats rows to fill the step."
        )
    return dataclasses.replace(options, rows=usable, mixture=mixture)
