"""What is written: the choices that decide about every byte of a cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ms_prefstream.cache.columns import Column
from ms_prefstream.cache.fixed import check_fixed, fixed_columns
from ms_prefstream.cache.manifest import FORMAT_VERSION
from ms_prefstream.cache.ragged import ragged_columns
from ms_prefstream.errors import OptionError
from ms_prefstream.tasks.base import Task

LAYOUTS = ("ragged", "mindrlhf", "mindformers")
ROWS_PER_PART = 8192


@dataclass(frozen=True, kw_only=True)
class Job:
    """The same job gives the same files, whatever the number of workers and interruptions.

    Attributes:
        layout: ``ragged``, ``mindrlhf`` or ``mindformers``.
        task: What rows become.
        width: Columns of the arrays of the fixed layouts.
        pad_id: What these are filled up with.
        rows_per_part: Rows of the source for each file.
        reference: Whether DPO samples carry reference log-probabilities.
    """

    layout: str
    task: Task
    width: int
    pad_id: int
    rows_per_part: int = ROWS_PER_PART
    reference: bool = False

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise OptionError(f"layout is {self.layout!r}; expected one of {', '.join(map(repr, LAYOUTS))}.")
        number = self.rows_per_part
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise OptionError(f"rows_per_part is {number!r}; expected a whole number of rows, 1 or more.")
        if self.layout != "ragged":
            check_fixed(self.layout, self.task)
        if self.width < self.task.length:
            raise OptionError(
                f"Pad: length is {self.width}, but rows may have {self.task.length} tokens. Give at least that many."
            )

    @property
    def columns(self) -> dict[str, Column]:
        """Of every file, in order."""
        if self.layout == "ragged":
            return ragged_columns(self.task)
        return fixed_columns(self.task, self.width, self.reference)

    @property
    def refuses_pad(self) -> bool:
        """Whether the layout's reader searches for the pad id."""
        return self.layout == "mindformers"

    def about(self) -> dict[str, Any]:
        """The job as plain values for JSON."""
        fixed = self.layout != "ragged"
        return {
            "version": FORMAT_VERSION,
            "layout": self.layout,
            "task": described(self.task),
            "width": self.width if fixed else None,
            "pad_token_id": self.pad_id,
            "rows_per_part": self.rows_per_part,
        }


def described(task: Task) -> dict[str, Any]:
    """A task as plain values: its name and all options, whether given or not."""
    options: Mapping[str, Any] = dataclasses.asdict(task)  # type: ignore[call-overload]  # tasks are dataclasses
    return {"name": task.name, **options}
