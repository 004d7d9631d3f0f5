"""The layout of KTO: rows with a mark, and each prompt with the response of another row.

Samples (5, 6 | 7, 8), desirable, and (9 | 4), not desirable, a pad id of 0 and width 5:

    input_ids    5 6 7 8 0 / 9 4 0 0 0   attention_mask    1 1 1 1 0 / 1 1 0 0 0   desirable 1 0
    labels       _ _ 7 8 _ / _ 4 _ _ _   loss_mask         0 0 1 1 0 / 0 1 0 0 0   (_ stands for -100)
    kl_input_ids 5 6 4 0 0 / 9 7 8 0 0   kl_attention_mask 1 1 1 0 0 / 1 1 1 0 0
    kl_labels    _ _ 4 _ _ / _ 7 8 _ _   kl_loss_mask      0 0 1 0 0 / 0 1 1 0 0

The response of a sample begins with its first span. Prompt and response are put together as ids: nothing is encoded
again, so that rows of text and rows of a cache give the same arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.batch.layouts.arrays import (
    column,
    inside,
    internal_error,
    only_where,
    pad_sides,
    required,
    span_mask,
)
from ms_prefstream.batch.layouts.base import Layout, refuse_shifted
from ms_prefstream.sample import Batch, Block, runs

Joined: TypeAlias = Callable[[Block], Block]
"""`with_partners` with its options."""

_COLUMNS = ("input_ids", "labels", "attention_mask", "loss_mask")
_LOGPS = "ref_logps"


def kto(with_ref_logps: bool = False, kl_length: int | None = None, kl_cuts_prompts: bool = True) -> Layout:
    """Returns the layout `kto`: (B, L) int32 columns; desirable (B,) int32; labels are -100 where the mask is 0.

    Args:
        with_ref_logps: Whether reference log-probabilities, (B, 1) float32, follow `desirable`.
        kl_length: Tokens of a row of the columns `kl_*`, at most; None for no such columns.
        kl_cuts_prompts: Whether their prompts are cut on the left before their responses are cut on the right.
    """
    columns = (*_COLUMNS, "desirable", *((_LOGPS,) if with_ref_logps else ()))
    if kl_length is None:
        return Layout("kto", columns, partial(_build, with_ref_logps=with_ref_logps))
    joined = partial(with_partners, length=kl_length, cuts_prompts=kl_cuts_prompts)
    build = partial(_build_with_kl, with_ref_logps=with_ref_logps, joined=joined)
    columns += tuple(f"kl_{name}" for name in _COLUMNS)
    return Layout("kto", columns, build, longest=partial(_longest, joined=joined), joins_up_to=kl_length)


def _build(samples: Block, width: int, pad_id: int, shifted: bool = False, *, with_ref_logps: bool) -> Batch:
    refuse_shifted("kto", shifted)
    if not with_ref_logps and samples.ref_logps is not None:
        raise internal_error("samples have reference log-probabilities, for which this layout 'kto' has no column")
    batch = _columns(samples, width, pad_id)
    batch["desirable"] = column(samples, "desirable", "int32")
    if with_ref_logps:
        batch[_LOGPS] = required(samples.ref_logps, len(samples), "reference log-probabilities")
    return batch


def _build_with_kl(
    samples: Block, width: int, pad_id: int, shifted: bool = False, *, with_ref_logps: bool, joined: Joined
) -> Batch:
    others = _columns(joined(samples), width, pad_id)
    batch = _build(samples, width, pad_id, shifted, with_ref_logps=with_ref_logps)
    return batch | {f"kl_{name}": array for name, array in others.items()}


def _columns(samples: Block, width: int, pad_id: int) -> Batch:
    ids, lengths = pad_sides(samples, width, pad_id, 0)
    mask = span_mask(samples, lengths, width, False, 0)
    arrays = (ids, only_where(mask, ids), inside(lengths, width).astype(np.int32), mask.astype(np.int32))
    return dict(zip(_COLUMNS, arrays, strict=True))


def _longest(samples: Block, joined: Joined) -> int:
    return int(max(samples.lengths.max(), joined(samples).lengths.max()))


def partners(samples: Block) -> NDArray[np.int64]:
    """Returns the partner of each of B rows, (B,) int64: the next one, cyclically, whose prompt has other ids.

    It is simply the next one where all prompts are the same.
    """
    count = len(samples)
    numbers: dict[bytes, int] = {}
    prompts = []  # the prompt of each row as a number
    for begin, size in zip(samples.begins[:, 0].tolist(), samples.spans[:, 0, 0].tolist(), strict=True):
        prompts.append(numbers.setdefault(samples.ids[begin : begin + size].tobytes(), len(numbers)))
    found = (np.arange(count) + 1) % count
    if len(numbers) > 1:
        for row in [*range(count)[::-1]] * 2:  # twice, as rows at the end may have their partner at the beginning
            following = (row + 1) % count
            found[row] = following if prompts[following] != prompts[row] else found[following]
    return found


def with_partners(samples: Block, length: int, cuts_prompts: bool) -> Block:
    """Returns the prompt of each row with the response of its partner, cut to `length` tokens."""
    order = partners(samples)
    sizes = samples.spans[:, 0, 0]  # of the prompts
    rests = (samples.lengths[:, 0] - sizes)[order]  # of the responses, with what follows them
    beyond = np.maximum(sizes + rests - length, 0)
    cut = np.minimum(beyond, sizes) if cuts_prompts else np.zeros_like(beyond)
    kept, rests = sizes - cut, rests - (beyond - cut)
    begins = np.stack([samples.begins[:, 0] + cut, (samples.begins[:, 0] + sizes)[order]], axis=1)
    lengths = kept + rests
    ends = np.cumsum(lengths)
    moved = kept - sizes[order]  # from the place in the partner to the place here
    spans = samples.spans[order, 0] + moved[:, None]
    joined = Block.empty(len(samples), 1)
    joined.ids = samples.ids[runs(begins.reshape(-1), np.stack([kept, rests], axis=1).reshape(-1))]
    joined.begins, joined.lengths = (ends - lengths)[:, None], lengths[:, None]
    joined.spans = np.minimum(spans, lengths[:, None])[:, None]
    for row, partner in enumerate(order.tolist() if samples.more else ()):
        if (partner, 0) in samples.more:
            shift, most = int(moved[row]), int(lengths[row])
            several = [(a + shift, min(b + shift, most)) for a, b in samples.more[partner, 0] if a + shift < most]
            joined.set_spans(row, 0, several)
    return joined
