"""Padding to one length: every batch of a run has the same shape."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

from numpy.typing import NDArray

from ms_prefstream.batch.widths import smallest_width
from ms_prefstream.errors import OptionError
from ms_prefstream.plan.check import whole_number


@dataclass(frozen=True)
class Pad:
    """Every batch has one width.

    `Pad(batch_size=8)` with a task of at most 1024 tokens gives (8, 1024) arrays, whatever the rows.

    Attributes:
        batch_size: Samples of one step on one rank (a pair counts once).
        length: Columns of the arrays; None takes the length of the task. May be larger than that, never smaller.
    """

    batch_size: int
    _: KW_ONLY
    length: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "batch_size", whole_number("Pad: batch_size", self.batch_size, 1))
        if self.length is not None:
            object.__setattr__(self, "length", whole_number("Pad: length", self.length, 1))

    def widths(self, max_length: int, lengths: NDArray[Any] | None = None) -> tuple[int, ...]:
        """The only width that batches have.

        Args:
            max_length: Tokens of the longest sequence that the task lets through.
            lengths: Not needed here; `Bucket` chooses its shapes from it.

        Returns:
            One width, in columns.

        Raises:
            OptionError: If the task's sequences can be longer than `length`.
        """
        if self.length is None:
            return (max_length,)
        if self.length < max_length:
            raise OptionError(
                f"Pad: length is {self.length}, but the task lets sequences of up to {max_length} tokens through. "
                f"Give length={max_length} or more, leave length out, or lower the task's own length to {self.length}."
            )
        return (self.length,)

    def width_for(self, longest: int, widths: tuple[int, ...]) -> int:
        """The width of a batch whose longest sequence has `longest` tokens; `widths` is what `widths()` returned."""
        return smallest_width(longest, widths)
