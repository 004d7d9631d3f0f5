"""The arrays every layout is made of: padded ids, and masks that come from lengths and spans, never from ids.

Every function returns memory of its own, C-contiguous: MindSpore keeps the buffers it is given.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.sample import Ids, Sample, Sequence


def internal_error(problem: str) -> RuntimeError:
    """An error that no option and no row can cause, as a sentence.

    Args:
        problem: What was found and what was expected, as a sentence without its full stop.

    Returns:
        The error, for the caller to raise.
    """
    return RuntimeError(
        f"ms_prefstream, internal error while building a batch: {problem}. "
        "Rows and options are checked before this point, so please report it together with the row."
    )


"""Column name -> array, in the order of the columns."""
Lengths: TypeAlias = NDArray[np.int32]

IGNORE = -100
"""The label of a column that no loss looks at."""


def side(samples: Many[Sample], at: int) -> list[Sequence]:
    """One sequence of each sample: 0 the chosen side (or the only one), 1 the rejected side."""
    try:
        return [sample.sequences[at] for sample in samples]
    except IndexError:
        raise internal_error(f"a sample of the batch has no sequence number {at}; a pair has two") from None


def lengths_of(rows: Many[Ids], width: int) -> Lengths:
    """How many tokens each row has.

    Args:
        rows: R arrays, (n,) each.
        width: Columns there are; a row that is longer, or empty, is an error.

    Returns:
        (R,) int32.
    """
    lengths = np.array([len(row) for row in rows], dtype=np.int32)
    if not len(lengths):
        raise internal_error("a batch without samples was asked for")
    if lengths.max() > width or lengths.min() < 1:
        raise internal_error(
            f"the sequences have {lengths.min()} to {lengths.max()} tokens, but an array of {width} columns "
            f"holds 1 to {width}"
        )
    return lengths


def pad_ids(rows: Many[Ids], width: int, fill: int) -> NDArray[np.int32]:
    """Rows of different lengths as one array, filled up on the right.

    Args:
        rows: R arrays, (n,) int32 each, n <= width.
        width: Columns of the result.
        fill: The value behind each row's end.

    Returns:
        (R, width) int32.
    """
    padded = np.full((len(rows), width), fill, dtype=np.int32)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded


def inside(lengths: Lengths, width: int) -> NDArray[np.bool_]:
    """(R, width) bool: True on each row's own tokens, False on its padding."""
    return np.arange(width, dtype=np.int32) < lengths[:, None]


def half_precision(mask: NDArray[np.bool_]) -> NDArray[np.float16]:
    """The mask as float16 zeros and ones; several times faster than a cast, which converts value by value."""
    ones = np.zeros(mask.shape, dtype=np.float16)
    np.copyto(ones, np.float16(1), where=mask)
    return ones


def span_mask(sequences: Many[Sequence], lengths: Lengths, width: int, shifted: bool) -> NDArray[np.bool_]:
    """Where the loss looks: True exactly on the spans.

    A span (3, 5) gives 0 0 0 1 1 0 unshifted and 0 0 1 1 0 0 shifted: column t then stands for the token at t + 1.

    Args:
        sequences: R sequences; those with more than one span cost a loop over their further spans.
        lengths: (R,) int32, tokens of each.
        width: Columns of the result, at least the longest length.
        shifted: Whether every span moves one column to the left. A span cannot begin at token 0 then: no column
            predicts that token, and dropping it would change what the loss is divided by. Tasks never make one, as
            a BOS, a header or a prompt comes first; it is an error rather than a silent loss of a token.

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
    """Each column takes its right neighbour's value: 5 6 7 -> 6 7 fill. (R, L) int32 both."""
    moved = np.empty_like(ids)
    moved[:, :-1] = ids[:, 1:]
    moved[:, -1] = fill
    return moved


def only_where(mask: NDArray[np.bool_], values: NDArray[np.int32]) -> NDArray[np.int32]:
    """The values under the mask, `IGNORE` elsewhere. (R, L) int32."""
    kept = np.full(values.shape, IGNORE, dtype=np.int32)
    np.copyto(kept, values, where=mask)
    return kept
