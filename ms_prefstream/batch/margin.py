"""The margin column: how much better the chosen side is, behind the columns of any pair layout."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import replace
from functools import partial

import numpy as np

from ms_prefstream.batch.arrays import Batch
from ms_prefstream.batch.faults import internal_error
from ms_prefstream.batch.layout import Build, Layout
from ms_prefstream.tasks.sample import Sample


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
