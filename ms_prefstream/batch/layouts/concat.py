"""The DPO layout `concat`: chosen rows first, then rejected rows, so that one forward pass takes both.

A prompt (5, 6), chosen (7, 8) and a pad id of 0 at width 5, the chosen row:

    unshifted  input_ids 5 6 7 8 0   labels -100 -100    7    8 -100   attention_mask 1 1 1 1 0   loss_mask 0 0 1 1 0
    shifted    input_ids 5 6 7 8 0   labels -100    7    8 -100 -100   attention_mask 1 1 1 1 0   loss_mask 0 1 1 0 0
"""

from __future__ import annotations

import numpy as np

from ms_prefstream.batch.layouts.arrays import IGNORE, inside, only_where, pad_sides, shift_left, span_mask
from ms_prefstream.batch.layouts.base import Layout
from ms_prefstream.sample import Batch, Block


def concat() -> Layout:
    """Returns the layout `concat`: (2B, L) int32 columns; labels are -100 wherever the loss mask is 0."""
    return Layout("concat", ("input_ids", "labels", "attention_mask", "loss_mask"), _build, sides=2)


def _build(samples: Block, width: int, pad_id: int, shifted: bool = False) -> Batch:
    ids, lengths = pad_sides(samples, width, pad_id, 0, 1)  # (2B, L), (2B,)
    mask = span_mask(samples, lengths, width, shifted, 0, 1)
    return {
        "input_ids": ids,
        "labels": only_where(mask, shift_left(ids, IGNORE) if shifted else ids),
        "attention_mask": inside(lengths, width).astype(np.int32),
        "loss_mask": mask.astype(np.int32),
    }
