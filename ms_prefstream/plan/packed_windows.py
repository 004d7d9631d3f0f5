"""Packs without a length index: window by window, in a number of steps that the user gives."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import OptionError
from ms_prefstream.plan.bins import Bins, exactly
from ms_prefstream.plan.check import WORD, whole_number
from ms_prefstream.plan.fill import pack_rows
from ms_prefstream.plan.keys import Use, keyed_order, window_sequence
from ms_prefstream.plan.options import PlanOptions
from ms_prefstream.plan.permutation import KeyedPermutation
from ms_prefstream.plan.windows import Windows


class WindowPacks(NamedTuple):
    """One logical shard's window, packed.

    Attributes:
        bins: (s * b) packs in the order in which steps take them; places among the good rows of the window.
        made: Packs that the rows filled before they were made to fit the steps.
        left_out: Rows that are in no pack, because the steps of the window did not hold them all.
        repeats: Rows that are in a pack once more, because there were fewer rows than packs.
    """

    bins: Bins
    made: int
    left_out: int
    repeats: int


class PackedWindows:
    """Windows of rows, each packed on its own into the packs of its steps.

        steps_per_epoch 5, window 2, rows 23     steps    0 1 | 2 3 | 4        G = 4 packs a step, all ranks together
                                                 rows     0-8 | 9-17| 18-22    positions, in proportion to the steps

    What holds: Every epoch has exactly `steps` steps of full batches, the same number on all ranks. Every row of the
    epoch belongs to one window and one logical shard of it (position p of a window to shard p % C), so the packs of a
    step are a function of the window's own rows: resuming tokenises one window, and the ranks of any number that
    divides C hold the same packs together.

    Every usable row is in exactly one pack if the steps suffice. How many packs the rows of a window fill is only known
    once they are tokenised: where it is more than its steps take, some are left out, counted, and other ones in each
    epoch; where it is fewer, packs are split, so that they hold more padding but no row comes twice. Only with fewer
    usable rows than packs do rows come again, which is counted too.

    Args:
        options: What to plan: `global_batch` counts packed rows, everything else rows. `drop_remainder` has no
            meaning: nothing is left over.
        steps: The steps of an epoch.
        capacity: Tokens of a packed row.
        most: Rows (pairs count once) that a packed row may hold.

    Raises:
        OptionError: An epoch would have more packed rows than rows.
    """

    def __init__(self, options: PlanOptions, steps: int, capacity: int, most: int) -> None:
        steps = whole_number("steps_per_epoch", steps, 1)
        if options.longest_first:
            raise OptionError(
                "longest_first=True has no meaning in packs: every step has the same shape. Leave it out."
            )
        if steps * options.global_batch > options.rows:
            raise OptionError(
                f"steps_per_epoch={steps} of {options.global_batch} packed rows each (all ranks together) makes "
                f"{steps * options.global_batch} packed rows, but the source has only {options.rows} rows. Give "
                f"steps_per_epoch={max(1, options.rows // options.global_batch)} or, since several rows share a packed "
                "row, less; a length index finds the exact number."
            )
        self.options = dataclasses.replace(options, sort=False)
        self.steps_per_epoch = steps
        self.capacity, self.most = capacity, most
        rows_a_window = math.ceil(options.rows * options.window / steps)
        self._line = Windows(
            dataclasses.replace(
                self.options, global_batch=1, logical_shards=1, window=rows_a_window, drop_remainder=True
            )
        )

    @property
    def windows_per_epoch(self) -> int:
        """Windows of every epoch; the last one may be short."""
        return -(-self.steps_per_epoch // self.options.window)

    @property
    def repeats_per_epoch(self) -> int:
        """Known only once windows are packed; see `WindowPacks.repeats`."""
        return 0

    @property
    def remainder_per_epoch(self) -> int:
        """Known only once windows are packed; see `WindowPacks.left_out`."""
        return 0

    def rows(self, epoch: int, step: int, rank: int, world: int) -> None:
        """Which rows form a step depends on lengths, which are not known."""

    def locate(self, step: int) -> tuple[int, int]:
        """(window, step in that window) of a step of an epoch.

        Raises:
            OptionError: The epoch has no such step.
        """
        return divmod(whole_number("step", step, 0, self.steps_per_epoch - 1), self.options.window)

    def steps_in(self, window: int) -> int:
        """The steps of a window: `options.window`, fewer in a short last one."""
        window = whole_number("window", window, 0, self.windows_per_epoch - 1)
        return min(self.options.window, self.steps_per_epoch - window * self.options.window)

    def window_start(self, window: int) -> int:
        """The epoch position of a window's first row; of the window behind the last one, the number of rows."""
        steps = min(window * self.options.window, self.steps_per_epoch)
        return self.options.rows * steps // self.steps_per_epoch

    def shard_rows(self, epoch: int, window: int, shard: int) -> NDArray[np.int64]:
        """The row ids of one logical shard in one window, int64, in window order; shards differ by a row at most."""
        shards = self.options.logical_shards
        shard = whole_number("shard", shard, 0, shards - 1)
        return self._window_rows(whole_number("epoch", epoch, 0, WORD), window)[shard::shards]

    def _window_rows(self, epoch: int, window: int) -> NDArray[np.int64]:
        options = self.options
        if not options.one_pass and (options.shuffle != "window" or options.mixture is not None):
            return self._line.rows_at(epoch, np.arange(self.window_start(window), self.window_start(window + 1)))
        source = window if options.one_pass else self._source_window(epoch, window)
        begin, end = self.window_start(source), self.window_start(source + 1)
        rows = np.arange(end - begin)
        if options.shuffle:
            key = window_sequence(options.seed, epoch, source, Use.ROWS_OF_WINDOW)
            rows = KeyedPermutation(end - begin, key).row_of(rows)
        return begin + rows

    def _source_window(self, epoch: int, window: int) -> int:
        """Which window of the source is visited as the epoch's `window`; a short one stays last."""
        full = self.steps_per_epoch // self.options.window
        if window >= full:
            return window
        key = window_sequence(self.options.seed, epoch, 0, Use.WINDOW_ORDER)
        return int(KeyedPermutation(full, key).row_of(np.array([window]))[0])

    def pack(self, sizes: NDArray[np.integer[Any]], epoch: int, window: int, shard: int) -> WindowPacks:
        """The packs of one logical shard's window, exactly as many as its steps take.

        Args:
            sizes: (n,) tokens of its usable rows in window order, 1 or more rows.
            epoch: From 0.
            window: The window.
            shard: The logical shard.
        """
        options = self.options
        packed = pack_rows(sizes, self.capacity, self.most)
        wanted = self.steps_in(window) * options.shard_batch
        key = window_sequence(options.seed, epoch, window, Use.LEFT_OUT, shard)
        fitted = exactly(packed, wanted, key)
        bins = fitted.bins
        if options.shuffle:
            bins = bins.take(keyed_order(wanted, window_sequence(options.seed, epoch, window, Use.BATCH_ORDER)))
        return WindowPacks(bins, packed.count, fitted.left_out, fitted.repeats)


def steps_for(sizes: NDArray[np.integer[Any]], options: PlanOptions, capacity: int, most: int) -> int:
    """About how many steps hold all rows, from the lengths of a sample of them; to be named to the user.

    The rows of one window are longer than average in half of the windows. Twice the spread of their sum is added, so
    that about one window in forty has to leave rows out; smaller windows need more.

    Args:
        sizes: (n,) tokens of the sampled rows; 0 or negative where one is unusable.
        options: What will be planned.
        capacity: Tokens of a packed row.
        most: Rows that a packed row may hold.
    """
    usable = sizes[sizes > 0]
    if not usable.size:
        return 1
    packs_a_row = pack_rows(usable, capacity, most).count / sizes.size
    window_rows = options.window * options.shard_batch / packs_a_row
    tokens = np.maximum(sizes, 0)
    spread = float(tokens.std() / tokens.mean()) / math.sqrt(window_rows)
    return math.ceil((1 + 2 * spread) * packs_a_row * options.rows / options.global_batch)
