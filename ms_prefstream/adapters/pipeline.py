"""What a source must know of the pipeline that is being built around its copy, set by the dataset that builds it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import NamedTuple


class Pipeline(NamedTuple):
    """The pipeline under construction, as its outermost dataset sees it.

    Attributes:
        in_band: Whether it ends in one of our iterators, with nothing between that looks into rows.
        init_step: Rows that MindSpore leaves out in front, whole epochs included.
        size: Rows of one epoch.
    """

    in_band: bool = False
    init_step: int = 0
    size: int = 1


_OTHERS = Pipeline()

PIPELINE: ContextVar[Pipeline] = ContextVar("ms_prefstream_pipeline", default=_OTHERS)
"""Pipelines that are built by others, such as a zip of our dataset with another one, keep the default."""
