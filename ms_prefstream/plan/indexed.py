"""The plan with a length index: exact and global, known on every rank before anything is tokenised."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import NoUsableRowsError, OptionError
from ms_prefstream.plan.latest import Latest
from ms_prefstream.plan.mixture import Mixture
from ms_prefstream.plan.options import BudgetOptions, PlanOptions
from ms_prefstream.plan.ranks import rows_of_rank
from ms_prefstream.plan.windows import Windows

_CACHED_ROWS = 1 << 14  # of all windows that are cached, if they are two or more: more than are read ahead


class IndexedPlan(Windows):
    """Global windows over the usable rows, sorted by (length, row id) and cut into batches that all ranks share.

        a window's lengths, sorted   3 3 4 6 | 7 8 8 9      two global batches of 4
        on two ranks                 3 4, 3 6 | 7 8, 8 9    batch[0::2], batch[1::2]

    The plan leaves out rows that would be dropped. Every rank has the longest row of every global step, so all pad to
    the same width. The plan stores the lengths, and a few sorted windows.

    Args:
        options: What to plan. `rows` counts all rows of the index, for a mixture those of an epoch; logical shards
            have no meaning here.
        lengths: (N,) key length of each row (signed), not copied; negative where a row is unusable.
        order: (N,) what orders the rows, ascending, with ``shuffle=False``; None for the order of the source.

    Raises:
        OptionError: The index has another number of rows, or too few usable ones for one step.
        NoUsableRowsError: The index has no usable row at all.
    """

    def __init__(
        self, options: PlanOptions, lengths: NDArray[np.integer[Any]], order: NDArray[Any] | None = None
    ) -> None:
        check_index(options, lengths)
        self._kept = usable_rows(lengths >= 0, order, options.mixture)
        super().__init__(_over_usable(options, self._kept.count, lengths))
        self._lengths = lengths
        # Windows are sorted by one number that holds length and row id: five times faster than by two keys.
        self._row_bits = np.int64(lengths.size.bit_length())
        # Each step is asked for several times.
        self._windows = Latest[tuple[int, int], _Slots](max(2, _CACHED_ROWS // self._window_rows))

    def rows(self, epoch: int, step: int, rank: int, world: int) -> NDArray[np.int64]:
        """Returns the row ids of a rank's step, (G / world,) int64, ascending by length when sorted."""
        slots, inside = self._window_of(epoch, step)
        return slots.rows[inside, rows_of_rank(rank, world, self.options.global_batch)].copy()

    def filling(self, epoch: int, step: int, rank: int, world: int) -> NDArray[np.bool_]:
        """Returns which of `rows` only fill the last step, (G / world,) bool."""
        slots, inside = self._window_of(epoch, step)
        return slots.is_filling[inside, rows_of_rank(rank, world, self.options.global_batch)].copy()

    def step_length(self, epoch: int, step: int) -> int:
        """Returns the longest key length in the whole global step, which all ranks pad to."""
        slots, inside = self._window_of(epoch, step)
        return int(slots.longest[inside])

    def _window_of(self, epoch: int, step: int) -> tuple[_Slots, int]:
        """Returns the slots of a step's window over all ranks, and which step of the window it is."""
        window, inside = self.locate(step)
        return self._windows.get((epoch, window), lambda: self._slots(epoch, window)), inside

    def _slots(self, epoch: int, window: int) -> _Slots:
        """Returns the slots of a window; of several slots with one row, the last ones fill the last step."""
        shape = self.steps_in(window), self.options.global_batch
        positions = self.window_start(window) + np.arange(shape[0] * shape[1])
        is_filling = self.is_filling(epoch, positions)
        if self.options.sorts:
            numbers = np.sort(self.rows_at(epoch, positions))
            filling = np.sort(self.rows_at(epoch, positions[is_filling]))
            rows = self._kept.ids(numbers)
            keys = self._lengths[rows].astype(np.int64) << self._row_bits | rows
            keys.sort()
            rows = keys & ((np.int64(1) << self._row_bits) - 1)
            is_filling = _last_of_each(rows, self._kept.ids(filling))
        else:
            rows = self._kept.ids(self.rows_at(epoch, positions))
        order = self.batch_order(epoch, window)
        rows, is_filling = rows.reshape(shape)[order], is_filling.reshape(shape)[order]
        return _Slots(rows, is_filling, self._lengths[rows].max(axis=1))


class _Slots(NamedTuple):
    """The slots of a window, step by step as an epoch takes them.

    Attributes:
        rows: (s, G) int64, the row id of each.
        is_filling: (s, G) bool, whether it only fills the last step.
        longest: (s,), the longest key length of each step.
    """

    rows: NDArray[np.int64]
    is_filling: NDArray[np.bool_]
    longest: NDArray[np.integer[Any]]


