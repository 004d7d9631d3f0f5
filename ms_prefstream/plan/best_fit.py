"""Best-fit decreasing: row by row, the longest first, each into the bin that it leaves the least room in."""

from __future__ import annotations

import bisect
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.plan.bins import Bins, grouped


def best_fit(sizes: NDArray[np.integer[Any]], capacity: int, most: int) -> Bins:
    """Puts rows into bins one after the other; `fill.pack_rows` says what is in the bins.

        sizes 6 5 4 3 2     capacity 10      6 | 6, 5 | 6 4, 5 | 6 4, 5 3 | 6 4, 5 3 2

    Rows of one size keep their order. It costs Python a step for each row, so it is for thousands of rows.

    Args:
        sizes: (n,) tokens of each row, 1 to `capacity`.
        capacity: Tokens of a bin.
        most: Rows that a bin may hold.
    """
    owner = np.empty(sizes.size, np.int64)
    rows_in: list[int] = []
    open_bins: list[tuple[int, int]] = []  # (room, bin), ascending; full ones are gone
    lengths = sizes.tolist()
    for row in np.argsort(-sizes.astype(np.int64), kind="stable").tolist():
        size = lengths[row]
        place = bisect.bisect_left(open_bins, (size, 0))
        if place < len(open_bins):
            room, number = open_bins.pop(place)
        else:
            room, number = capacity, len(rows_in)
            rows_in.append(0)
        owner[row] = number
        rows_in[number] += 1
        if room > size and rows_in[number] < most:
            bisect.insort(open_bins, (room - size, number))
    return grouped(owner, len(rows_in))
