"""What the rest of the library needs from a plan, whichever kind it is."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

PLAN_VERSION = 1
"""Raised whenever the same options give another order of rows; states of another version are refused."""


class Plan(Protocol):
    """A step is a pure function of (seed, epoch, step, rank, world): computed, never remembered."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps of every epoch, the same on all ranks."""

    @property
    def repeats_per_epoch(self) -> int:
        """Slots of an epoch that hold a row for the second time, to fill the last step."""

    @property
    def remainder_per_epoch(self) -> int:
        """Rows that an epoch leaves out, because they do not fill a step."""

    def rows(self, epoch: int, step: int, rank: int, world: int) -> NDArray[np.int64] | None:
        """The planned row ids of a rank's step, int64; None when they cannot be known without lengths."""
