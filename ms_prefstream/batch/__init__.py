"""Samples to padded arrays: which widths a batch may have, and which columns it holds.

To add a layout, write one file in `layouts/` with a function that returns a `Layout` (see `layouts/paired.py`) and add
a line to `layouts/registry.py`. To add a batching rule, write one file with a class that keeps `BatchingRule` (see
`rule.py`) and add a line to `BATCHING_RULES`.
"""

from typing import Any

from ms_prefstream.batch.layouts.base import Layout
from ms_prefstream.batch.layouts.packed import PackedLayout, causal_mask
from ms_prefstream.batch.layouts.registry import LAYOUT_NAMES, make_layout
from ms_prefstream.batch.pack import Pack
from ms_prefstream.batch.padding import Bucket, Pad
from ms_prefstream.batch.rule import BatchingRule
from ms_prefstream.sample import Batch

BATCHING_RULES: dict[str, type[Any]] = {"Pad": Pad, "Bucket": Bucket, "Pack": Pack}
"""Name in YAML files -> the rule."""

__all__ = [
    "BATCHING_RULES",
    "LAYOUT_NAMES",
    "Batch",
    "BatchingRule",
    "Bucket",
    "Layout",
    "Pack",
    "PackedLayout",
    "Pad",
    "causal_mask",
    "make_layout",
]
