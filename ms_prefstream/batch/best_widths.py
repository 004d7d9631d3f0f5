"""The best k widths for given lengths: an exact dynamic program.

A sequence costs the width it is padded to, so with the counts c of the rounded-up lengths w_1 < ... < w_n the widths
split 1..n into at most k runs and a run (p, i] costs w_i * (N_i - N_p), N being the cumulative counts. Batches cut from
rows sorted by length pay the same, apart from the few batches that straddle a border.

The run cost satisfies the quadrangle inequality, hence the best p never falls as i rises (Knuth, Yao). The search for
each i therefore begins at the best p of the one before; no n x n table is held.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.batch.layouts.arrays import internal_error
from ms_prefstream.plan.shuffle import KeyedPermutation, SeedUse, use_sequence

_ROWS = 2**18  # used at most; enough for thousands of batches
_DRAWS = 16  # of the same rows into other windows, so that widths do not overfit a few windows


def batch_maxima(
    lengths: NDArray[np.integer[Any]], global_batch: int, window: int, seed: int, sort: bool
) -> NDArray[np.int64]:
    """Returns the longest row of each batch, in windows cut from these lengths in a random order.

        lengths 3 9 4 7 8 1 6 2     global_batch 2, window 2     windows 3 9 4 7 | 8 1 6 2     longest 4 9 | 2 8

    A batch is as wide as its longest row needs. Widths that are best for single rows are too narrow at the upper end of
    each batch, which then takes the next one: on CValues-like rows that costs about a point of padding.

    The lengths are the key lengths of some rows, or of all, in any order. The result is (m,) int64, one for each whole
    batch, for few rows several times over; the lengths where they fill no batch.
    """
    count = min(len(lengths), _ROWS)
    batches = count // global_batch
    if not batches:
        return lengths.astype(np.int64)
    size = min(window, batches) * global_batch
    windows = count // size  # a last one that is short sorts worse than the others, and is left out
    longest: list[NDArray[np.int64]] = []
    for draw in range(min(_DRAWS, max(1, _ROWS // count))):
        order = KeyedPermutation(len(lengths), use_sequence(seed, draw, SeedUse.DRAWN_FOR_SHAPES))
        rows = lengths[order.row_of(np.arange(windows * size))].astype(np.int64).reshape(windows, size)
        if sort:
            rows.sort(axis=1)
        longest.append(rows.reshape(-1, global_batch).max(axis=1))
    return np.concatenate(longest)


def round_up(length: int, multiple: int) -> int:
    """Returns the smallest multiple that is not below `length`."""
    return -(-length // multiple) * multiple


def best_widths(lengths: NDArray[Any], longest: int, max_shapes: int, round_to: int) -> tuple[int, ...]:
    """Returns the at most `max_shapes` multiples of `round_to` that pad these lengths least.

    The widths ascend. The last is `longest`, the length of the longest possible sequence, rounded up, whether or not a
    row needs it. There are fewer than `max_shapes` when the lengths have fewer distinct values after rounding.
    """
    keys = np.asarray(lengths, dtype=np.int64).ravel()
    if keys.min() < 1 or keys.max() > longest:
        raise internal_error(
            f"lengths run from {keys.min()} to {keys.max()} tokens, but the task gives 1 to {longest} tokens"
        )
    blocks, counts = np.unique(-(-keys // round_to), return_counts=True)  # (n,) ascending
    last = round_up(longest, round_to) // round_to
    if blocks[-1] != last:
        blocks, counts = np.append(blocks, last), np.append(counts, 0)
    ends = cheapest_ends(blocks, counts, max_shapes)
    return tuple(int(block) * round_to for block in blocks[ends])


def cheapest_ends(sizes: NDArray[np.int64], counts: NDArray[np.int64], groups: int) -> NDArray[np.int64]:
    """Splits ascending sizes into at most `groups` runs so that padding each run to its last size costs least.

    `counts` says how often each size occurs. Returns (min(groups, n),) int64 positions at which the runs end; the last
    is n - 1.
    """
    n = len(sizes)
    before = np.concatenate(([0], np.cumsum(counts)))  # (n + 1,) rows among the first i sizes
    width = np.concatenate(([0], sizes))  # (n + 1,) the run that ends with the i-th size is padded to width[i]
    cost = width * before  # (n + 1,) the first i sizes in one run
    choices = []  # one (n + 1,) array a further run: where the run before it ends
    for runs in range(2, min(groups, n) + 1):
        cost, choice = _add_run(cost, width, before, runs)
        choices.append(choice)
    ends = [n]
    for choice in reversed(choices):
        ends.append(int(choice[ends[-1]]))
    return np.array(ends[::-1], dtype=np.int64) - 1


def _add_run(
    cost: NDArray[np.int64], width: NDArray[np.int64], before: NDArray[np.int64], runs: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns one layer: the least cost of the first i sizes in `runs` runs, and where the run before the last ends.

    All arrays are (n + 1,) int64. `cost` is the layer of `runs` - 1 runs; the results are valid from i = `runs` on.
    """
    best, choice = np.zeros_like(cost), np.zeros_like(cost)
    p = runs - 1
    for i in range(runs, len(width)):
        value = cost[p:i] - width[i] * before[p:i]
        least = int(np.argmin(value))  # the leftmost, which keeps the choices ascending
        p += least
        choice[i], best[i] = p, value[least] + width[i] * before[i]
    return best, choice
