"""The plan by a token budget: few long rows or many short ones, every step at one width of a closed set."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.checks import WORD, whole_number
from ms_prefstream.errors import OptionError
from ms_prefstream.plan.indexed import check_index
from ms_prefstream.plan.options import BudgetOptions
from ms_prefstream.plan.ranks import Ranks
from ms_prefstream.plan.shuffle import KeyedPermutation, SeedUse, use_sequence

_BLOCK = 2**16  # rows that are processed together


class BudgetPlan:
    """All usable rows, grouped into lines by the width they need; each line is shuffled and cut into steps of its size.

        width      rows a step   rows that need it    line               steps
          128           4             a … j           a … j (10)         2, two rows are left and move on
          256           2             k l m           i j k l m (5)      2, one row moves on
         1024           1             n               m n                2

    Rows that do not fill a step of their width move on to the next larger one, different rows in each epoch. So the
    number of steps of every line is the same in every epoch, and less than one step of the last line is left over. The
    steps of all lines together are permuted for each epoch.

    The plan stores 4 bytes for each usable row (8 beyond 2**31 rows) and does not keep the lengths.

    Args:
        options: What to plan. `rows` counts all rows of the index.
        lengths: (N,) key length of each row; negative where a row is unusable.

    Attributes:
        steps_per_epoch: Steps of every epoch, the same on all ranks.
        repeats_per_epoch: Slots of an epoch that hold a row for the second time, to fill the last step.
        remainder_per_epoch: Rows that an epoch leaves out, because they do not fill a step.

    Raises:
        OptionError: The index has another number of rows, or too few usable ones for one step.
        NoUsableRowsError: The index has no usable row at all.
    """

    def __init__(self, options: BudgetOptions, lengths: NDArray[np.integer[Any]]) -> None:
        check_index(options, lengths)
        limits = np.array(options.widths, np.int64) - options.extra
        if int(lengths.max()) > limits[-1]:
            raise ValueError(f"a row has {lengths.max()} tokens, but the largest width holds {limits[-1]}")
        self.options = options
        self._rows, own = _by_line(lengths, limits)
        self._limits: list[int] = limits[: len(own)].tolist()
        self._sizes = [options.rows_at(width) for width in options.widths[: len(own)]]
        self._firsts = [0, *itertools.accumulate(own)]
        self._own, self._moved_in, self._steps_of = own, [0], list[int]()
        for count, size in zip(own, self._sizes, strict=True):
            steps, rest = divmod(count + self._moved_in[-1], size)
            self._steps_of.append(steps)
            self._moved_in.append(rest)
        rest = self._moved_in.pop()
        self.repeats_per_epoch, self.remainder_per_epoch = 0, rest
        if rest and options.drop_remainder is not True:
            self._steps_of[-1] += 1
            self.repeats_per_epoch, self.remainder_per_epoch = self._sizes[-1] - rest, 0
        self._ends = np.cumsum(self._steps_of)
        self.steps_per_epoch = int(self._ends[-1])
        if not self.steps_per_epoch:
            raise OptionError(
                f"Only {self._rows.size} of {options.rows} rows are usable, less than one step: the budget holds "
                f"{self._sizes[-1]} rows of their width. Give a smaller max_tokens, or drop_remainder=False, which "
                "repeats rows to fill the step."
            )

    def rows(self, epoch: int, step: int, rank: int, world: int) -> NDArray[np.int64]:
        """Returns the row ids of a rank's step, int64; as many as the step's width allows."""
        Ranks(world, rank, self.options.logical_shards)
        line, positions, count = self._positions(epoch, step)
        return self._line(epoch, line, positions % count)[rank::world].astype(np.int64)

    def filling(self, epoch: int, step: int, rank: int, world: int) -> NDArray[np.bool_]:
        """Returns which of `rows` only fill the last step."""
        _, positions, count = self._positions(epoch, step)
        return positions[rank::world] >= count

    def left_out_and_repeated(self, epoch: int) -> tuple[int, int]:
        """Returns how many rows an epoch leaves out, and how many it takes again."""
        return self.remainder_per_epoch, self.repeats_per_epoch

    def _positions(self, epoch: int, step: int) -> tuple[int, NDArray[np.int64], int]:
        """Returns the line of a step, its positions there, beyond the end only to fill it, and the rows of the line."""
        line, batch = self._locate(epoch, step)
        size = self._sizes[line]
        return line, batch * size + np.arange(size), self._own[line] + self._moved_in[line]

    def step_length(self, epoch: int, step: int) -> int:
        """Returns the tokens to pad for, on all ranks: all that the step's width holds, even if no row needs it."""
        return self._limits[self._locate(epoch, step)[0]]

    def _locate(self, epoch: int, step: int) -> tuple[int, int]:
        """Returns (line, number of the step in that line) of a step of an epoch."""
        epoch = whole_number("epoch", epoch, 0, WORD)
        last = self.steps_per_epoch - 1
        step = whole_number("step", step, 0, last)
        key = use_sequence(self.options.seed, epoch, SeedUse.STEPS_BY_BUDGET)
        first, number = KeyedPermutation(last + 1, key).row_of(np.array([0, step])).tolist()
        if self.options.longest_first and epoch == 0:  # the first step and the widest one are swapped
            number = last if step == 0 else first if number == last else number
        line = int(np.searchsorted(self._ends, number, side="right"))
        return line, number - (int(self._ends[line - 1]) if line else 0)

    def _line(self, epoch: int, line: int, positions: NDArray[np.int64]) -> NDArray[np.integer[Any]]:
        """Returns the row ids at these positions of a line: first the rows that moved in, then its own."""
        before = self._moved_in[line]
        moved = positions < before
        found: NDArray[np.integer[Any]] = np.empty(positions.size, self._rows.dtype)
        if moved.any():
            end = self._own[line - 1] + self._moved_in[line - 1]
            found[moved] = self._line(epoch, line - 1, end - before + positions[moved])
        if not moved.all():
            key = use_sequence(self.options.seed, epoch, SeedUse.ROWS_OF_WIDTH, line)
            own = KeyedPermutation(self._own[line], key).row_of(positions[~moved] - before)
            found[~moved] = self._rows[self._firsts[line] + own]
        return found


