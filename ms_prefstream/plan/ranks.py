"""Ranks, logical shards, and the number of rows that each rank adds to a step."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace

from ms_prefstream.checks import divisors_near, whole_number
from ms_prefstream.errors import OptionError


@dataclass(frozen=True)
class Ranks:
    """One rank among `world`, and the contiguous share of the logical shards that it owns.

        logical_shards = 8, world = 4      rank 0: 0 1    rank 1: 2 3    rank 2: 4 5    rank 3: 6 7

    Attributes:
        world: The number of ranks (`num_shards`).
        rank: This rank, counted from 0 (`shard_id`).
        logical_shards: The shards that are planned; 0 means one for each rank.
        chosen: Whether the user chose `logical_shards`, so that a saved state does not replace it.
    """

    world: int = 1
    rank: int = 0
    logical_shards: int = 0
    chosen: bool = field(default=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "world", whole_number("num_shards", self.world, 1))
        object.__setattr__(self, "rank", whole_number("shard_id", self.rank, 0, self.world - 1))
        shards = whole_number("logical_shards", self.logical_shards, 0) or self.world
        object.__setattr__(self, "logical_shards", shards)
        if shards % self.world:
            raise OptionError(
                f"num_shards={self.world} does not divide logical_shards={shards}, so ranks would do unequal work. "
                f"Run on {divisors_near(shards, self.world)} ranks, or start a new run with "
                f"logical_shards={-(-shards // self.world) * self.world}."
            )

    @classmethod
    def given(
        cls, num_shards: int | None = None, shard_id: int | None = None, logical_shards: int | None = None
    ) -> Ranks:
        """Makes ranks from the options of a user: num_shards and shard_id come together or not at all.

        Raises:
            OptionError: One of the two is missing, or a number is not allowed.
        """
        if (num_shards is None) != (shard_id is None):
            found, missing = ("num_shards", "shard_id") if shard_id is None else ("shard_id", "num_shards")
            raise OptionError(f"{found} is given without {missing}. Give both, or neither for a single rank.")
        shards = 0 if logical_shards is None else whole_number("logical_shards", logical_shards, 1)
        ranks = cls(1 if num_shards is None else num_shards, 0 if shard_id is None else shard_id, shards)
        return replace(ranks, chosen=logical_shards is not None)

    @property
    def shards(self) -> range:
        """The logical shards of this rank, in the order in which they fill its batch."""
        share = self.logical_shards // self.world
        return range(self.rank * share, (self.rank + 1) * share)

    def global_batch(self, batch_size: int) -> int:
        """Returns the rows of one step over all ranks, with this many on each rank.

        Raises:
            OptionError: The logical shards cannot get equal shares.
        """
        rows = whole_number("batch_size", batch_size, 1) * self.world
        if rows % self.logical_shards:
            share = self.logical_shards // self.world
            raise OptionError(
                f"batch_size={batch_size} on num_shards={self.world} makes {rows} rows a step, which is not a multiple "
                f"of logical_shards={self.logical_shards}. Use a batch_size that is a multiple of {share}, or fewer "
                "logical shards."
            )
        return rows

    def batch_size(self, global_batch: int) -> int:
        """Returns the rows of this rank in a step of `global_batch` rows.

        Raises:
            OptionError: The ranks cannot get equal shares.
        """
        rows = whole_number("global_batch", global_batch, 1)
        if rows % self.world:
            raise OptionError(
                f"num_shards={self.world} does not divide global_batch={rows}, so ranks would get unequal batches. "
                f"Run on {divisors_near(rows, self.world)} ranks, or change batch_size."
            )
        return rows // self.world


@functools.lru_cache(maxsize=64, typed=True)  # every step asks for it
def rows_of_rank(rank: int, world: int, global_batch: int) -> slice:
    """Returns which rows of a global step a rank loads, where ranks take turns.

    Raises:
        OptionError: The ranks cannot get equal shares.
    """
    Ranks(world, rank).batch_size(global_batch)
    return slice(int(rank), None, int(world))
