"""The columns of a file layout, as MindRecord knows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column.

    Attributes:
        dtype: ``int32``, ``int64`` or ``float32``.
        most: The most values that a row can have; how large pages must be follows from it.
        shape: ``(-1,)`` where rows have different numbers of values, ``(n,)`` where all have n, ``()`` for a number.
    """

    dtype: str
    most: int
    shape: tuple[int, ...] = (-1,)

    @property
    def bytes(self) -> float:
        """The most bytes that a value of each row takes: MindRecord adds two bits to a whole number."""
        return self.most * (np.dtype(self.dtype).itemsize + 0.25) + 16

    def schema(self) -> dict[str, Any]:
        """The column in a MindRecord schema; a number has no shape there."""
        return {"type": self.dtype, "shape": [-1]} if self.shape else {"type": self.dtype}


Columns = Mapping[str, Column]
"""Name -> column, in the layout's own order; MindRecord itself gives columns back by name."""


def row_bytes(columns: Columns) -> int:
    """The most bytes that a row can take in a file."""
    return int(sum(column.bytes for column in columns.values())) + 64


def described(columns: Columns) -> dict[str, Any]:
    """The columns as plain values for JSON."""
    return {name: {"dtype": column.dtype, "shape": list(column.shape)} for name, column in columns.items()}
