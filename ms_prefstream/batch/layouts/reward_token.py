"""The reward layout `reward_token`: the model's score is read at the last token, which the task appended.

A pair (5, 6, 9) and (5, 9) with reward token 9 and a pad id of 0 at width 4:

    input_ids 5 6 9 0 / 5 9 0 0   attention_mask 1 1 1 0 / 1 1 0 0   labels -100 -100 0 -100 / -100 1 -100 -100
"""

from __future__ import annotations

import numpy as np

from ms_prefstream.batch.layouts.arrays import IGNORE, inside, pad_sides
from ms_prefstream.batch.layouts.base import Layout, refuse_shifted
from ms_prefstream.sample import Batch, Block


def reward_token() -> Layout:
    """Returns the layout `reward_token`: (2B, L) int32 columns, chosen rows first.

    Labels are 0 on a chosen and 1 on a rejected row at its last token, -100 elsewhere.
    """
    return Layout("reward_token", ("input_ids", "attention_mask", "labels"), _build, sides=2)


def _build(samples: Block, width: int, pad_id: int, shifted: bool = False) -> Batch:
    refuse_shifted("reward_token", shifted)
    ids, lengths = pad_sides(samples, width, pad_id, 0, 1)  # (2B, L), (2B,)
    labels = np.full(ids.shape, IGNORE, dtype=np.int32)
    labels[np.arange(len(ids)), lengths - 1] = np.repeat((0, 1), len(samples))
    return {
        "input_ids": ids,
        "attention_mask": inside(lengths, width).astype(np.int32),
        "labels": labels,
    }
