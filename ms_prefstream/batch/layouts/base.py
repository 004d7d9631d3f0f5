"""What a layout is: the columns of a batch, in order, and how they are made from samples."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np

from ms_prefstream.batch.layouts.arrays import internal_error
from ms_prefstream.sample import Batch, Sample


class Build(Protocol):
    """Makes the arrays of one batch; a function or a `functools.partial`, so that worker processes can be sent it."""

    def __call__(self, samples: Many[Sample], width: int, pad_id: int, shifted: bool = False) -> Batch:
        """The batch.

        Args:
            samples: B samples.
            width: Columns of the arrays (L).
            pad_id: What ids are filled up with; may be 0 or an id that also occurs in the text.
            shifted: Whether labels and loss mask stand one column to the left (DPO layouts only).

        Returns:
            Column name -> array in the layout's order; final dtypes, C-contiguous, memory of its own.
        """


@dataclass(frozen=True)
class Layout:
    """The columns of a batch and the function that makes them.

    Attributes:
        name: What the user calls it (``layout="concat"``).
        columns: The names of the arrays that `build` returns, in order, known before any batch is made.
        build: Samples to arrays.
        sides: Rows of the token arrays for each sample: 2 where both sides of a pair are rows of one array.
    """

    name: str
    columns: tuple[str, ...]
    build: Build
    sides: int = 1


def refuse_shifted(layout: str, shifted: bool) -> None:
    """Stops a batch whose layout has no labels to shift: its readers shift by themselves."""
    if shifted:
        raise internal_error(f"shifted labels were asked of the layout {layout!r}, which only has unshifted ones")


def add_margin(layout: Layout) -> Layout:
    """The same layout with a last column `margin`, (B,) float32. Every sample must have one."""
    return replace(layout, columns=(*layout.columns, "margin"), build=partial(_build, build=layout.build))


def _build(samples: Many[Sample], width: int, pad_id: int, shifted: bool = False, *, build: Build) -> Batch:
    batch = build(samples, width, pad_id, shifted)
    margins = [sample.margin for sample in samples if sample.margin is not None]
    if len(margins) != len(samples):
        raise internal_error(
            f"{len(samples) - len(margins)} of {len(samples)} samples have no margin, but the batch has a column for it"
        )
    batch["margin"] = np.array(margins, dtype=np.float32)
    return batch
