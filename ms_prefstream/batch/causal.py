"""Dense attention masks for models that cannot read packed rows otherwise; made on request, as they are large."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import OptionError


def causal_mask(batch: Mapping[str, Any] | Any, *, visible: int = 0, heads: bool = True) -> NDArray[np.uint8]:
    """The attention mask of packed rows: block-diagonal, and causal within each block.

        segment_ids 1 1 2 0      0 1 1 1      a token sees itself and what stands before it in its own sequence;
                                 0 0 1 1      the padding is a block of its own, so that no line is masked as a whole
                                 1 1 0 1      (its softmax would not be a number)
                                 1 1 1 0

    Args:
        batch: A packed batch, or its `segment_ids` alone, (B, L): an array or a tensor.
        visible: The value of a column that a token attends to: 0 (masked columns are 1, as MindFormers has it) or 1.
        heads: Whether there is an axis of size 1 for the attention heads.

    Returns:
        (B, 1, L, L) uint8, or (B, L, L) without `heads`: B * L * L bytes.

    Raises:
        OptionError: The batch is not packed, or an option is not allowed.
    """
    if isinstance(visible, bool) or visible not in (0, 1):
        raise OptionError(f"causal_mask: visible is {visible!r}; expected 0 (masked is 1) or 1 (masked is 0).")
    if isinstance(batch, Mapping):
        if "segment_ids" not in batch:
            found = ", ".join(map(str, batch)) or "none"
            raise OptionError(
                f"causal_mask: the batch has no segment_ids; found columns: {found}. Only batches of mps.Pack have "
                "them; padded batches bring an attention mask or loss mask of their own."
            )
        batch = batch["segment_ids"]
    segments = np.asarray(batch.asnumpy() if hasattr(batch, "asnumpy") else batch)
    if segments.ndim != 2 or segments.dtype.kind not in "iu" or not segments.size:
        raise OptionError(
            f"causal_mask: segment_ids are {segments.shape} {segments.dtype}; expected whole numbers, (rows, columns)."
        )
    return _blocks(segments, np.uint8(visible), heads)


def _blocks(segments: NDArray[Any], visible: np.uint8, heads: bool) -> NDArray[np.uint8]:
    rows, width = segments.shape
    mask = np.full((rows, width, width), 1 - visible, np.uint8)
    changes = segments[:, 1:] != segments[:, :-1]
    longest = np.tri(width, dtype=np.bool_)
    for target, change in zip(mask, changes, strict=True):
        borders = [0, *(np.flatnonzero(change) + 1).tolist(), width]
        for begin, end in pairwise(borders):
            np.copyto(target[begin:end, begin:end], visible, where=longest[: end - begin, : end - begin])
    return mask[:, None] if heads else mask
