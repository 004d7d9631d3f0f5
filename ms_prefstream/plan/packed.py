"""Plans of packed rows (packs): over the whole run with a length index, window by window without one."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.checks import WORD, whole_number
from ms_prefstream.errors import OptionError
from ms_prefstream.plan.bin_packing import Bins, Fitted, exactly, pack_rows
from ms_prefstream.plan.indexed import OrderedRows, UsableRows, check_index, usable_rows
from ms_prefstream.plan.latest import Latest
from ms_prefstream.plan.options import PlanOptions
from ms_prefstream.plan.ranks import rows_of_rank
from ms_prefstream.plan.shuffle import KeyedPermutation, SeedUse, keyed_order, use_sequence, window_sequence
from ms_prefstream.plan.windows import Windows

_BLOCK = 2**20  # rows that are packed together; bounds the memory that packing needs
_BLOCK_IN_PLACE = 2**14  # the same where rows are to stay near their place in the source
_EPOCHS_HELD = 2  # of a mixture: the one in use, and the next one where workers load ahead
_PACKS_TOGETHER = 2**10  # whose order is computed together: a call costs as much as some hundreds of them
_ORDERS_HELD = 2


class PackedPlan:
    """Packs over the whole data set, permuted for each epoch and dealt out to ranks by stride.

        packs, once a run     0: rows 7 2 9    1: rows 4 1    2: rows 8    3: rows 0 3    4: rows 5 6
        an epoch's order      3 0 4 1 (2)      global batch 2: two steps; each epoch leaves out another pack
        two ranks, step 0     pack 3 | pack 0

    Every usable row is in exactly one pack. The packs are the same in every epoch, so the number of steps is exact and
    constant. With ``shuffle=True`` packs are filled from a permutation of all rows, otherwise from 16,384 rows of the
    source at a time. With an order they are filled from the rows of about one window of steps at a time, and
    `order_noise` moves packs.

    A mixture has other rows in each epoch, so it is packed again for each, and fitted to the first epoch's number of
    packs by splitting some or leaving some out; see `bin_packing.exactly`.

    The plan stores 4 bytes for each usable row and 4 for each pack (8 beyond 2**31 rows). It keeps the sizes only for
    a mixture.

    Args:
        options: What to plan. `rows` counts all rows of the index, `global_batch` packed rows. Logical shards and
            sorting have no meaning here.
        sizes: (N,) tokens of each row, all its sequences together; negative where a row is unusable.
        capacity: Tokens of a packed row.
        most: Rows (pairs count once) that a packed row may hold.
        order: (N,) what orders the rows, ascending, with ``shuffle=False``; None for the order of the source.

    Attributes:
        steps_per_epoch: Steps of every epoch, the same on all ranks.
        packs_per_epoch: All packs, including those that do not fill a step.
        repeats_per_epoch: The average number of rows in the packs that fill up the last step.
        remainder_per_epoch: The average number of rows in the packs that an epoch leaves out.

    Raises:
        OptionError: The index has another number of rows, or too few usable ones for one step, or longer ones than fit.
        NoUsableRowsError: The index has no usable row at all.
    """

    def __init__(
        self,
        options: PlanOptions,
        sizes: NDArray[np.integer[Any]],
        capacity: int,
        most: int,
        order: NDArray[Any] | None = None,
    ) -> None:
        _check_longest_first(options)
        check_index(options, sizes)
        if int(sizes.max()) > capacity:
            raise OptionError(
                f"Pack: {np.count_nonzero(sizes > capacity)} rows of the length index have more than tokens={capacity} "
                f"tokens (row {int(sizes.argmax())} has {sizes.max()}), so they fit into no pack. Give "
                f"tokens={sizes.max()} or more, or lower the task's length and build the index again."
            )
        kept = usable_rows(sizes > 0, order, options.mixture)
        self._seed, self._shuffle = options.seed, options.shuffle
        self._block = _BLOCK if options.shuffle is True else _BLOCK_IN_PLACE
        if order is not None:
            tokens = options.window * options.global_batch * capacity
            self._block = min(max(1, int(tokens / sizes[sizes > 0].mean())), _BLOCK)
        self._capacity, self._most = capacity, most
        self._rows = kept.count
        self._mixed = None
        if options.mixture is not None:
            mixture = options.mixture.over(sizes > 0)
            self._rows = mixture.rows
            self._mixed = Windows(
                dataclasses.replace(
                    options, rows=mixture.rows, mixture=mixture, global_batch=1, logical_shards=1, sort=False
                )
            )
        packs = self._pack(0, kept, sizes)
        self._fitted = Latest[int, Fitted](_EPOCHS_HELD)
        self._fitted.get(0, lambda: Fitted(packs, packs.count, 0, 0))
        small = np.min_scalar_type(-capacity)  # holds every size and -1
        self._source = None if self._mixed is None else (kept, sizes.astype(small))
        self.packs_per_epoch = packs.count
        self.options = _over_packs(options, packs.count, kept.count, capacity)
        self._order = Windows(self.options)
        self._orders = Latest[tuple[int, int], NDArray[np.int64]](_ORDERS_HELD)
        self.steps_per_epoch = self._order.steps_per_epoch
        self.repeats_per_epoch = round(self._rows * self._order.repeats_per_epoch / packs.count)
        self.remainder_per_epoch = round(self._rows * self._order.remainder_per_epoch / packs.count)

    def rows(self, epoch: int, step: int, rank: int, world: int) -> list[NDArray[np.int64]]:
        """Returns the row ids in each packed row of a rank's step, G / world arrays."""
        mine = rows_of_rank(rank, world, self.options.global_batch)
        self._order.locate(step)
        numbers, packs = self._numbers(epoch, step)[mine], self._packs(epoch).bins  # the former checks the epoch
        return [packs.of(number) for number in numbers.tolist()]

    def _numbers(self, epoch: int, step: int) -> NDArray[np.int64]:
        """Returns the packs of a step, all ranks together, (G,) int64."""
        size = self.options.global_batch
        steps = max(1, _PACKS_TOGETHER // size)
        block, inside = divmod(step, steps)

        def made() -> NDArray[np.int64]:
            end = min((block + 1) * steps, self.steps_per_epoch)
            return self._order.rows_at(epoch, np.arange(block * steps * size, end * size))

        return self._orders.get((epoch, block), made)[inside * size : (inside + 1) * size]

    def left_out_and_repeated(self, epoch: int) -> tuple[int, int]:
        """Returns how many rows an epoch leaves out, and how many it takes again; counts the rows of all its packs."""
        packs, held, again = self._packs(epoch), 0, 0
        sizes = np.diff(packs.bins.starts)
        slots = self.steps_per_epoch * self.options.global_batch
        for begin in range(0, slots, _BLOCK):
            positions = np.arange(begin, min(begin + _BLOCK, slots))
            found = sizes[self._order.rows_at(epoch, positions)]
            held += int(found.sum())
            again += int(found[self._order.is_filling(epoch, positions)].sum())
        left_out, repeated = (0, 0) if self._mixed is None else self._mixed.left_out_and_repeated(epoch)
        again += packs.repeats
        return left_out + self._rows + again - held, repeated + again

    def _packs(self, epoch: int) -> Fitted:
        """Returns the packs that an epoch consists of."""

        def made() -> Fitted:
            assert self._source is not None
            key = use_sequence(self._seed, epoch, SeedUse.MADE_TO_FIT)
            return exactly(self._pack(epoch, *self._source), self.packs_per_epoch, key)

        return self._fitted.get(epoch if self._mixed is not None else 0, made)  # only a mixture has others later

    def _pack(self, epoch: int, kept: UsableRows | OrderedRows, sizes: NDArray[np.integer[Any]]) -> Bins:
        """Packs all rows, block by block."""
        dtype = np.int32 if sizes.size < 2**31 else np.int64
        rows: NDArray[np.integer[Any]] = np.empty(self._rows, dtype)
        starts: list[NDArray[np.integer[Any]]] = [np.zeros(1, dtype)]
        for begin in range(0, self._rows, self._block):
            ids = kept.ids(self._line(epoch, np.arange(begin, min(begin + self._block, self._rows))))
            packed = pack_rows(sizes[ids], self._capacity, self._most)
            rows[begin : begin + ids.size] = ids[packed.rows]
            starts.append((begin + packed.starts[1:]).astype(dtype))
        return Bins(rows, np.concatenate(starts))

    def _line(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns which of the usable rows, counted from 0, are at these positions of the order that is packed."""
        if self._mixed is not None:
            return self._mixed.rows_at(epoch, positions)
        if self._shuffle is True:
            key = use_sequence(self._seed, 0, SeedUse.PACKING)  # the same for the whole run
            return KeyedPermutation(self._rows, key).row_of(positions)
        return positions


class PackedWindows(Windows):
    """Windows of rows, each packed separately into the packs of its steps.

        steps_per_epoch 5, window 2, rows 23     steps    0 1 | 2 3 | 4        G = 4 packs a step, all ranks together
                                                 rows     0-8 | 9-17| 18-22    positions, in proportion to the steps

    Every epoch has exactly `steps` steps of full batches, the same number on all ranks. Every row of the epoch belongs
    to one window and one logical shard of it (position p of a window to shard p % C), so the packs of a step are a
    function of the window's own rows: resuming tokenises one window, and the ranks of any number that divides C hold
    the same packs together.

    Every usable row is in exactly one pack if the steps suffice. How many packs the rows of a window fill is only known
    once they are tokenised: where it is more than its steps take, some are left out, counted, and different ones in
    each epoch; where it is fewer, packs are split, so that they hold more padding but no row twice. Only with fewer
    usable rows than packs are rows repeated, which is counted too.

    Args:
        options: What to plan: `global_batch` counts packed rows, everything else rows. `drop_remainder` has no
            meaning: there is no remainder.
        steps: The steps of an epoch.
        capacity: Tokens of a packed row.
        most: Rows (pairs count once) that a packed row may hold.

    Raises:
        OptionError: An epoch would have more packed rows than rows.
    """

    def __init__(self, options: PlanOptions, steps: int, capacity: int, most: int) -> None:
        steps = whole_number("steps_per_epoch", steps, 1)
        _check_longest_first(options)
        if steps * options.global_batch > options.rows:
            raise OptionError(
                f"steps_per_epoch={steps} of {options.global_batch} packed rows each (all ranks together) makes "
                f"{steps * options.global_batch} packed rows, but the source has only {options.rows} rows. Give "
                f"steps_per_epoch={max(1, options.rows // options.global_batch)} or, since several rows share a packed "
                "row, less; a length index finds the exact number."
            )
        super().__init__(dataclasses.replace(options, sort=False), steps)
        self.capacity, self.most = capacity, most

    def rows(self, epoch: int, step: int, rank: int, world: int) -> None:
        """Returns None: which rows form a step depends on lengths, which are not known."""

    def shard_rows(self, epoch: int, window: int, shard: int) -> NDArray[np.int64]:
        """Returns the row ids of a shard in a window, int64, in window order; shards differ by at most one row."""
        shards = self.options.logical_shards
        shard = whole_number("shard", shard, 0, shards - 1)
        return self._rows_of(whole_number("epoch", epoch, 0, WORD), window)[shard::shards]

    def _rows_of(self, epoch: int, window: int) -> NDArray[np.int64]:
        options = self.options
        if not options.one_pass and (options.shuffle != "window" or options.mixture is not None):
            return self.rows_at(epoch, np.arange(self.window_start(window), self.window_start(window + 1)))
        source = window if options.one_pass else self._source_window(epoch, window)
        begin, end = self.window_start(source), self.window_start(source + 1)
        rows = np.arange(end - begin)
        if options.shuffle:
            key = window_sequence(options.seed, epoch, source, SeedUse.ROWS_OF_WINDOW)
            rows = KeyedPermutation(end - begin, key).row_of(rows)
        return begin + rows

    def pack(self, sizes: NDArray[np.integer[Any]], epoch: int, window: int, shard: int) -> Fitted:
        """Packs one logical shard's window into exactly as many packs as its steps take, s * b.

        `sizes` are the tokens of its usable rows in window order. The packs, in the order in which steps take them,
        hold places among these rows.
        """
        options = self.options
        packed = pack_rows(sizes, self.capacity, self.most)
        wanted = self.steps_in(window) * options.shard_batch
        fitted = exactly(packed, wanted, window_sequence(options.seed, epoch, window, SeedUse.LEFT_OUT, shard))
        if not options.shuffle:
            return fitted
        order = keyed_order(wanted, window_sequence(options.seed, epoch, window, SeedUse.BATCH_ORDER))
        return fitted._replace(bins=fitted.bins.take(order))


def steps_for(sizes: NDArray[np.integer[Any]], options: PlanOptions, capacity: int, most: int) -> int:
    """Estimates how many steps hold all rows, from the lengths of a sample; for an error message.

    The rows of one window are longer than average in half of the windows. The estimate adds twice the spread of their
    sum, so that about one window in forty has to leave rows out; smaller windows need more. `sizes` are the tokens of
    the sampled rows, 0 or negative where one is unusable.
    """
    usable = sizes[sizes > 0]
    if not usable.size:
        return 1
    packs_a_row = pack_rows(usable, capacity, most).count / sizes.size
    window_rows = options.window * options.shard_batch / packs_a_row
    tokens = np.maximum(sizes, 0)
    spread = float(tokens.std() / tokens.mean()) / math.sqrt(window_rows)
    return math.ceil((1 + 2 * spread) * packs_a_row * options.rows / options.global_batch)


def row_sizes(lengths: NDArray[np.integer[Any]], pairs: bool) -> NDArray[np.int32]:
    """Returns the tokens of each row in a pack, (n,) int32; -1 where the row is unusable.

    `lengths`, (n, 2), are those of the length index, 0 where a row is unusable. Of pairs both sides go into the pack,
    of prompt and whole sequence (RLHF) the sequence alone.
    """
    first, second = lengths.T
    sizes: NDArray[np.int32] = np.add(first, second, dtype=np.int32) if pairs else second.astype(np.int32)
    sizes[sizes == 0] = -1
    return sizes


def _check_longest_first(options: PlanOptions) -> None:
    if options.longest_first:
        raise OptionError("longest_first=True has no meaning in packs: every step has the same shape. Leave it out.")


def _over_packs(options: PlanOptions, packs: int, usable: int, capacity: int) -> PlanOptions:
    """Returns the same options for packs in place of rows."""
    if options.drop_remainder is True and packs < options.global_batch:
        raise OptionError(
            f"The {usable} usable rows fill {packs} packed rows of {capacity} tokens, less than one global batch "
            f"(global_batch={options.global_batch}). Use a batch of at most {packs} over all ranks, fewer tokens, or "
            "drop_remainder=False, which repeats packed rows to fill the step."
        )
    noise = options.order_noise if options.mixture is None else 0.0  # the rows of a mixture are packed as they moved
    return dataclasses.replace(options, rows=packs, mixture=None, logical_shards=1, sort=False, order_noise=noise)
