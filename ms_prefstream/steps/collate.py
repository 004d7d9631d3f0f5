"""The contract of steps, a selection of their columns, and the functions that make arrays of samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ms_prefstream.batch import BatchingRule, Layout, PackedLayout
from ms_prefstream.errors import OptionError
from ms_prefstream.report.report import Report
from ms_prefstream.sample import Batch, Block
from ms_prefstream.tasks import Task


class Steps(Protocol):
    """Batches of each epoch, in a known number."""

    column_names: list[str]
    steps_per_epoch: int

    def start(self, epoch: int, step: int = 0) -> Iterator[Batch]:
        """Returns the batches of one epoch in order from a step on, as fresh arrays."""


class SelectedColumns:
    """Steps whose batches hold some columns of other steps; made by `select_columns`."""

    def __init__(self, steps: Steps, columns: list[str]) -> None:
        self.steps, self.column_names, self.steps_per_epoch = steps, columns, steps.steps_per_epoch

    def start(self, epoch: int, step: int = 0) -> Iterator[Batch]:
        """Yields the batches of one epoch in order from a step on."""
        for batch in self.steps.start(epoch, step):
            yield {name: batch[name] for name in self.column_names}


def select_columns(steps: Steps, columns: Sequence[str]) -> Steps:
    """Returns steps whose batches hold exactly these columns, in this order.

    Raises:
        OptionError: A column does not exist or comes twice, or there are none.
    """
    names, wanted = ", ".join(steps.column_names), [columns] if isinstance(columns, str) else list(columns)
    for name in wanted:
        if name not in steps.column_names:
            raise OptionError(f"column {name!r} does not exist in this stream; its batches hold {names}.")
    if not wanted or len(set(wanted)) < len(wanted):
        raise OptionError(f"columns is {wanted!r}; expected some of {names}, each once.")
    return SelectedColumns(steps, wanted)


@dataclass(frozen=True, kw_only=True)
class Collate:
    """Makes the batch of a step, padded to the one of `widths` that the batching rule chooses, and reports it."""

    layout: Layout
    batching: BatchingRule
    widths: tuple[int, ...]
    pad_id: int
    task: Task
    report: Report

    def __call__(self, samples: Block, longest: int | None = None) -> Batch:
        """Returns the batch of B samples; `longest` counts tokens, None for those of the samples themselves."""
        if longest is None:
            longest = int(samples.lengths.max())
        if self.layout.longest is not None:
            longest = max(longest, self.layout.longest(samples))
        width = self.batching.width_for(longest, self.widths)
        self.report.batch(samples, width)
        copies = self.layout.repeat
        try:
            batch = self.layout.build(samples, width, self.pad_id, self.task.shifted)
            return batch if copies == 1 else {name: np.repeat(array, copies, axis=0) for name, array in batch.items()}
        except MemoryError as error:
            raise _no_memory(f"{copies * len(samples):,} rows of {width:,} columns", error) from error


@dataclass(frozen=True, kw_only=True)
class CollatePacks:
    """Makes the batch of the packed rows of a step and reports it."""

    layout: PackedLayout
    max_samples: int
    pad_id: int
    task: Task
    report: Report

    def __call__(self, packs: list[Block]) -> Batch:
        """Returns the batch of the samples of each packed row."""
        self.report.packed_batch(packs, self.layout.tokens, self.max_samples)
        try:
            return self.layout.build(packs, self.pad_id, self.task.shifted)
        except MemoryError as error:
            raise _no_memory(f"{len(packs):,} packed rows of {self.layout.tokens:,} columns", error) from error


def _no_memory(batch: str, error: MemoryError) -> OptionError:
    return OptionError(
        f"there is no memory for a batch of {batch} ({error}). Lower the batch size or the length in batching and task."
    )