def _last_of_each(rows: NDArray[np.int64], some: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Returns (n,) bool: True for the last slots of each row, as many as `some` holds that row.

    rows  7 7 3 5 5      some  5 7      0 1 0 0 1
    """
    found = np.zeros(rows.size, np.bool_)
    if some.size:
        order = np.argsort(rows, kind="stable")
        names, counts = np.unique(some, return_counts=True)
        ends = np.searchsorted(rows, names, side="right", sorter=order)
        for end, count in zip(ends.tolist(), counts.tolist(), strict=True):
            found[order[end - count : end]] = True
    return found


class UsableRows:
    """A map from the k-th usable row to its row id; stores the shorter of the two lists, kept or dropped.

    It takes at most 2 bytes a row of the mask (4 beyond 2**31 rows).

        mask   1 0 1 1 0 1      count 4
        k      0 1 2 3
        ids    0 2 3 5

    Args:
        mask: (N,) bool, True for rows to keep.
    """

    def __init__(self, mask: NDArray[np.bool_]) -> None:
        self.count = int(np.count_nonzero(mask))
        dropped = mask.size - self.count
        dtype = np.int32 if mask.size < 2**31 else np.int64
        self._few_kept = self.count < dropped
        if self._few_kept:
            self._list = np.flatnonzero(mask).astype(dtype)
        else:
            # The i-th dropped row, minus i: how many rows are kept before it.
            self._list = (np.flatnonzero(~mask) - np.arange(dropped)).astype(dtype)

    def ids(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the row ids of these kept rows, int64 of the same shape; faster when the numbers ascend."""
        if self._few_kept:
            return self._list[numbers].astype(np.int64)
        if not self._list.size:
            return numbers
        # The k-th kept row follows every dropped row that has at most k kept rows before it. The needle has the list's
        # type, or each call would convert the whole list.
        return numbers + np.searchsorted(self._list, numbers.astype(self._list.dtype), side="right")


class OrderedRows:
    """A map from the k-th usable row in an order to its row id; rows of one value are in the order of the source.

        mask   1 0 1 1      order 3 0 1 3      ids of 0 1 2: 2 0 3

    It takes 4 bytes a usable row (8 beyond 2**31 rows).

    Args:
        mask: (N,) bool, True for rows to keep.
        order: (N,) what orders them, ascending.
        firsts: The row id of each part's first row, and the number of rows at the end; parts are ordered separately.
    """

    def __init__(self, mask: NDArray[np.bool_], order: NDArray[Any], firsts: Sequence[int]) -> None:
        self._rows = np.flatnonzero(mask).astype(np.int32 if mask.size < 2**31 else np.int64)
        self.count = self._rows.size
        for begin, end in pairwise(np.searchsorted(self._rows, firsts).tolist()):
            part = self._rows[begin:end]
            self._rows[begin:end] = part[np.argsort(order[part], kind="stable")]

    def ids(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the row ids of these kept rows, int64 of the same shape."""
        return self._rows[numbers].astype(np.int64)


def usable_rows(
    mask: NDArray[np.bool_], order: NDArray[Any] | None, mixture: Mixture | None
) -> UsableRows | OrderedRows:
    """Returns the map from the k-th usable row to its row id, in the order of the source or another one."""
    if order is None:
        return UsableRows(mask)
    return OrderedRows(mask, order, (0, mask.size) if mixture is None else mixture.firsts)


def check_index(options: PlanOptions | BudgetOptions, lengths: NDArray[np.integer[Any]]) -> None:
    """Checks that a length index, (N,) and negative where a row is unusable, fits the source and has a usable row."""
    mixture = getattr(options, "mixture", None)
    rows = options.rows if mixture is None else mixture.firsts[-1]
    if lengths.shape != (rows,):
        raise OptionError(f"The length index has {lengths.size} rows, the source {rows}. Build the index again.")
    if int(lengths.max()) < 0:
        raise NoUsableRowsError(f"The length index marks all {rows} rows as unusable, so nothing is left to train on.")


def _over_usable(options: PlanOptions, usable: int, lengths: NDArray[np.integer[Any]]) -> PlanOptions:
    """Returns the same options for the usable rows alone."""
    mixture = options.mixture
    if mixture is not None:
        mixture = mixture.over(lengths >= 0)
        usable = mixture.rows
    if options.drop_remainder is True and usable < options.global_batch:
        raise OptionError(
            f"Only {usable} of {options.rows} rows are usable, less than one global batch "
            f"(global_batch={options.global_batch}). Use a batch of at most {usable} rows over all ranks, or "
            "drop_remainder=False, which repeats rows to fill the step."
        )
    return dataclasses.replace(options, rows=usable, mixture=mixture)
