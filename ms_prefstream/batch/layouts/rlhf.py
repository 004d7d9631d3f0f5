"""The RLHF layout: prompts to start rollouts from, and prompt + response as pretraining text.

A prompt (5, 6) with response (7, 8), a pad id of 0, max_prompt_length 3 and width 5:

    prompt_ids 5 6 0   pretrain_ids 5 6 7 8 0   loss_mask 0 0 1 1 0
"""

from __future__ import annotations

from functools import partial

import numpy as np

from ms_prefstream.batch.layouts.arrays import internal_error, pad, pad_sides, span_mask
from ms_prefstream.batch.layouts.base import Layout, refuse_shifted
from ms_prefstream.sample import Batch, Block


def rlhf(max_prompt_length: int) -> Layout:
    """Returns the layout `rlhf`, all int32: prompt_ids (B, max_prompt_length), pretrain_ids and loss_mask (B, L).

    Args:
        max_prompt_length: Columns of prompt_ids in every batch; the width of a batch acts on the other two.
    """
    columns = ("prompt_ids", "pretrain_ids", "loss_mask")
    return Layout("rlhf", columns, partial(_build, max_prompt_length=max_prompt_length))


def _build(samples: Block, width: int, pad_id: int, shifted: bool = False, *, max_prompt_length: int) -> Batch:
    refuse_shifted("rlhf", shifted)
    if samples.prompts is None:
        raise internal_error(f"{len(samples)} of {len(samples)} samples have no prompt")
    begins, counts = samples.prompts.T
    prompts, _ = pad(samples.ids, begins, counts, max_prompt_length, pad_id)
    ids, lengths = pad_sides(samples, width, pad_id, 0)  # (B, L), (B,)
    return {
        "prompt_ids": prompts,
        "pretrain_ids": ids,
        "loss_mask": span_mask(samples, lengths, width, False, 0).astype(np.int32),
    }
