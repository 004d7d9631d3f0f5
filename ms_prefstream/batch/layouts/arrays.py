"""Building blocks of every layout: padded ids, and masks that come from lengths and spans, never from ids.

Every function returns new C-contiguous memory, because MindSpore keeps the buffers it receives.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.sample import Ids, Sample, Sequence

Lengths: TypeAlias = NDArray[np.int32]
_Value = TypeVar("_Value")

IGNORE = -100
"""The label of a column that the loss ignores."""


def sequences_of(samples: Many[Sample], *sides: int) -> list[Sequence]:
    """Returns the sequences of these sides, side after side: 0 is the chosen side (or the only one), 1 the rejected."""
    try:
        return [sample.sequences[side] for side in sides for sample in samples]
    except IndexError:
        raise internal_error(f"a sample of the batch has no sequence number {max(sides)}; a pair has two") from None


def pad(rows: Many[Ids], width: int, fill: int) -> tuple[NDArray[np.int32], Lengths]:
    """Pads R rows of 1 to `width` tokens on the right: (R, width) int32, and the tokens of each row, (R,) int32."""
    lengths = np.array([len(row) for row in rows], dtype=np.int32)
    if not len(lengths) or lengths.max() > width or lengths.min() < 1:
        raise internal_error(f"the sequences have {lengths} tokens, but an array of {width} columns holds 1 to {width}")
    padded = np.full((len(rows), width), fill, dtype=np.int32)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded, lengths


def inside(lengths: Lengths, width: int) -> NDArray[np.bool_]:
    """Returns (R, width) bool: True on each row's own tokens, False on its padding."""
    return np.arange(width, dtype=np.int32) < lengths[:, None]


def span_mask(sequences: Many[Sequence], lengths: Lengths, width: int, shifted: bool) -> NDArray[np.bool_]:
    """Returns the loss mask: True exactly on the spans.

    A span (3, 5) gives 0 0 0 1 1 0 unshifted and 0 0 1 1 0 0 shifted: column t then stands for the token at t + 1.

    Shifted spans must not begin at token 0: no column predicts that token, and dropping it would change the loss's
    denominator. Tasks never make such a span. Only sequences with more than one span cost a Python loop.

    Returns:
        (R, width) bool, whose sum does not depend on `shifted`.
    """
    nothing = ((1, 1),)  # an empty span that survives the shift
    spans = [sequence.spans or nothing for sequence in sequences]
    # (R, 3): the first span, and the end of the last; positions fit int32 as lengths do
    limits = np.array([(row[0][0], row[0][1], row[-1][1]) for row in spans], dtype=np.int32)
    first, end, last = limits[:, :1], limits[:, 1:2], limits[:, 2]
    if (last > lengths).any():
        row = int(np.argmax(last > lengths))
        raise internal_error(f"a span ends at token {last[row]} of a sequence of {lengths[row]} tokens")
    if shifted:
        if not first.all():
            raise internal_error("a span begins at token 0, which shifted labels cannot predict")
        limits -= 1
    columns = np.arange(width, dtype=np.int32)
    mask = columns >= first
    mask &= columns < end
    for row, several in enumerate(spans):
        for start, stop in several[1:]:
            mask[row, start - shifted : stop - shifted] = True
    return mask


def shift_left(ids: NDArray[np.int32], fill: int) -> NDArray[np.int32]:
    """Gives each column its right neighbour's value: 5 6 7 -> 6 7 fill. (R, L) int32 both."""
    moved = np.empty_like(ids)
    moved[:, :-1] = ids[:, 1:]
    moved[:, -1] = fill
    return moved


def only_where(mask: NDArray[np.bool_], values: NDArray[np.int32]) -> NDArray[np.int32]:
    """Returns the values under the mask, `IGNORE` elsewhere. (R, L) int32."""
    kept = np.full(values.shape, IGNORE, dtype=np.int32)
    np.copyto(kept, values, where=mask)
    return kept


def required(values: Many[_Value | None], name: str) -> list[_Value]:
    """Returns one value for each sample; a missing one is an internal error, since the batch has a column for it."""
    found = [value for value in values if value is not None]
    if len(found) != len(values):
        raise internal_error(f"{len(values) - len(found)} of {len(values)} samples have no {name}")
    return found


def internal_error(problem: str) -> RuntimeError:
    """Returns an error that no option and no row can cause; `problem` says what was found and what was expected."""
    return RuntimeError(
        f"ms_prefstream, internal error while building a batch: {problem}. "
        "Rows and options are checked before this point, so please report it together with the row."
    )
