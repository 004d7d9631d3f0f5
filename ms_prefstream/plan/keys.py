"""Seeds of everything that is shuffled: one sequence for each (seed, epoch) and for each use of a window.

Never `seed + epoch`: that makes epoch 1 of seed 0 the same as epoch 0 of seed 1.
"""

from __future__ import annotations

import enum

import numpy as np
from numpy.typing import NDArray


class Use(enum.IntEnum):
    """What a sequence is for; two uses never share their numbers."""

    BATCH_ORDER = 1
    ROWS_OF_WINDOW = 2
    WINDOW_ORDER = 3
    ROWS_OF_PART = 4
    ROWS_OF_PART_WINDOW = 5
    WINDOWS_OF_PART = 6
    TURNS_OF_STEP = 7
    PACKING = 100
    MADE_TO_FIT = 101
    LEFT_OUT = 102
    ROWS_OF_WIDTH = 103
    STEPS_BY_BUDGET = 104
    DRAWN_FOR_SHAPES = 105


def epoch_sequence(seed: int, epoch: int) -> np.random.SeedSequence:
    """The sequence behind one epoch's permutation of all rows."""
    return np.random.SeedSequence([seed, epoch])


def run_sequence(seed: int, use: Use) -> np.random.SeedSequence:
    """The sequence behind one use of a whole run."""
    return np.random.SeedSequence([seed], spawn_key=(int(use),))


def window_sequence(seed: int, epoch: int, window: int, use: Use, *which: int) -> np.random.SeedSequence:
    """The sequence behind one use of one window, or of a shard of it.

    `SeedSequence` fills up with zeros, so ``[seed, epoch, 0]`` alone would equal ``[seed, epoch]``: window 0 would
    repeat the epoch's own key. The use stands behind the fill (a spawn key) and keeps them apart.
    """
    return np.random.SeedSequence([seed, epoch, window], spawn_key=(int(use), *which))


def use_sequence(seed: int, epoch: int, use: Use, *which: int) -> np.random.SeedSequence:
    """The sequence behind one use of an epoch, or of what is named: a part of a mixture, a pass over it, a width."""
    return np.random.SeedSequence([seed, epoch], spawn_key=(int(use), *which))


def keyed_order(count: int, sequence: np.random.SeedSequence) -> NDArray[np.int64]:
    """A permutation of a few items, (count,) int64: the order of their random 64-bit words.

    `numpy.random.Generator.permutation` may change between numpy versions; the words of a `SeedSequence` may not.
    """
    return np.argsort(sequence.generate_state(count, np.uint64), kind="stable").astype(np.int64, copy=False)
