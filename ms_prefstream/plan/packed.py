"""Packs with a length index: planned once for the whole run, so that every epoch has the same exact number of steps."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import NoUsableRowsError, OptionError
from ms_prefstream.plan.bins import Bins, exactly
from ms_prefstream.plan.fill import pack_rows
from ms_prefstream.plan.keep import Kept
from ms_prefstream.plan.keys import Use, run_sequence, use_sequence
from ms_prefstream.plan.options import PlanOptions
from ms_prefstream.plan.permutation import KeyedPermutation
from ms_prefstream.plan.ranks import Ranks
from ms_prefstream.plan.windows import Windows

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
        kept = Kept(usable)
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
        key = use_sequence(self._seed, epoch, Use.MADE_TO_FIT)
        packs = exactly(self._pack(epoch, *self._source), self._count, key).bins
        # Replaced as a whole: a reader in another thread sees the old epochs or the new ones.
        self._held = ((epoch, packs), *self._held[: _EPOCHS_HELD - 1])
        return packs

    def _pack(self, epoch: int, kept: Kept, sizes: NDArray[np.integer[Any]]) -> Bins:
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
            key = run_sequence(self._seed, Use.PACKING)
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