def _by_line(
    lengths: NDArray[np.integer[Any]], limits: NDArray[np.int64]
) -> tuple[NDArray[np.integer[Any]], list[int]]:
    """Returns the usable rows of all lines, concatenated, and the number of each, up to the last line with rows.

    Rows are sorted block by block, so it takes hardly more memory than the result.
    """
    line_of = np.searchsorted(limits, np.arange(int(lengths.max()) + 2))
    line_of[-1] = limits.size  # of unusable rows
    counts = np.zeros(limits.size + 1, np.int64)
    for begin in range(0, lengths.size, _BLOCK):
        counts += np.bincount(line_of[np.maximum(lengths[begin : begin + _BLOCK], -1)], minlength=counts.size)
    own: list[int] = counts[:-1].tolist()
    while own and not own[-1]:
        own.pop()
    rows: NDArray[np.integer[Any]] = np.empty(sum(own), np.int32 if lengths.size < 2**31 else np.int64)
    ends = np.cumsum([0, *own])[:-1]  # of each line, as far as it is filled
    for begin in range(0, lengths.size, _BLOCK):
        line = line_of[np.maximum(lengths[begin : begin + _BLOCK], -1)]
        order = begin + np.argsort(line.astype(np.uint16), kind="stable")
        counts = np.bincount(line, minlength=len(own))[: len(own)]
        for end, some in zip(ends.tolist(), np.split(order, np.cumsum(counts))[:-1], strict=True):
            rows[end : end + some.size] = some
        ends += counts
    return rows, own
