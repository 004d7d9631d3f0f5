"""The reward layout `reward_token`: the model's score is read at the last token, which the task appended.

A pair (5, 6, 9) and (5, 9) with reward token 9 and a pad id of 0 at width 4:

    input_ids 5 6 9 0 / 5 9 0 0   attention_mask 1 1 1 0 / 1 1 0 0   labels -100 -100 0 -100 / -100 1 -100 -100
"""

from __future__ import annotations

from collections.abc import Sequence as Many

import numpy as np

from ms_prefstream.batch.layouts.arrays import IGNORE, inside, lengths_of, pad_ids, side
from ms_prefstream.batch.layouts.base import Layout, refuse_shifted
from ms_prefstream.sample import Batch, Sample


def reward_token() -> Layout:
    """The layout `reward_token`: (2B, L) int32 columns, chosen rows first.

    Labels are 0 on a chosen and 1 on a rejected row at its last token, -100 elsewhere.
    """
    return Layout("reward_token", ("input_ids", "attention_mask", "labels"), _build, sides=2)


def _build(samples: Many[Sample], width: int, pad_id: int, shifted: bool = False) -> Batch:
    refuse_shifted("reward_token", shifted)
    rows = [sequence.ids for at in (0, 1) for sequence in side(samples, at)]
    lengths = lengths_of(rows, width)
    labels = np.full((len(rows), width), IGNORE, dtype=np.int32)  # (2B, L)
    labels[np.arange(len(rows)), lengths - 1] = np.repeat((0, 1), len(samples))
    return {
        "input_ids": pad_ids(rows, width, pad_id),
        "attention_mask": inside(lengths, width).astype(np.int32),
        "labels": labels,
    }
