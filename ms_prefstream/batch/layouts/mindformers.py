"""The reward layout `mindformers`: the batch that MindFormers' RewardModelDataset gives to CompareLoss.

A pair (5, 6, 7) and (5, 8) with a pad id of 0 at width 4:

    input_ids 5 6 7 0 / 5 8 0 0   position_id 0 1 2 3 (both)   attention_mask 1 1 1 0 / 1 1 0 0
    loss_mask 0 1 1 0             end_ind 3 2
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.batch.layouts.arrays import Lengths, inside, internal_error, pad_sides
from ms_prefstream.batch.layouts.base import Layout, refuse_shifted
from ms_prefstream.sample import Batch, Block


def mindformers() -> Layout:
    """Returns the layout `mindformers`, chosen rows first.

    input_ids and position_id are (2B, L) int32, attention_mask (2B, L) float16, loss_mask (B, L) float16: 1 from the
    first differing token of the pair to the end of its longer side. end_ind (2B,) int32 is the number of tokens of the
    row, so its last token is at end_ind - 1.
    """
    columns = ("input_ids", "position_id", "attention_mask", "loss_mask", "end_ind")
    return Layout("mindformers", columns, _build, sides=2)


def _build(samples: Block, width: int, pad_id: int, shifted: bool = False) -> Batch:
    refuse_shifted("mindformers", shifted)
    ids, lengths = pad_sides(samples, width, pad_id, 0, 1)  # (2B, L), (2B,)
    tokens = inside(lengths, width)
    positions = np.empty(ids.shape, dtype=np.int32)
    positions[:] = np.arange(width, dtype=np.int32)
    return {
        "input_ids": ids,
        "position_id": positions,
        "attention_mask": _half_precision(tokens),
        "loss_mask": _half_precision(_after_divergence(ids, tokens, lengths)),
        "end_ind": lengths,
    }


def _after_divergence(ids: NDArray[np.int32], tokens: NDArray[np.bool_], lengths: Lengths) -> NDArray[np.bool_]:
    """Returns (B, L) bool: True from the first differing token of each pair to the end of its longer side.

    Where one side is a prefix of the other, the first token after the shorter side differs, even if it has the id that
    the shorter side is padded with. `ids` and `tokens`, which is False on padding, are (2B, L); `lengths` is (2B,).
    """
    pairs = len(ids) // 2
    differs = ids[:pairs] != ids[pairs:]
    differs |= tokens[:pairs] != tokens[pairs:]
    first = differs.argmax(axis=1)  # (B,)
    if not differs[np.arange(pairs), first].all():
        raise internal_error("both sides of a pair have the same tokens; such a row is dropped before it is batched")
    ends = np.maximum(lengths[:pairs], lengths[pairs:])
    columns = np.arange(ids.shape[1], dtype=np.int32)
    mask: NDArray[np.bool_] = columns >= first.astype(np.int32)[:, None]
    mask &= columns < ends[:, None]
    return mask


def _half_precision(mask: NDArray[np.bool_]) -> NDArray[np.float16]:
    """Returns the mask as float16 zeros and ones; several times faster than a cast, which converts value by value."""
    ones = np.zeros(mask.shape, dtype=np.float16)
    np.copyto(ones, np.float16(1), where=mask)
    return ones
