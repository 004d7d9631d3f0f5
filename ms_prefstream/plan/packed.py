"""Packs with a length index: planned once for the whole run, so that every epoch has the same exact number of steps."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.checks import WORD, whole_number
from ms_prefstream.errors import NoUsableRowsError, OptionError
from ms_prefstream.plan.bin_packing import Bins, exactly, pack_rows
from ms_prefstream.plan.indexed import UsableRows
from ms_prefstream.plan.options import PlanOptions
from ms_prefstream.plan.ranks import Ranks
from ms_prefstream.plan.shuffle import (
    KeyedPermutation,
    SeedUse,
    keyed_order,
    run_sequence,
    use_sequence,
    window_sequence,
)
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
            key = window_sequence(options.seed, epoch, source, SeedUse.ROWS_OF_WINDOW)
            rows = KeyedPermutation(end - begin, key).row_of(rows)
        return begin + rows

    def _source_window(self, epoch: int, window: int) -> int:
        """Which window of the source is visited as the epoch's `window`; a short one stays last."""
        full = self.steps_per_epoch // self.options.window
        if window >= full:
            return window
        key = window_sequence(self.options.seed, epoch, 0, SeedUse.WINDOW_ORDER)
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
        key = window_sequence(options.seed, epoch, window, SeedUse.LEFT_OUT, shard)
        fitted = exactly(packed, wanted, key)
        bins = fitted.bins
        if options.shuffle:
            bins = bins.take(keyed_order(wanted, window_sequence(options.seed, epoch, window, SeedUse.BATCH_ORDER)))
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


_BLOCK = 2**20  # rows that are packed together; bounds what packing needs for the moment
_BLOCK_IN_PLACE = 2**14  # the same where rows are to stay near their place in the source
_EPOCHS_HELD = 2  # of a mixture: the one in use, and the next one where workers load ahead


def row_sizes(
    lengths: NDArray[np.integer[Any]], keys: NDArray[np.integer[Any]], pairs: bool
) -> NDArray[np.integer[Any]]:
    """Tokens that each row takes in a pack, (n,) of the index's type; negative where the row is unusable.

    Args:
        lengths: (n, 2) of the length index: tokens of both sides; for RLHF of prompt and whole sequence.
        keys: (n,) of the length index, negative where the row is unusable.
        pairs: Whether both sides go into the pack, or the whole sequence alone.
    """
    return np.where(keys < 0, keys, lengths.sum(axis=1, dtype=lengths.dtype) if pairs else lengths[:, 1])


