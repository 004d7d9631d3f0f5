"""The plan that starts at once: nothing is known about lengths before a window is tokenised."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.plan.arrangement import Arrangement, arrange
from ms_prefstream.plan.check import whole_number
from ms_prefstream.plan.ranks import Ranks
from ms_prefstream.plan.windows import Windows


class WindowedPlan(Windows):
    """Windows dealt out to logical shards; each shard's window is sorted on its own by the rank that owns it.

    Position p of a window belongs to logical shard p % C, so every shard has the same number of rows in each window,
    and a global step holds the same rows whatever the number of ranks. The path of a step:

        window, inside = plan.locate(step)
        batch = plan.batch_order(epoch, window)[inside]
        for shard in Ranks(world, rank, C).shards:
            rows = plan.shard_rows(epoch, window, shard)                # (s * b,)
            batches, filled_by = plan.arrange(lengths_of(rows), rows)   # tokenises one window
            rows[filled_by[batches[batch]]]                             # (b,) what this shard adds to the step

    Args:
        options: What to plan.
    """

    def shard_rows(self, epoch: int, window: int, shard: int) -> NDArray[np.int64]:
        """The planned row ids of one logical shard in one window, (steps_in(window) * b,) int64, in window order."""
        shards = self.options.logical_shards
        shard = whole_number("shard", shard, 0, shards - 1)
        count = self.steps_in(window) * self.options.shard_batch
        return self.rows_at(epoch, self.window_start(window) + shard + shards * np.arange(count))

    def arrange(self, lengths: NDArray[np.integer[Any]], rows: NDArray[np.int64]) -> Arrangement:
        """The batches of one logical shard's window, bad rows replaced; see `arrangement.arrange`.

        Args:
            lengths: (s * b,) key lengths in window order; -1 where the row is bad.
            rows: (s * b,) int64, what `shard_rows` gave.
        """
        return arrange(lengths, rows, self.options.shard_batch, sort=self.options.sorts)

    def rows(self, epoch: int, step: int, rank: int, world: int) -> NDArray[np.int64] | None:
        """The planned row ids of a rank's step, (G / world,) int64; None when they depend on lengths.

        Raises:
            OptionError: There is no such step, or no such rank, or `world` does not divide the logical shards.
        """
        ranks = Ranks(world, rank, self.options.logical_shards)
        window, inside = self.locate(step)
        if self.options.sorts:
            return None
        batch = self.batch_order(epoch, window)[inside]
        slots = batch * self.options.shard_batch + np.arange(self.options.shard_batch)
        shards = np.array(ranks.shards)[:, None]  # (C / world, 1)
        positions = self.window_start(window) + shards + self.options.logical_shards * slots
        return self.rows_at(epoch, positions.reshape(-1))
