"""The DPO layout `paired`: each side in columns of its own, as mindrlhf's DPODataset names them.

A prompt (5, 6), chosen (7, 8) and a pad id of 0 at width 5, chosen side:

    unshifted  input_ids 5 6 7 8 0   labels 5 6 7 8 0   attention_mask 1 1 1 1 0   loss_mask 0 0 1 1 0
    shifted    input_ids 5 6 7 8 0   labels 6 7 8 0 0   attention_mask 1 1 1 1 0   loss_mask 0 1 1 0 0
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.batch.layouts.arrays import inside, internal_error, lengths_of, pad_ids, shift_left, side, span_mask
from ms_prefstream.batch.layouts.base import Layout
from ms_prefstream.sample import Batch, Sample

_SIDES = ("chosen", "rejected")
_COLUMNS = ("input_ids", "labels", "attention_mask", "loss_mask")


def paired(with_ref_logps: bool = False) -> Layout:
    """The layout `paired`.

    Args:
        with_ref_logps: Whether each side ends with its reference log-probabilities, (B, 1) float32. Every sample must
            then carry them; without it none may, so that they are never left out by mistake.

    Returns:
        The layout; every other column is (B, L) int32. Labels equal the ids everywhere, only the loss mask selects.
    """
    columns = (*_COLUMNS, "ref_logps") if with_ref_logps else _COLUMNS
    names = tuple(f"{name}_{column}" for name in _SIDES for column in columns)
    return Layout("paired", names, partial(_build, with_ref_logps=with_ref_logps))


def _build(
    samples: Many[Sample], width: int, pad_id: int, shifted: bool = False, *, with_ref_logps: bool = False
) -> Batch:
    batch: Batch = {}
    for at, name in enumerate(_SIDES):
        batch |= _one_side(samples, at, f"{name}_", width, pad_id, shifted)
        if with_ref_logps:
            batch[f"{name}_ref_logps"] = _ref_logps(samples, at)
    if not with_ref_logps and any(sample.ref_logps is not None for sample in samples):
        raise internal_error("samples carry reference log-probabilities that the layout 'paired' was not told about")
    return batch


def _one_side(samples: Many[Sample], at: int, prefix: str, width: int, pad_id: int, shifted: bool) -> Batch:
    sequences = side(samples, at)
    rows = [sequence.ids for sequence in sequences]
    lengths = lengths_of(rows, width)
    ids = pad_ids(rows, width, pad_id)  # (B, L)
    return {
        f"{prefix}input_ids": ids,
        f"{prefix}labels": shift_left(ids, pad_id) if shifted else ids.copy(),
        f"{prefix}attention_mask": inside(lengths, width).astype(np.int32),
        f"{prefix}loss_mask": span_mask(sequences, lengths, width, shifted).astype(np.int32),
    }


def _ref_logps(samples: Many[Sample], at: int) -> NDArray[np.float32]:
    """(B, 1) float32."""
    values = [sample.ref_logps[at] for sample in samples if sample.ref_logps is not None]
    if len(values) != len(samples):
        raise internal_error(
            f"{len(samples) - len(values)} of {len(samples)} samples have no reference log-probabilities, but the "
            "batch has a column for them"
        )
    return np.array(values, dtype=np.float32)[:, None].copy()
