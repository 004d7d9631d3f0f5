"""The DPO layout `paired`: separate columns for each side, as mindrlhf's DPODataset names them.

A prompt (5, 6), chosen (7, 8) and a pad id of 0 at width 5, chosen side:

    unshifted  input_ids 5 6 7 8 0   labels 5 6 7 8 0   attention_mask 1 1 1 1 0   loss_mask 0 0 1 1 0
    shifted    input_ids 5 6 7 8 0   labels 6 7 8 0 0   attention_mask 1 1 1 1 0   loss_mask 0 1 1 0 0
"""

from __future__ import annotations

from functools import partial

import numpy as np

from ms_prefstream.batch.layouts.arrays import (
    inside,
    internal_error,
    pad_sides,
    required,
    shift_left,
    span_mask,
)
from ms_prefstream.batch.layouts.base import Layout
from ms_prefstream.sample import Batch, Block

_SIDES = ("chosen", "rejected")
_COLUMNS = ("input_ids", "labels", "attention_mask", "loss_mask")


def paired(with_ref_logps: bool = False) -> Layout:
    """Returns the layout `paired`.

    Args:
        with_ref_logps: Whether each side ends with its reference log-probabilities, (B, 1) float32. Every sample must
            then have them; without it none may, so that they are never left out by mistake.

    Returns:
        The layout; every other column is (B, L) int32. Labels equal the ids everywhere; only the loss mask selects.
    """
    columns = (*_COLUMNS, "ref_logps") if with_ref_logps else _COLUMNS
    names = tuple(f"{name}_{column}" for name in _SIDES for column in columns)
    return Layout("paired", names, partial(_build, with_ref_logps=with_ref_logps))


def _build(samples: Block, width: int, pad_id: int, shifted: bool = False, *, with_ref_logps: bool = False) -> Batch:
    if not with_ref_logps and samples.ref_logps is not None:
        raise internal_error("samples have reference log-probabilities, for which this layout 'paired' has no column")
    ids, lengths = pad_sides(samples, width, pad_id, 0, 1)  # (2B, L), (2B,): made together, then copied by side
    labels = shift_left(ids, pad_id) if shifted else ids
    tokens, loss = inside(lengths, width), span_mask(samples, lengths, width, shifted, 0, 1)
    batch: Batch = {}
    rows = len(samples)
    for at, name in enumerate(_SIDES):
        side = slice(at * rows, (at + 1) * rows)
        batch[f"{name}_input_ids"] = ids[side].copy()
        batch[f"{name}_labels"] = labels[side].copy()
        batch[f"{name}_attention_mask"] = tokens[side].astype(np.int32)
        batch[f"{name}_loss_mask"] = loss[side].astype(np.int32)
        if with_ref_logps:
            logps = required(samples.ref_logps, rows, "reference log-probabilities")
            batch[f"{name}_ref_logps"] = np.ascontiguousarray(logps[:, at : at + 1])
    return batch
