"""Samples to the arrays of a batch, with what the report counts about it."""

from __future__ import annotations

from dataclasses import dataclass

from ms_prefstream.batch import Bucket, Layout, Pack, PackedLayout, Pad
from ms_prefstream.report.report import Report
from ms_prefstream.runtime.steps import Batch
from ms_prefstream.tasks import Task
from ms_prefstream.tasks.sample import Sample


@dataclass(frozen=True)
class Collate:
    """Called with the samples of a step and the tokens of the longest sequence to pad for.

    Attributes:
        layout: The arrays.
        batching: Chooses the width.
        widths: What it may choose from.
        pad_id: What ids are padded with.
        task: Whether labels are shifted.
        report: Counts tokens and padding.
    """

    layout: Layout
    batching: Pad | Bucket
    widths: tuple[int, ...]
    pad_id: int
    task: Task
    report: Report

    def __call__(self, samples: list[Sample], longest: int) -> Batch:
        width = self.batching.width_for(longest, self.widths)
        self.report.batch(samples, width)
        return self.layout.build(samples, width, self.pad_id, self.task.shifted)


@dataclass(frozen=True)
class CollatePacks:
    """Called with the samples of each packed row of a step; attributes as for `Collate`."""

    layout: PackedLayout
    batching: Pack
    pad_id: int
    task: Task
    report: Report

    def __call__(self, packs: list[list[Sample]]) -> Batch:
        self.report.packed_batch(packs, self.layout.tokens, self.batching.samples_per_row(self.task))
        return self.layout.build(packs, self.pad_id, self.task.shifted)
