"""How long the longest rows of batches are going to be, from the lengths of rows: what widths are chosen for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.plan.keys import Use, use_sequence
from ms_prefstream.plan.permutation import KeyedPermutation

_ROWS = 2**18  # that are looked at, at most; enough for thousands of batches
_DRAWS = 16  # of the same rows into other windows: widths that fit a few windows too well are worse in others


def batch_maxima(
    lengths: NDArray[np.integer[Any]], global_batch: int, window: int, seed: int, sort: bool
) -> NDArray[np.int64]:
    """The longest row of each batch, in windows cut from these lengths in a random order.

        lengths 3 9 4 7 8 1 6 2     global_batch 2, window 2     windows 3 9 4 7 | 8 1 6 2     longest 4 9 | 2 8

    A batch is as wide as its longest row needs. Widths that are best for single rows are too narrow at the upper end of
    each batch, which then takes the next one: on CValues-like rows that costs about a point of padding.

    Args:
        lengths: (n,) key lengths of some rows, or of all, in any order.
        global_batch: Rows of a step, all ranks together.
        window: Steps that are sorted together.
        seed: Of the stream.
        sort: Whether windows are sorted.

    Returns:
        (m,) int64, one for each whole batch, for few rows several times over; the lengths where they fill no batch.
    """
    count = min(len(lengths), _ROWS)
    batches = count // global_batch
    if not batches:
        return lengths.astype(np.int64)
    size = min(window, batches) * global_batch
    windows = count // size  # a last one that is short sorts worse than the others, and is left out
    longest: list[NDArray[np.int64]] = []
    for draw in range(min(_DRAWS, max(1, _ROWS // count))):
        order = KeyedPermutation(len(lengths), use_sequence(seed, draw, Use.DRAWN_FOR_SHAPES))
        rows = lengths[order.row_of(np.arange(windows * size))].astype(np.int64).reshape(windows, size)
        if sort:
            rows.sort(axis=1)
        longest.append(rows.reshape(-1, global_batch).max(axis=1))
    return np.concatenate(longest)
