"""Steps, windows and the order of rows in an epoch; and the plan that sorts each window where it is loaded."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.checks import WORD, whole_number
from ms_prefstream.errors import NoUsableRowsError
from ms_prefstream.plan.mixture import MixedOrder
from ms_prefstream.plan.options import PlanOptions
from ms_prefstream.plan.ranks import Ranks
from ms_prefstream.plan.shuffle import KeyedPermutation, SeedUse, epoch_sequence, keyed_order, moved, window_sequence


class Windows:
    """An epoch as a line of positions, K steps of G rows each, cut into windows of W steps.

        rows = 11, G = 2, W = 2      positions   0 1 2 3 | 4 5 6 7 | 8 9        K = 5, the last window is short
                                     windows        0    |    1    |  2         one row is left out

    Args:
        options: What to plan; checked already.
        steps: The steps of an epoch that holds exactly `options.rows` positions, whatever G is (packs of rows): each
            window then has positions in proportion to its steps. None where every step holds G rows.

    Attributes:
        steps_per_epoch: Steps of every epoch, the same on all ranks.
        windows_per_epoch: Windows of every epoch; the last one may be short.
        repeats_per_epoch: Slots of an epoch that hold a row for the second time, to fill the last step.
        remainder_per_epoch: Rows that an epoch leaves out, because they do not fill a step.
    """

    def __init__(self, options: PlanOptions, steps: int | None = None) -> None:
        self.options = options
        batch, self._positions = options.global_batch, options.rows
        if steps is None:
            whole, rest = divmod(options.rows, batch)
            steps = whole + (1 if rest and options.drop_remainder is not True else 0)
            self._positions = steps * batch
            self._window_rows = options.window * batch
            self._full_windows = options.rows // self._window_rows
        else:
            batch = 1
            self._window_rows = math.ceil(options.rows * options.window / steps)
            self._full_windows = steps // options.window
        self.steps_per_epoch = steps
        self.windows_per_epoch = -(-steps // options.window)
        self.repeats_per_epoch = max(0, self._positions - options.rows)
        self.remainder_per_epoch = max(0, options.rows - self._positions)
        self._mixed = None
        if options.mixture is not None:
            self._mixed = MixedOrder(
                options.mixture,
                seed=options.seed,
                shuffle=options.shuffle,
                global_batch=batch,
                window_rows=self._window_rows,
                order_noise=options.order_noise,
            )

    def left_out_and_repeated(self, epoch: int) -> tuple[int, int]:
        """Returns how many rows an epoch leaves out, and how many it takes again; parts of a mixture do both."""
        left_out, again = (0, 0) if self.options.mixture is None else self.options.mixture.left_out_and_repeated
        return self.remainder_per_epoch + left_out, self.repeats_per_epoch + again

    def locate(self, step: int) -> tuple[int, int]:
        """Returns (window, step in that window) of a step of an epoch.

        Raises:
            OptionError: The epoch has no such step.
        """
        return divmod(whole_number("step", step, 0, self.steps_per_epoch - 1), self.options.window)

    def steps_in(self, window: int) -> int:
        """Returns the steps of a window: `options.window`, fewer in a short last one."""
        window = whole_number("window", window, 0, self.windows_per_epoch - 1)
        return min(self.options.window, self.steps_per_epoch - window * self.options.window)

    def window_start(self, window: int) -> int:
        """Returns the epoch position at which a window begins; the end of the epoch for the window after the last."""
        steps = min(window * self.options.window, self.steps_per_epoch)
        return self._positions * steps // self.steps_per_epoch

    def batch_order(self, epoch: int, window: int) -> NDArray[np.int64]:
        """Returns which batch of a window each of its steps takes, (steps_in(window),) int64, the same on all ranks.

        Without it, consecutive steps would grow in length together. In the very first window, `longest_first` moves
        the last batch of the sorted window, the longest, to the front.
        """
        steps, epoch = self.steps_in(window), whole_number("epoch", epoch, 0, WORD)
        if self.options.shuffle is False:
            return np.arange(steps)
        order = _shuffled_steps(self.options.seed, epoch, window, steps)
        if self.options.longest_first and epoch == 0 and window == 0:
            order = np.concatenate([[steps - 1], order[order != steps - 1]])
        return order

    def is_filling(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Returns whether the rows at these positions of an epoch only fill its last step."""
        if self._mixed is not None:
            positions = self._mixed.turns(whole_number("epoch", epoch, 0, WORD), positions)
        return positions >= self.options.rows

    def rows_at(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the rows at these positions of an epoch, int64; positions after the last row wrap to the first."""
        epoch = whole_number("epoch", epoch, 0, WORD)
        if self.options.one_pass:
            return self._rows_by_window(epoch, positions)
        if self._mixed is not None:
            return self._mixed.rows_at(epoch, positions)
        positions = positions % self.options.rows
        if self.options.shuffle is False:
            return moved(positions, self.options.rows, self.options.order_noise, self.options.seed, epoch)
        if self.options.shuffle is True:
            return KeyedPermutation(self.options.rows, epoch_sequence(self.options.seed, epoch)).row_of(positions)
        return self._rows_by_window(epoch, positions)

    def _rows_by_window(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Computes `rows_at` where a window holds rows of one range of the source: one pass, or shuffle="window"."""
        windows, inside = np.divmod(positions, self._window_rows)
        rows = np.empty_like(positions)
        for window in np.unique(windows).tolist():
            source = window if self.options.one_pass else self._source_window(epoch, window)
            start = source * self._window_rows
            size = self.options.rows - start
            # Read in any order, the last window also covers the remainder, so each epoch leaves out different rows.
            if self.options.one_pass or source < self.windows_per_epoch - 1:
                size = min(size, self._window_rows)
            here = windows == window
            places = inside[here] % size
            if self.options.shuffle:
                key = window_sequence(self.options.seed, epoch, source, SeedUse.ROWS_OF_WINDOW)
                places = KeyedPermutation(size, key).row_of(places)
            rows[here] = start + places
        return rows

    def _source_window(self, epoch: int, window: int) -> int:
        """Returns which window of the source the epoch visits as `window`; one that is not full stays last."""
        if window >= self._full_windows:
            return window
        key = window_sequence(self.options.seed, epoch, 0, SeedUse.WINDOW_ORDER)
        return int(KeyedPermutation(self._full_windows, key).row_of(np.array([window]))[0])


@functools.lru_cache(maxsize=16)  # every step of a window reads it
def _shuffled_steps(seed: int, epoch: int, window: int, steps: int) -> NDArray[np.int64]:
    """Returns the steps of a window in their order, read-only because it is cached."""
    order = keyed_order(steps, window_sequence(seed, epoch, window, SeedUse.BATCH_ORDER))
    order.flags.writeable = False
    return order


class WindowedPlan(Windows):
    """Windows dealt out to logical shards; the rank that owns a shard sorts the shard's part of each window.

    Position p of a window belongs to logical shard p % C, so every shard has the same number of rows in each window,
    and a global step holds the same rows whatever the number of ranks. The path of a step:

        window, inside = plan.locate(step)
        batch = plan.batch_order(epoch, window)[inside]
        for shard in Ranks(world, rank, C).shards:
            rows = plan.shard_rows(epoch, window, shard)                # (s * b,)
            batches, filled_by = plan.arrange(lengths_of(rows), rows)   # tokenises one window
            rows[filled_by[batches[batch]]]                             # (b,) what this shard adds to the step
    """

    def shard_rows(self, epoch: int, window: int, shard: int) -> NDArray[np.int64]:
        """Returns the planned row ids of a shard in a window, (steps_in(window) * b,) int64, in window order."""
        return self.rows_at(epoch, self._shard_positions(window, shard))

    def shard_filling(self, epoch: int, window: int, shard: int) -> NDArray[np.bool_]:
        """Returns which of `shard_rows` only fill the last step."""
        return self.is_filling(epoch, self._shard_positions(window, shard))

    def _shard_positions(self, window: int, shard: int) -> NDArray[np.int64]:
        shards = self.options.logical_shards
        shard = whole_number("shard", shard, 0, shards - 1)
        count = self.steps_in(window) * self.options.shard_batch
        return self.window_start(window) + shard + shards * np.arange(count)

    def arrange(self, lengths: NDArray[np.integer[Any]], rows: NDArray[np.int64]) -> Arrangement:
        """Returns the batches of one logical shard's window; `rows` as `shard_rows` gave them, see `arrange`."""
        return arrange(lengths, rows, self.options.shard_batch, sort=self.options.sorts)

    def rows(self, epoch: int, step: int, rank: int, world: int) -> NDArray[np.int64] | None:
        """Returns the planned row ids of a rank's step, (G / world,) int64; None when they depend on lengths."""
        if self.options.sorts:
            self.locate(step)
            return None
        return self.rows_at(epoch, self._step_positions(epoch, step, rank, world))

    def filling(self, epoch: int, step: int, rank: int, world: int) -> NDArray[np.bool_]:
        """Returns which of `rows` only fill the last step; where nothing is sorted."""
        return self.is_filling(epoch, self._step_positions(epoch, step, rank, world))

    def _step_positions(self, epoch: int, step: int, rank: int, world: int) -> NDArray[np.int64]:
        ranks = Ranks(world, rank, self.options.logical_shards)
        window, inside = self.locate(step)
        batch = self.batch_order(epoch, window)[inside]
        slots = batch * self.options.shard_batch + np.arange(self.options.shard_batch)
        shards = np.array(ranks.shards)[:, None]  # (C / world, 1)
        positions = self.window_start(window) + shards + self.options.logical_shards * slots
        found: NDArray[np.int64] = positions.reshape(-1)
        return found


class Arrangement(NamedTuple):
    """The slots of a shard's window as batches.

    Attributes:
        batches: (s, b) int64, the slots of each batch; every slot is in exactly one.
        filled_by: (s * b,) int64, the slot whose row each slot delivers: itself, or its stand-in.
    """

    batches: NDArray[np.int64]
    filled_by: NDArray[np.int64]


def arrange(
    lengths: NDArray[np.integer[Any]], rows: NDArray[np.int64], batch_rows: int, *, sort: bool = True
) -> Arrangement:
    """Fills the slots of bad rows, sorts by length and cuts into batches.

    The i-th bad slot, in window order, is filled by the i-th good slot in key order (length, then row id, ascending),
    cyclically when there are more bad slots than good ones. Slots are then sorted by (length of the row that
    fills them, planned row id).

        lengths    9 -1  4  7     rows  30 10 20 40     batch_rows 2
        filled_by  0  2  2  3     (slot 1 takes row 20, the shortest)
        batches    [1 2] [3 0]    (lengths 4 4, 7 9)

    Args:
        lengths: (s * b,) key length of each slot's planned row, in window order; -1 where the row is bad.
        rows: (s * b,) int64, the planned row ids.
        batch_rows: b, the rows of a batch.
        sort: Whether to sort; without it, batches are cut in window order.

    Raises:
        NoUsableRowsError: No slot has a good row.
    """
    if lengths.shape != rows.shape or rows.ndim != 1 or rows.size % batch_rows:
        raise ValueError(f"{lengths.shape} lengths and {rows.shape} rows do not fill batches of {batch_rows}")
    slots = np.arange(rows.size)
    bad = lengths < 0
    filled_by = slots.copy()
    if bad.any():
        filled_by[bad] = _stand_ins(lengths, rows, slots[~bad], int(bad.sum()))
    order = np.lexsort((rows, lengths[filled_by])) if sort else slots
    return Arrangement(batches=order.reshape(-1, batch_rows), filled_by=filled_by)


def _stand_ins(
    lengths: NDArray[np.integer[Any]], rows: NDArray[np.int64], good: NDArray[np.int64], wanted: int
) -> NDArray[np.int64]:
    """Returns the first `wanted` good slots in key order, cyclically: (wanted,) int64."""
    if not good.size:
        shown = ", ".join(str(row) for row in rows[:5].tolist()) + (", …" if rows.size > 5 else "")
        raise NoUsableRowsError(
            f"All {rows.size} rows of one window of a logical shard were dropped (row ids {shown}), so no row is left "
            "to stand in for them. Look at the reasons in stream.report; a larger window, fewer logical shards or a "
            "length index (stream.build_index()) lets the run continue without these rows."
        )
    by_key = np.lexsort((rows[good], lengths[good]))
    chosen: NDArray[np.int64] = good[by_key[np.arange(wanted) % good.size]]
    return chosen
