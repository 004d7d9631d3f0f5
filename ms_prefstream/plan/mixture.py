"""Several parts in one epoch: how many rows it has, and how many of them come from each part."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import NoUsableRowsError, OptionError
from ms_prefstream.plan.check import whole_number
from ms_prefstream.plan.schedule import Schedule

Stop: TypeAlias = Literal["first", "all"]


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Parts with their sizes and weights. The rows of all parts are numbered through, part by part.

        sizes 4, 10   weights 1, 1      stop="first": 8 rows, 4 + 4       stop="all": 20 rows, 10 + 10 (4 repeated)

    Attributes:
        sizes: Rows of each part.
        weights: Whole numbers in proportion to the shares of the parts.
        stop: When the epoch ends. ``first``: when a part has no row left for its turn; that part was seen whole, of
            the others as many rows as their shares allow, other ones each epoch when shuffling. ``all``: when the last
            part was seen whole; the others begin anew, in a new order, as often as it takes.
    """

    sizes: tuple[int, ...]
    weights: tuple[int, ...]
    stop: Stop = "first"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(whole_number("size of a part", size, 1) for size in self.sizes))
        object.__setattr__(self, "weights", tuple(whole_number("weight", weight, 1) for weight in self.weights))
        if not self.sizes or len(self.sizes) != len(self.weights):
            raise OptionError(f"{len(self.weights)} weights for {len(self.sizes)} parts; expected one for each part.")
        if self.stop not in ("first", "all"):
            raise OptionError(f"stop={self.stop!r} is not allowed; expected 'first' or 'all'.")

    @functools.cached_property
    def schedule(self) -> Schedule:
        """Whose turn it is at each position."""
        return Schedule(self.weights)

    @functools.cached_property
    def rows(self) -> int:
        """Rows of an epoch, repeated ones included."""
        parts = range(len(self.sizes))
        if self.stop == "first":
            return min(self.schedule.position(part, self.sizes[part]) for part in parts)
        return max(self.schedule.position(part, self.sizes[part] - 1) for part in parts) + 1

    @functools.cached_property
    def firsts(self) -> tuple[int, ...]:
        """The row id of each part's first row, and behind them the number of rows of all parts together."""
        return tuple(sum(self.sizes[:part]) for part in range(len(self.sizes) + 1))

    def over(self, usable: NDArray[np.bool_]) -> Mixture:
        """The same weights over the usable rows alone.

        Args:
            usable: (rows of all parts,) bool, False for rows that are left out.

        Raises:
            NoUsableRowsError: A part has none.
        """
        before = np.concatenate([[0], np.cumsum(usable)])[list(self.firsts)]
        sizes: list[int] = np.diff(before).tolist()
        if not all(sizes):
            raise NoUsableRowsError(
                f"The length index marks all rows of part {sizes.index(0)} of the mix (counted from 0) as unusable, so "
                "the mix cannot be made. Leave the part out, or correct its rows."
            )
        return replace(self, sizes=tuple(sizes))