class PackedPlan:
    """Packed rows over the whole data set. They are permuted for each epoch and dealt out to ranks by stride.

        packs, once a run     0: rows 7 2 9    1: rows 4 1    2: rows 8    3: rows 0 3    4: rows 5 6
        an epoch's order      3 0 4 1 (2)      global batch 2: two steps, one pack is left out, another one each epoch
        two ranks, step 0     pack 3 | pack 0

    Every usable row is in exactly one pack, and which rows share it is the same in every epoch: only so is the number
    of steps exact and constant. With ``shuffle=True`` packs are filled from a permutation of all rows, otherwise from
    16,384 rows of the source at a time.

    A mixture has other rows in each epoch, so it is packed anew for each, and made to fit the first epoch's number of
    packs by splitting some or leaving some out; see `bins.exactly`.

    The plan holds 4 bytes for each usable row and 4 for each pack (8 beyond 2**31 rows), and of the sizes it was given
    nothing, except for a mixture.

    Args:
        options: What to plan. `rows` counts all rows of the index, `global_batch` packed rows. Logical shards and
            sorting have no meaning here.
        sizes: (N,) tokens of each row, all its sequences together; negative where a row is unusable.
        capacity: Tokens of a packed row.
        most: Rows (pairs count once) that a packed row may hold.

    Raises:
        OptionError: The index has another number of rows, or too few usable ones for one step, or longer ones than fit.
        NoUsableRowsError: The index has no usable row at all.
    """

    def __init__(self, options: PlanOptions, sizes: NDArray[np.integer[Any]], capacity: int, most: int) -> None:
        usable = _usable(options, sizes, capacity)
        kept = UsableRows(usable)
        self._seed, self._shuffle = options.seed, options.shuffle
        self._capacity, self._most = capacity, most
        self._rows = kept.count
        self._mixed = None
        if options.mixture is not None:
            self._mixed = Windows(_over_usable(options, usable))
            self._rows = self._mixed.options.rows
        packs = self._pack(0, kept, sizes)
        self._held: tuple[tuple[int, Bins], ...] = ((0, packs),)
        self._source = None if self._mixed is None else (kept, sizes)
        self._count = packs.count
        self.options = _over_packs(options, packs.count, kept.count, capacity)
        self._order = Windows(self.options)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of every epoch, the same on all ranks."""
        return self._order.steps_per_epoch

    @property
    def packs_per_epoch(self) -> int:
        """Packed rows that there are, whether they fill a whole number of steps or not."""
        return self._count

    @property
    def repeats_per_epoch(self) -> int:
        """Rows in the packs that fill up the last step, on average; packs hold different numbers of rows."""
        return round(self._rows * self._order.repeats_per_epoch / self._count)

    @property
    def remainder_per_epoch(self) -> int:
        """Rows in the packs that an epoch leaves out, on average; packs hold different numbers of rows."""
        return round(self._rows * self._order.remainder_per_epoch / self._count)

    def rows(self, epoch: int, step: int, rank: int, world: int) -> list[NDArray[np.int64]]:
        """The row ids in each packed row of a rank's step, G / world arrays.

        Raises:
            OptionError: There is no such step, or no such rank, or `world` does not divide the global batch.
        """
        size = self.options.global_batch
        Ranks(world, rank).batch_size(size)
        self._order.locate(step)
        numbers = self._order.rows_at(epoch, step * size + np.arange(size))[rank::world]
        packs = self._packs(epoch)
        return [packs.of(number) for number in numbers.tolist()]

    def flat_rows(self, epoch: int, step: int, rank: int, world: int) -> NDArray[np.int64]:
        """The same row ids one behind the other, int64."""
        return np.concatenate(self.rows(epoch, step, rank, world))

    def _packs(self, epoch: int) -> Bins:
        """The packs that an epoch consists of."""
        if self._source is None:
            return self._held[0][1]
        for held, packs in self._held:
            if held == epoch:
                return packs
        key = use_sequence(self._seed, epoch, SeedUse.MADE_TO_FIT)
        packs = exactly(self._pack(epoch, *self._source), self._count, key).bins
        # Replaced as a whole: a reader in another thread sees the old epochs or the new ones.
        self._held = ((epoch, packs), *self._held[: _EPOCHS_HELD - 1])
        return packs

    def _pack(self, epoch: int, kept: UsableRows, sizes: NDArray[np.integer[Any]]) -> Bins:
        """All rows in packs, block by block."""
        dtype = np.int32 if sizes.size < 2**31 else np.int64
        rows: NDArray[np.integer[Any]] = np.empty(self._rows, dtype)
        starts: list[NDArray[np.integer[Any]]] = [np.zeros(1, dtype)]
        block = _BLOCK if self._shuffle is True else _BLOCK_IN_PLACE
        for begin in range(0, self._rows, block):
            ids = kept.ids(self._line(epoch, np.arange(begin, min(begin + block, self._rows))))
            packed = pack_rows(sizes[ids], self._capacity, self._most)
            rows[begin : begin + ids.size] = ids[packed.rows]
            starts.append((begin + packed.starts[1:]).astype(dtype))
        return Bins(rows, np.concatenate(starts))

    def _line(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of the usable rows, counted from 0, stand at these positions of the line that is packed."""
        if self._mixed is not None:
            return self._mixed.rows_at(epoch, positions)
        if self._shuffle is True:
            key = run_sequence(self._seed, SeedUse.PACKING)
            return KeyedPermutation(self._rows, key).row_of(positions)
        return positions


def _usable(options: PlanOptions, sizes: NDArray[np.integer[Any]], capacity: int) -> NDArray[np.bool_]:
    """(N,) bool, True for the rows that are planned."""
    rows = options.rows if options.mixture is None else options.mixture.firsts[-1]
    if options.longest_first:
        raise OptionError("longest_first=True has no meaning in packs: every step has the same shape. Leave it out.")
    if sizes.shape != (rows,):
        raise OptionError(f"The length index has {sizes.size} rows, the source {rows}. Build the index anew.")
    usable: NDArray[np.bool_] = sizes > 0
    if not usable.any():
        raise NoUsableRowsError(f"The length index marks all {rows} rows as unusable, so nothing is left to train on.")
    if int(sizes.max()) > capacity:
        raise OptionError(
            f"Pack: {np.count_nonzero(sizes > capacity)} rows of the length index have more than tokens={capacity} "
            f"tokens (row {int(sizes.argmax())} has {sizes.max()}), so they fit into no pack. Give "
            f"tokens={sizes.max()} or more, or lower the task's length and build the index anew."
        )
    return usable


def _over_usable(options: PlanOptions, usable: NDArray[np.bool_]) -> PlanOptions:
    """A mixture of the usable rows alone, in an order of its own; steps do not matter to it."""
    assert options.mixture is not None  # asked for mixtures only
    mixture = options.mixture.over(usable)
    return dataclasses.replace(
        options, rows=mixture.rows, mixture=mixture, global_batch=1, logical_shards=1, sort=False
    )


def _over_packs(options: PlanOptions, packs: int, usable: int, capacity: int) -> PlanOptions:
    """The same options for packs in place of rows."""
    if options.drop_remainder and packs < options.global_batch:
        raise OptionError(
            f"The {usable} usable rows fill {packs} packed rows of {capacity} tokens, less than one global batch "
            f"(global_batch={options.global_batch}). Use a batch of at most {packs} over all ranks, fewer tokens, or "
            "drop_remainder=False, which repeats packed rows to fill the step."
        )
    return dataclasses.replace(options, rows=packs, mixture=None, logical_shards=1, sort=False)
