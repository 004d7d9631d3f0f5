"""One logical shard's window once its lengths are known: stand-ins for bad rows, then batches of like length."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import NoUsableRowsError


class Arrangement(NamedTuple):
    """How the slots of a shard's window become batches.

    Attributes:
        batches: (s, b) int64, the slots of each batch; every slot stands in exactly one.
        filled_by: (s * b,) int64, the slot whose row each slot delivers: itself, or its stand-in.
    """

    batches: NDArray[np.int64]
    filled_by: NDArray[np.int64]


def arrange(
    lengths: NDArray[np.integer[Any]], rows: NDArray[np.int64], batch_rows: int, *, sort: bool = True
) -> Arrangement:
    """Fills the slots of bad rows, sorts by length and cuts into batches.

    The i-th bad slot, in window order, is filled by the i-th good slot in key order (length, then row id, ascending),
    beginning again when there are more bad slots than good ones. Slots are then sorted by (length of the row that
    fills them, planned row id).

        lengths    9 -1  4  7     rows  30 10 20 40     batch_rows 2
        filled_by  0  2  2  3     (slot 1 takes row 20, the shortest)
        batches    [1 2] [3 0]    (lengths 4 4, 7 9)

    Args:
        lengths: (s * b,) key length of each slot's planned row, in window order; -1 where the row is bad.
        rows: (s * b,) int64, the planned row ids.
        batch_rows: b, the rows of a batch.
        sort: Whether to sort; without it, batches are cut in window order.

    Raises:
        NoUsableRowsError: No slot has a good row.
    """
    if lengths.shape != rows.shape or rows.ndim != 1 or rows.size % batch_rows:
        raise ValueError(f"{lengths.shape} lengths and {rows.shape} rows do not fill batches of {batch_rows}")
    slots = np.arange(rows.size)
    bad = lengths < 0
    filled_by = slots.copy()
    if bad.any():
        filled_by[bad] = _stand_ins(lengths, rows, slots[~bad], int(bad.sum()))
    order = np.lexsort((rows, lengths[filled_by])) if sort else slots
    return Arrangement(batches=order.reshape(-1, batch_rows), filled_by=filled_by)


def _stand_ins(
    lengths: NDArray[np.integer[Any]], rows: NDArray[np.int64], good: NDArray[np.int64], wanted: int
) -> NDArray[np.int64]:
    """The first `wanted` good slots in key order, cyclically: (wanted,) int64."""
    if not good.size:
        shown = ", ".join(str(row) for row in rows[:5].tolist()) + (", …" if rows.size > 5 else "")
        raise NoUsableRowsError(
            f"All {rows.size} rows of one window of a logical shard were dropped (row ids {shown}), so no row is left "
            "to stand in for them. Look at the reasons in stream.report; a larger window, fewer logical shards or a "
            "length index (stream.build_index()) lets the run go on without these rows."
        )
    by_key = np.lexsort((rows[good], lengths[good]))
    chosen: NDArray[np.int64] = good[by_key[np.arange(wanted) % good.size]]
    return chosen
