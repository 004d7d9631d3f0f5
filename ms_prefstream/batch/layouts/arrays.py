"""Building blocks of every layout: padded ids, and masks that come from lengths and spans, never from ids.

Every function returns new C-contiguous memory, because MindSpore keeps the buffers it receives.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.sample import TEXT, Block, Ids

Lengths: TypeAlias = NDArray[np.int32]

IGNORE = -100
"""The label of a column that the loss ignores."""


def pad(
    ids: Ids, begins: NDArray[np.int64], lengths: NDArray[np.int64], width: int, fill: int
) -> tuple[NDArray[np.int32], Lengths]:
    """Pads R rows of 1 to `width` tokens on the right: (R, width) int32, and the tokens of each row, (R,) int32.

    Args:
        ids: The tokens of all rows, in any order.
        begins: (R,), where each row begins in them.
        lengths: (R,), how many tokens it has.
        width: The columns of the result.
        fill: What pads a row.
    """
    counts = lengths.tolist()
    if not counts or max(counts) > width or min(counts) < 1:
        raise internal_error(f"the sequences have {lengths} tokens, but an array of {width} columns holds 1 to {width}")
    padded = np.full((len(counts), width), fill, dtype=np.int32)
    source, target = ids.data, padded.reshape(-1).data  # memoryviews: their slices cost half as much as those of arrays
    at = 0
    for begin, length in zip(begins.tolist(), counts, strict=True):
        target[at : at + length] = source[begin : begin + length]
        at += width
    return padded, lengths.astype(np.int32)


def inside(lengths: Lengths, width: int) -> NDArray[np.bool_]:
    """Returns (R, width) bool: True on each row's own tokens, False on its padding."""
    return np.arange(width, dtype=np.int32) < lengths[:, None]


def pad_sides(block: Block, width: int, fill: int, *sides: int) -> tuple[NDArray[np.int32], Lengths]:
    """Returns `pad` of these sequences of every row, side after side: 0 is the chosen side (or the only one)."""
    if max(sides) >= block.sides:
        raise internal_error(f"a sample of the batch has no sequence number {max(sides)}; a pair has two")
    begins, lengths = (_side_by_side(part, sides) for part in (block.begins, block.lengths))
    return pad(block.ids, begins, lengths, width, fill)


def _side_by_side(values: NDArray[Any], sides: tuple[int, ...]) -> NDArray[Any]:
    """Returns what these sequences of every row have, side after side: (B, S, ...) -> (len(sides) * B, ...)."""
    if sides != tuple(range(values.shape[1])):
        values = values[:, sides]
    return values.swapaxes(0, 1).reshape(-1, *values.shape[2:])


def span_mask(block: Block, lengths: Lengths, width: int, shifted: bool, *sides: int) -> NDArray[np.bool_]:
    """Returns the loss mask of these sequences of every row, side after side: True exactly on the spans.

    A span (3, 5) gives 0 0 0 1 1 0 unshifted and 0 0 1 1 0 0 shifted: column t then stands for the token at t + 1.

    Shifted spans must not begin at token 0: no column predicts that token, and dropping it would change the loss's
    denominator. Tasks never make such a span. Only sequences with more than one span cost a Python loop.

    Returns:
        (R, width) bool, whose sum does not depend on `shifted`.
    """
    limits = _side_by_side(block.spans, sides).astype(np.int32)  # positions fit, as lengths do
    others = [  # (row of the mask, begin, end)
        (sides.index(side) * len(block) + row, *span)
        for (row, side), spans in block.more.items()
        if side in sides
        for span in spans[1:]
    ]
    first, end = limits[:, :1], limits[:, 1:]
    beyond = [row for row, _, last in others if last > lengths[row]]
    if beyond or (end[:, 0] > lengths).any():
        beyond += np.flatnonzero(end[:, 0] > lengths).tolist()
        raise internal_error(f"a span ends after the last token of a sequence of {lengths[beyond[0]]} tokens")
    if shifted:
        if ((first == 0) & (end > 0)).any():
            raise internal_error("a span begins at token 0, which shifted labels cannot predict")
        limits -= 1
    columns = np.arange(width, dtype=np.int32)
    mask = columns >= first
    mask &= columns < end
    for row, start, stop in others:
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
    found = np.full(values.shape, IGNORE, np.int32)
    np.copyto(found, values, where=mask)  # twice as fast as np.where
    return found


def required(values: NDArray[np.floating[Any]] | None, rows: int, name: str) -> NDArray[np.float32]:
    """Returns numbers of each sample as float32; a missing one is an internal error, as a column needs it."""
    missing = rows if values is None else int(np.isnan(values).reshape(rows, -1).any(axis=1).sum())
    if values is None or missing:
        raise internal_error(f"{missing} of {rows} samples have no {name}")
    return values.astype(np.float32)


def column(samples: Block, name: str, dtype: str) -> NDArray[Any]:
    """Returns one of the samples' own columns, (B,); a missing one is an internal error.

    Args:
        samples: B samples.
        name: Its name in `Block.columns`.
        dtype: ``int32``, ``int64``, ``float32``, or ``text`` for strings.
    """
    values = samples.columns.get(name)
    if dtype != TEXT and values is not None and values.dtype.kind == "f":
        return required(values, len(samples), name).astype(dtype)
    if values is None:
        raise internal_error(f"{len(samples)} of {len(samples)} samples have no {name}")
    return values.astype(np.str_ if dtype == TEXT else dtype)


def internal_error(problem: str) -> RuntimeError:
    """Returns an error that no option and no row can cause; `problem` says what was found and what was expected."""
    return RuntimeError(
        f"ms_prefstream, internal error while building a batch: {problem}. "
        "Rows and options are checked before this point, so please report it together with the row."
    )
