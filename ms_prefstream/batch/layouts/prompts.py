"""The layout of prompts alone, which rollouts start from.

Prompts (5, 6) and (7, 8, 9), a pad id of 0 and width 4:

    right  prompt_ids 5 6 0 0 / 7 8 9 0   prompt_attention_mask 1 1 0 0 / 1 1 1 0   prompt_length 2 3
    left   prompt_ids 0 0 5 6 / 0 7 8 9   prompt_attention_mask 0 0 1 1 / 0 1 1 1   prompt_length 2 3

With repeat=2 the rows of a batch are those of the first prompt, twice, then those of the second.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from ms_prefstream.batch.layouts.arrays import inside, pad_sides
from ms_prefstream.batch.layouts.base import Layout, refuse_shifted
from ms_prefstream.sample import Batch, Block


def prompts(padding_side: str = "right", repeat: int = 1) -> Layout:
    """Returns the layout `prompts`, all int32: (B, P), (B, P) and (B,), each row `repeat` times in a batch."""
    columns = ("prompt_ids", "prompt_attention_mask", "prompt_length")
    return Layout("prompts", columns, partial(_build, left=padding_side == "left"), repeat=repeat)


def _build(samples: Block, width: int, pad_id: int, shifted: bool = False, *, left: bool) -> Batch:
    refuse_shifted("prompts", shifted)
    ids, lengths = pad_sides(samples, width, pad_id, 0)
    mask = inside(lengths, width)
    if left:
        columns = (np.arange(width) + lengths[:, None]) % width  # (B, P), column of the right-padded row
        ids, mask = np.take_along_axis(ids, columns, axis=1), np.take_along_axis(mask, columns, axis=1)
    return {"prompt_ids": ids, "prompt_attention_mask": mask.astype(np.int32), "prompt_length": lengths}
