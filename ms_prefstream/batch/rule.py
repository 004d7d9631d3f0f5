"""The contract of a batching rule: what `batching=` of a stream must offer. `Pad`, `Bucket` and `Pack` keep it.

To add a rule, write one file with a frozen dataclass that has these attributes and methods, and export it in
`ms_prefstream/batch/__init__.py`.
"""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

from ms_prefstream.batch.layouts.base import Layout
from ms_prefstream.batch.layouts.packed import PackedLayout
from ms_prefstream.batch.layouts.registry import make_layout
from ms_prefstream.errors import OptionError
from ms_prefstream.tasks.base import Task, columns_of, traits


class StepFactory(Protocol):
    """The three ways to cut an epoch into steps; see `ms_prefstream.steps.open`."""

    @property
    def task(self) -> Task: ...

    def by_rows(self, batch_size: int, sort: bool) -> Any:
        """Steps of `batch_size` rows on each rank; `sort` makes the rows of a step alike in length."""

    def by_tokens(self, max_tokens: int, extra: int) -> Any:
        """Steps of as many rows as fit into `max_tokens`, `extra` columns of each row not counted."""

    def by_packs(self, rows: int, tokens: int, max_samples: int) -> Any:
        """Steps of `rows` packed rows on each rank, each of `tokens` columns and at most `max_samples` samples."""


class BatchingRule(Protocol):
    """How many samples a step has, and to which widths they are padded.

    Attributes:
        unit: What states call the unit of a global batch: ``rows``, ``tokens`` or ``packed rows``.
        chooses_widths: Whether `widths` chooses from the lengths of the data.
    """

    @property
    def batch_size(self) -> int | None: ...

    @property
    def unit(self) -> str: ...

    @property
    def chooses_widths(self) -> bool: ...

    def layout(self, task: Task, with_ref_logps: bool = False) -> Layout | PackedLayout:
        """Returns the arrays of a batch.

        Raises:
            OptionError: The samples of this task cannot be batched like this.
        """

    def widths(self, max_length: int, lengths: NDArray[Any] | None = None) -> tuple[int, ...]:
        """Returns every width that a batch can have, in columns, ascending: a closed set.

        Args:
            max_length: Tokens of the longest sequence that the task lets through.
            lengths: (n,) key lengths (`Sample.length`) of all rows or of a sample of them, if `chooses_widths`.
        """

    def width_for(self, longest: int, widths: tuple[int, ...]) -> int:
        """Returns which of `widths` a batch gets whose longest sequence has `longest` tokens."""

    def steps(self, factory: StepFactory, widths: tuple[int, ...]) -> Any:
        """Returns the steps, made by one of the methods of `factory`."""


def padded_layout(task: Task, with_ref_logps: bool, batch_size: int | None) -> Layout:
    """Returns the layout of a task whose samples have rows of their own.

    Raises:
        OptionError: A step has too few rows for the task, or None of them.
    """
    least = traits(task).least_rows
    if least > 1 and (batch_size is None or batch_size < least):
        found = "a budget of tokens" if batch_size is None else f"a batch_size of {batch_size}"
        raise OptionError(
            f"{task!r} joins the rows of a step and needs {least} of them on each rank at least, a fixed number; found "
            f"{found}. Give batch_size={least} or more, or pass kl=False to the task."
        )
    return make_layout(
        task.layout,
        columns=columns_of(task),
        with_ref_logps=with_ref_logps,
        max_prompt_length=task.prompt_columns,
        **traits(task).layout_options,
    )
