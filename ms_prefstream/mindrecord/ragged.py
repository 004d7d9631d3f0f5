"""Layout `ragged`: samples without padding, in columns that `mps.stream` reads back.

    pairs   row_id [17]   chosen_ids [5 6 7 8]   rejected_ids [5 6 9]   marks [0  0 1 2 4  0 1 2 3]   margin [0.5]
    RLHF    row_id [17]   prompt_ids [5 6]   ids [5 6 7 8]   marks [0  0 1 2 4]
    others  row_id [17]   ids [5 6 7 8]   marks [0  0 1 2 4]

`marks` are the sample's notes for reports, then for each sequence: whether it was cut, how many spans the loss
covers, and the first token and the end of each. `span_scores` has a value for each span, where a task gives them.
Further columns of a sample, such as its margin, follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import OptionError
from ms_prefstream.mindrecord.encoding import Flat, decode
from ms_prefstream.mindrecord.schema import BYTES, Column, Columns
from ms_prefstream.sample import TEXT, Block, Note, Sample

_PAIR = ("chosen_ids", "rejected_ids")
_ONE = ("ids",)
_SCORES = "span_scores"
_OWN = frozenset({"row_id", "prompt_ids", *_PAIR, *_ONE, "marks", _SCORES})
MOST_TEXT = 1 << 18
"""The most bytes of a text that is carried; pages have room for it."""
_LAST_NOTE = int(max(Note))


def ragged_columns(
    pairs: bool, length: int, prompt_length: int | None, further: Mapping[str, str], scores: bool = False
) -> dict[str, Column]:
    """Returns the columns of a task's samples, in order.

    Args:
        pairs: Whether a sample has two sequences.
        length: The most tokens of a sequence.
        prompt_length: The most tokens of a prompt that a rollout starts from; None for samples without one.
        further: Further values of a sample: name -> dtype.
        scores: Whether each span has a value; spans are then single tokens.
    """
    names = _PAIR if pairs else _ONE
    columns = {"row_id": Column(dtype="int64", most=1, shape=(1,))}
    if prompt_length is not None:
        columns["prompt_ids"] = Column(dtype="int32", most=prompt_length)
    for name in names:
        columns[name] = Column(dtype="int32", most=length)
    # At most every second token begins a span, or every token.
    columns["marks"] = Column(dtype="int32", most=1 + len(names) * (2 + (2 * length if scores else length + 2)))
    if scores:
        columns[_SCORES] = Column(dtype="float32", most=length)
    return columns | {name: further_column(dtype) for name, dtype in further.items()}


def further_column(dtype: str) -> Column:
    """Returns the column of a further value of each sample; strings are UTF-8."""
    return Column(dtype=BYTES, most=MOST_TEXT) if dtype == TEXT else Column(dtype=dtype, most=1, shape=(1,))


def check_ragged(dtypes: Mapping[str, str], further: Mapping[str, str]) -> None:
    """Raises ValueError unless columns have the names and dtypes of this layout, and `further` ones at least."""
    prompt_length = 1 if "prompt_ids" in dtypes else None
    columns = ragged_columns(has_pairs(dtypes), 1, prompt_length, further, has_scores(dtypes))
    expected = {name: column.dtype for name, column in columns.items()}
    if {name: dtypes.get(name) for name in expected} != expected:
        raise ValueError(f"field columns is {dict(dtypes)}; expected {expected}")


def has_pairs(columns: Mapping[str, Any]) -> bool:
    """Returns whether samples with these columns have two sequences."""
    return _PAIR[0] in columns


def has_scores(columns: Mapping[str, Any]) -> bool:
    """Returns whether samples with these columns have a value for each span."""
    return _SCORES in columns


def further_of(dtypes: Mapping[str, str]) -> dict[str, str]:
    """Returns the columns of a file that hold further values of its samples, name -> dtype."""
    return {name: dtype for name, dtype in dtypes.items() if name not in _OWN}


def ragged_values(
    samples: Many[Sample], notes: Many[int], rows: Many[int], columns: Columns
) -> dict[str, list[NDArray[Any]]]:
    """Returns samples with their notes and row ids as columns of a file, n arrays each."""
    names = [name for name in (*_PAIR, *_ONE) if name in columns]
    values: dict[str, list[NDArray[Any]]] = {name: [] for name in columns}
    further = further_of({name: column.dtype for name, column in columns.items()})
    for sample, noted, row in zip(samples, notes, rows, strict=True):
        marks = [noted]
        values["row_id"].append(np.array([row], np.int64))
        for name, sequence in zip(names, sample.sequences, strict=True):
            values[name].append(np.ascontiguousarray(sequence.ids, np.int32))
            marks += (sequence.lost, len(sequence.spans))
            for span in sequence.spans:
                marks += span
        if sample.prompt is not None:
            values["prompt_ids"].append(np.ascontiguousarray(sample.prompt, np.int32))
        if _SCORES in columns:
            values[_SCORES].append(np.array(sample.scores, np.float32))
        values["marks"].append(np.array(marks, np.int32))
    return values | {name: further_values(samples, rows, name, dtype) for name, dtype in further.items()}


def further_values(samples: Many[Sample], rows: Many[int], name: str, dtype: str) -> list[NDArray[Any]]:
    """Returns a further value of each sample as a column of a file.

    Raises:
        OptionError: A text is longer than files have room for.
    """
    given = [sample.columns[name] for sample in samples]
    if dtype != BYTES:
        return [np.array([value], dtype) for value in given]
    texts = [np.frombuffer(value.encode(), np.uint8) for value in given]
    for row, text in zip(rows, texts, strict=True):
        if len(text) > MOST_TEXT:
            raise OptionError(
                f"row {row}: field {name!r}, which is carried, has {len(text):,} bytes of text; a cache has room for "
                f"{MOST_TEXT:,}. Carry it in a stream of the text, or shorten it."
            )
    return texts


def ragged_block(
    dtypes: Mapping[str, str],
    data: NDArray[np.uint8],
    begins: NDArray[np.int64],
    sizes: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> Block:
    """Returns the samples of some rows from their bytes, see `decode`. Checks that the rows have these ids.

    Raises:
        ValueError: The bytes are not those of these rows.
    """
    names = sorted(dtypes)  # their order in a file
    found = dict(zip(names, decode(data, begins, sizes, [dtypes[name] for name in names]), strict=True))
    sides = [found[name] for name in (*_PAIR, *_ONE) if name in found]
    block = Block.empty(len(rows), len(sides))
    block.ids = sides[0].values
    block.begins = np.stack([side.begins for side in sides], axis=1)
    block.lengths = np.stack([side.lengths for side in sides], axis=1)
    numbers = _single(found["row_id"])
    if wrong := _first(numbers != rows):
        raise ValueError(f"row {rows[wrong[0]]} has the number {numbers[wrong[0]]} in the file")
    for name, dtype in further_of(dtypes).items():
        block.columns[name] = _texts(found[name]) if dtype == BYTES else _single(found[name])
        if dtype != BYTES and (wrong := _first(~np.isfinite(block.columns[name]))):
            raise ValueError(f"row {rows[wrong[0]]} has no {name}")
    if "prompt_ids" in found:
        block.prompts = np.stack(found["prompt_ids"][1:], axis=1)
    _set_marks(block, found["marks"])
    if _SCORES in found:
        scores = found[_SCORES]
        for row, (begin, count) in enumerate(zip(scores.begins.tolist(), scores.lengths.tolist(), strict=True)):
            if count != len(block.spans_of(row, 0)):
                raise ValueError(f"row {rows[row]} has {count} scores and {len(block.spans_of(row, 0))} spans")
            block.scores[row] = tuple(scores.values[begin : begin + count].tolist())
    return block


def _first(wrong: NDArray[np.bool_]) -> list[int]:
    """Returns the first row that is wrong, in a list; an empty list if there is none."""
    found: list[int] = [int(wrong.argmax())] if wrong.any() else []
    return found


def _single(column: Flat) -> NDArray[Any]:
    """Returns the numbers of a column with one number a row."""
    if wrong := _first(column.lengths != 1):
        raise ValueError(f"a row has {column.lengths[wrong[0]]} numbers where one was expected")
    numbers: NDArray[Any] = column.values[column.begins]
    return numbers


def _texts(column: Flat) -> NDArray[np.object_]:
    """Returns the strings of a column of bytes."""
    ends = (column.begins + column.lengths).tolist()
    data = column.values.tobytes()
    found = np.empty(len(ends), object)
    found[:] = [data[begin:end].decode() for begin, end in zip(column.begins.tolist(), ends, strict=True)]
    return found


def _set_marks(block: Block, marks: Flat) -> None:
    """Sets notes, cuts and spans of the rows of a block; only sequences with several spans cost a Python loop."""
    values, at, ends = marks.values, marks.begins, marks.begins + marks.lengths
    if (marks.lengths < 1).any():
        raise ValueError("the marks begin with no notes")
    notes = values[at]
    if ((notes < 0) | (notes >= 2 * _LAST_NOTE)).any():
        raise ValueError("the marks begin with no notes")
    block.notes[:] = notes
    at = at + 1
    for side in range(block.sides):
        if (at + 2 > ends).any():
            raise ValueError("the marks are too short")
        spans = values[at + 1].astype(np.int64)
        first, at = at + 2, at + 2 + 2 * spans
        if ((spans < 0) | (at > ends)).any():
            raise ValueError("the marks are too short")
        some = np.flatnonzero(spans)  # (k,)
        found = values[first[some, None] + np.arange(2)]  # (k, 2)
        begins, lasts, previous = found[:, 0], found[:, 1], values[at[some] - 1]
        if ((begins < 0) | (lasts < begins) | (previous > block.lengths[some, side])).any():
            raise ValueError("the marks name other tokens than the row has")
        block.lost[:, side] = values[first - 2] & 3
        block.spans[some, side] = found
        for row in np.flatnonzero(spans > 1).tolist():
            several = values[first[row] : at[row]].tolist()
            if several != sorted(several):
                raise ValueError("the marks name other tokens than the row has")
            block.set_spans(row, side, list(zip(several[::2], several[1::2], strict=True)))
    if (at != ends).any():
        raise ValueError("the marks are too long")
