"""Packing: several samples share a row of tokens, so that next to nothing is padding and there is one shape."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray

from ms_prefstream.batch.layouts.packed import PackedLayout
from ms_prefstream.batch.rule import StepFactory
from ms_prefstream.checks import LONGEST, checked_call, whole_number
from ms_prefstream.errors import OptionError
from ms_prefstream.tasks.base import Task, columns_of, traits


@checked_call
@dataclass(frozen=True)
class Pack:
    """Several samples share a row of `tokens`; both sides of a pair are in the same row, one after the other.

        tokens=16, pairs of 3 + 4 and 5 + 3      c1 c1 c1 r1 r1 r1 r1 c2 c2 c2 c2 c2 r2 r2 r2 --

    Attributes:
        tokens: Columns of a row. It must hold the longest sample: both sides of a pair, ``2 * max_length``; for RLHF
            ``seq_length``.
        max_segments: Columns of `actual_seq_len`. The last of them always names the row's end, so a row holds at most
            ``max_segments - 1`` sequences.
        batch_size: Rows of one step on one rank.
    """

    tokens: int
    _: KW_ONLY
    max_segments: int = 128
    batch_size: int = 1

    unit: ClassVar[str] = "packed rows"
    chooses_widths: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for option, minimum in (("tokens", 2), ("max_segments", 2), ("batch_size", 1)):
            object.__setattr__(self, option, whole_number(f"Pack: {option}", getattr(self, option), minimum, LONGEST))

    def check(self, task: Task) -> None:
        """Checks that the samples of a task can be packed like this.

        Raises:
            OptionError: The task's layout has no place in packs, or a sample may not fit; says what to do.
        """
        facts = traits(task)
        if facts.no_packs is not None:
            raise OptionError(f"Pack: {facts.no_packs}")
        sequences = 2 if task.pairs else 1
        longest = sequences * task.length
        if longest > self.tokens:
            option = facts.length_option
            takes = f"so a pair may take {longest}" if task.pairs else "which one sample may take"
            raise OptionError(
                f"Pack: tokens is {self.tokens}, but the task's {option} is {task.length}, {takes}. Give "
                f"tokens={longest} or more, or lower {option} to {self.tokens // sequences}."
            )
        if self.samples_per_row(task) < 1:
            raise OptionError(
                f"Pack: max_segments is {self.max_segments}, but a pair takes two and the row's end another one. Give "
                "max_segments=3 or more."
            )

    def samples_per_row(self, task: Task) -> int:
        """Returns how many samples a row may hold, however short they are."""
        return (self.max_segments - 1) // (2 if task.pairs else 1)

    def layout(self, task: Task, with_ref_logps: bool = False) -> PackedLayout:
        """See `BatchingRule`. Packs have no column for reference log-probabilities."""
        self.check(task)
        return PackedLayout(
            tokens=self.tokens,
            max_segments=self.max_segments,
            scores=traits(task).scores,
            own=columns_of(task),
        )

    def widths(self, max_length: int, lengths: NDArray[Any] | None = None) -> tuple[int, ...]:
        """See `BatchingRule`: a single width."""
        return (self.tokens,)

    def width_for(self, longest: int, widths: tuple[int, ...]) -> int:
        """See `BatchingRule`."""
        return self.tokens

    def steps(self, factory: StepFactory, widths: tuple[int, ...]) -> Any:
        """See `BatchingRule`."""
        return factory.by_packs(self.batch_size, self.tokens, self.samples_per_row(factory.task))
