"""The calendar both plans share: steps, windows, and which row stands at which position of an epoch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.plan.check import WORD, whole_number
from ms_prefstream.plan.keys import Use, epoch_sequence, keyed_order, window_sequence
from ms_prefstream.plan.mixed import MixedOrder
from ms_prefstream.plan.options import PlanOptions
from ms_prefstream.plan.permutation import KeyedPermutation


class Windows:
    """An epoch as a line of positions 0..K * G - 1 (K steps of G rows), cut into windows of W steps.

        rows = 11, G = 2, W = 2      positions   0 1 2 3 | 4 5 6 7 | 8 9        K = 5, the last window is short
                                     windows        0    |    1    |  2         one row is left out

    Args:
        options: What to plan; checked already.
    """

    def __init__(self, options: PlanOptions) -> None:
        self.options = options
        self._window_rows = options.window * options.global_batch
        # The one asked for last: a batch at every step, and a window has many.
        self._order: tuple[tuple[int, int], NDArray[np.int64]] = (-1, -1), np.empty(0, np.int64)
        self._mixed = None
        if options.mixture is not None:
            self._mixed = MixedOrder(
                options.mixture,
                seed=options.seed,
                shuffle=options.shuffle,
                global_batch=options.global_batch,
                window_rows=self._window_rows,
            )

    @property
    def steps_per_epoch(self) -> int:
        """Steps of every epoch, the same on all ranks."""
        whole, rest = divmod(self.options.rows, self.options.global_batch)
        return whole + (1 if rest and not self.options.drop_remainder else 0)

    @property
    def windows_per_epoch(self) -> int:
        """Windows of every epoch; the last one may be short."""
        return -(-self.steps_per_epoch // self.options.window)

    @property
    def repeats_per_epoch(self) -> int:
        """Slots of an epoch that hold a row for the second time, to fill the last step (`drop_remainder=False`)."""
        return max(0, self.steps_per_epoch * self.options.global_batch - self.options.rows)

    @property
    def remainder_per_epoch(self) -> int:
        """Rows that an epoch leaves out, because they do not fill a step (`drop_remainder=True`)."""
        return max(0, self.options.rows - self.steps_per_epoch * self.options.global_batch)

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

    def batch_order(self, epoch: int, window: int) -> NDArray[np.int64]:
        """Which batch of a window each of its steps takes, (steps_in(window),) int64; one order for all ranks.

        Without it neighbouring steps would grow in length together. In the first window of all, `longest_first` brings
        the last batch of the sorted window, the longest, to the front. The array is kept: it is not to be changed.
        """
        steps, epoch = self.steps_in(window), _checked(epoch)
        kept = self._order  # one look at it: other threads may replace it
        if kept[0] != (epoch, window):
            kept = (epoch, window), self._new_order(epoch, window, steps)
            kept[1].flags.writeable = False
            self._order = kept
        return kept[1]

    def _new_order(self, epoch: int, window: int, steps: int) -> NDArray[np.int64]:
        if self.options.shuffle is False:
            return np.arange(steps)
        order = keyed_order(steps, window_sequence(self.options.seed, epoch, window, Use.BATCH_ORDER))
        if self.options.longest_first and epoch == 0 and window == 0:
            order = np.concatenate([[steps - 1], order[order != steps - 1]])
        return order

    def window_start(self, window: int) -> int:
        """The epoch position at which a window begins."""
        return window * self._window_rows

    def rows_at(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows at these positions of an epoch, int64; positions behind the last row begin again at the first."""
        epoch = _checked(epoch)
        if self.options.one_pass:
            return self._rows_in_place(epoch, positions)
        if self._mixed is not None:
            return self._mixed.rows_at(epoch, positions)
        positions = positions % self.options.rows
        if self.options.shuffle is False:
            return positions
        if self.options.shuffle is True:
            return KeyedPermutation(self.options.rows, epoch_sequence(self.options.seed, epoch)).row_of(positions)
        return self._rows_near(epoch, positions)

    def _rows_near(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """`rows_at` for shuffle="window": windows change places, rows change places within their window."""
        windows, inside = np.divmod(positions, self._window_rows)
        rows = np.empty_like(positions)
        for window in np.unique(windows).tolist():
            source = self._source_window(epoch, window)
            start = self.window_start(source)
            # The last window also covers the remainder, so that the rows left out are other ones each epoch.
            size = self.options.rows - start if source == self.windows_per_epoch - 1 else self._window_rows
            key = window_sequence(self.options.seed, epoch, source, Use.ROWS_OF_WINDOW)
            here = windows == window
            rows[here] = start + KeyedPermutation(size, key).row_of(inside[here])
        return rows

    def _rows_in_place(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """`rows_at` for one pass: the positions of a window are rows of the same range of the source."""
        windows, inside = np.divmod(positions, self._window_rows)
        rows = np.empty_like(positions)
        for window in np.unique(windows).tolist():
            start = self.window_start(window)
            here = windows == window
            size = min(self._window_rows, self.options.rows - start)
            rows[here] = inside[here] % size
            if self.options.shuffle:
                key = window_sequence(self.options.seed, epoch, window, Use.ROWS_OF_WINDOW)
                rows[here] = KeyedPermutation(size, key).row_of(rows[here])
            rows[here] += start
        return rows

    def _source_window(self, epoch: int, window: int) -> int:
        """Which window of the source is visited as the epoch's `window`; one that is not full stays last."""
        full = self.options.rows // self._window_rows
        if window >= full:
            return window
        key = window_sequence(self.options.seed, epoch, 0, Use.WINDOW_ORDER)
        return int(KeyedPermutation(full, key).row_of(np.array([window]))[0])


def _checked(epoch: int) -> int:
    return whole_number("epoch", epoch, 0, WORD)
