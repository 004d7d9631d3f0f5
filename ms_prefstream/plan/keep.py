"""From the k-th usable row to its row id, holding whichever list is shorter: the rows kept or the rows left out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Kept:
    """The rows that a mask keeps, numbered 0..count - 1; at most 2 bytes a row of the mask (4 beyond 2**31 rows).

        mask   1 0 1 1 0 1      count 4
        k      0 1 2 3
        ids    0 2 3 5

    Args:
        mask: (N,) bool, True for rows to keep.
    """

    def __init__(self, mask: NDArray[np.bool_]) -> None:
        self.count = int(np.count_nonzero(mask))
        left_out = mask.size - self.count
        dtype = np.int32 if mask.size < 2**31 else np.int64
        self._few_kept = self.count < left_out
        if self._few_kept:
            self._list = np.flatnonzero(mask).astype(dtype)
        else:
            # The i-th row left out, minus i: how many rows are kept before it.
            self._list = (np.flatnonzero(~mask) - np.arange(left_out)).astype(dtype)

    def ids(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row ids of these kept rows, int64 of the same shape; several times faster on many when they ascend."""
        if self._few_kept:
            return self._list[numbers].astype(np.int64)
        if not self._list.size:
            return numbers
        # The k-th kept row stands behind every row left out that has at most k kept rows before it. Of the list's own
        # type, or the whole list would be converted in each call.
        return numbers + np.searchsorted(self._list, numbers.astype(self._list.dtype), side="right")
