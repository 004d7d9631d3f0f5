"""The layout of process rewards: labels or values at the tokens that end the steps.

A sample (5, 6, 7, 8, 9) whose steps end at 7 and 9 with the labels 1 and 0, a pad id of 0 and width 6:

    input_ids 5 6 7 8 9 0   attention_mask 1 1 1 1 1 0   labels -100 -100 1 -100 0 -100
    with values             step_values 0 0 1.0 0 0.0 0   step_mask 0 0 1 0 1 0   in place of labels
"""

from __future__ import annotations

from functools import partial

import numpy as np

from ms_prefstream.batch.layouts.arrays import IGNORE, inside, internal_error, pad_sides
from ms_prefstream.batch.layouts.base import Layout, refuse_shifted
from ms_prefstream.sample import Batch, Block


def process_reward(values: bool = False) -> Layout:
    """Returns the layout `process_reward`: (B, L) int32 columns, step_values float32.

    Args:
        values: Whether there are step_values and step_mask instead of labels.
    """
    columns = ("step_values", "step_mask") if values else ("labels",)
    return Layout("process_reward", ("input_ids", "attention_mask", *columns), partial(_build, values=values))


def _build(samples: Block, width: int, pad_id: int, shifted: bool = False, *, values: bool) -> Batch:
    refuse_shifted("process_reward", shifted)
    ids, lengths = pad_sides(samples, width, pad_id, 0)
    scores = np.full(ids.shape, 0 if values else IGNORE, np.float32)
    mask = np.zeros(ids.shape, np.int32)
    for row in range(len(samples)):
        spans, found = samples.spans_of(row, 0), samples.scores.get(row, ())
        if len(spans) != len(found) or any(end > lengths[row] for _, end in spans):
            raise internal_error(f"a sample of {lengths[row]} tokens has the steps {spans} and the scores {found}")
        at = [begin for begin, _ in spans]
        scores[row, at], mask[row, at] = found, 1
    batch = {"input_ids": ids, "attention_mask": inside(lengths, width).astype(np.int32)}
    return batch | ({"step_values": scores, "step_mask": mask} if values else {"labels": scores.astype(np.int32)})
