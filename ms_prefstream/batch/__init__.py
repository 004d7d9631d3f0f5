"""Samples to padded arrays: which widths a batch may have, and which columns it holds.

To add a layout: write one file with a function that returns a `Layout` (see `paired.py`), and add its line to the
registry in `layouts.py`. To add a batching rule: one file with a frozen dataclass that has `batch_size`, `widths` and
`width_for` (see `bucket.py`).
"""

from ms_prefstream.batch.layouts.base import Layout
from ms_prefstream.batch.layouts.packed import PackedLayout, causal_mask
from ms_prefstream.batch.layouts.registry import LAYOUT_NAMES, make_layout
from ms_prefstream.batch.pack import Pack
from ms_prefstream.batch.padding import Bucket, Pad
from ms_prefstream.sample import Batch

__all__ = ["LAYOUT_NAMES", "Batch", "Bucket", "Layout", "Pack", "PackedLayout", "Pad", "causal_mask", "make_layout"]
