"""The contract of a layout: the columns of a batch, in order, and the function that makes them from samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from ms_prefstream.batch.layouts.arrays import column, internal_error
from ms_prefstream.sample import Batch, Block


class Build(Protocol):
    """A function that makes the arrays of one batch, or a `functools.partial` of one: it is pickled for workers."""

    def __call__(self, samples: Block, width: int, pad_id: int, shifted: bool = False) -> Batch:
        """Returns the batch.

        Args:
            samples: B samples.
            width: Columns of the arrays (L).
            pad_id: The id that pads ids; may be 0 or an id that also occurs in the text.
            shifted: Whether labels and loss mask are shifted one column to the left (DPO layouts only).

        Returns:
            Column name -> array in the layout's order; final dtypes, C-contiguous, new memory.
        """


@dataclass(frozen=True)
class Layout:
    """The columns of a batch and the function that makes them.

    Attributes:
        name: The value of the option ``layout=``.
        columns: The names of the arrays that `build` returns, in order, known before any batch is made.
        build: Samples to arrays.
        sides: Rows of the token arrays for each sample: 2 where both sides of a pair are rows of one array.
        longest: Returns the tokens of the longest row of a batch; None if that is the longest sequence of the samples.
        joins_up_to: Tokens of a row that joins the prompt of one sample and the response of another, at most; None if
            there are no such rows.
        repeat: Adjacent copies of each row of every array that a batch of a stream has.
    """

    name: str
    columns: tuple[str, ...]
    build: Build
    sides: int = 1
    repeat: int = 1
    longest: Callable[[Block], int] | None = None
    joins_up_to: int | None = None

    def with_columns(self, columns: Mapping[str, str]) -> Layout:
        """Returns the same layout with further columns of the samples as its last ones, (B,).

        Args:
            columns: Name -> dtype, see `column`. Those that the layout has already stay where they are.
        """
        further = {name: dtype for name, dtype in columns.items() if name not in self.columns}
        if not further:
            return self
        return replace(
            self, columns=(*self.columns, *further), build=partial(_build, build=self.build, further=further)
        )


def refuse_shifted(layout: str, shifted: bool) -> None:
    """Checks that no shifted labels are requested from a layout whose readers shift themselves."""
    if shifted:
        raise internal_error(f"shifted labels were requested from the layout {layout!r}, which only has unshifted ones")


def _build(
    samples: Block, width: int, pad_id: int, shifted: bool = False, *, build: Build, further: Mapping[str, str]
) -> Batch:
    batch = build(samples, width, pad_id, shifted)
    return batch | {name: column(samples, name, dtype) for name, dtype in further.items()}
