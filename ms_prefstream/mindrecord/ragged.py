"""Layout `ragged`: samples without padding, in columns that `mps.stream` reads back.

    pairs   row_id [17]   chosen_ids [5 6 7 8]   rejected_ids [5 6 9]   marks [0  0 1 2 4  0 1 2 3]   margin [0.5]
    RLHF    row_id [17]   prompt_ids [5 6]   ids [5 6 7 8]   marks [0  0 1 2 4]

`marks` are the sample's notes for reports, then for each sequence: whether it was cut, how many spans the loss
covers, and the first token and the end of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.mindrecord.encoding import decode
from ms_prefstream.mindrecord.schema import Column, Columns
from ms_prefstream.sample import Note, Ready, Sample, Sequence

_PAIR = ("chosen_ids", "rejected_ids")
_ONE = ("ids",)


def ragged_columns(pairs: bool, length: int, prompt_length: int | None, margin: bool) -> dict[str, Column]:
    """Returns the columns of a task's samples, in order. Both lengths are the most tokens."""
    names = _PAIR if pairs else _ONE
    columns = {"row_id": Column(dtype="int64", most=1, shape=(1,))}
    if not pairs:
        columns["prompt_ids"] = Column(dtype="int32", most=prompt_length or length)
    for name in names:
        columns[name] = Column(dtype="int32", most=length)
    # At most every second token begins a span.
    columns["marks"] = Column(dtype="int32", most=1 + len(names) * (2 + length + 2))
    if margin:
        columns["margin"] = Column(dtype="float32", most=1, shape=(1,))
    return columns


def check_ragged(dtypes: Mapping[str, str], pairs: bool, margin: bool) -> None:
    """Raises ValueError unless columns have the names and dtypes of this layout."""
    expected = {name: column.dtype for name, column in ragged_columns(pairs, 1, 1, margin).items()}
    if dtypes != expected:
        raise ValueError(f"field columns is {dict(dtypes)}; expected {expected}")


def ragged_values(
    samples: Many[Sample], notes: Many[int], rows: Many[int], columns: Columns
) -> dict[str, list[NDArray[Any]]]:
    """Returns samples with their notes and row ids as columns of a file, n arrays each."""
    names = [name for name in (*_PAIR, *_ONE) if name in columns]
    values: dict[str, list[NDArray[Any]]] = {name: [] for name in columns}
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
        if "margin" in columns:
            values["margin"].append(np.array([sample.margin], np.float32))
        values["marks"].append(np.array(marks, np.int32))
    return values


def ragged_samples(dtypes: Mapping[str, str], blocks: Many[bytes], rows: Many[int]) -> list[Ready]:
    """Returns the samples of some rows from the bytes of each. Checks that the rows have these ids.

    Raises:
        ValueError: The bytes are not those of these rows.
    """
    if not blocks:
        return []
    names = sorted(dtypes)  # their order in a file
    found = dict(zip(names, decode(blocks, [dtypes[name] for name in names]), strict=True))
    none: list[None] = [None] * len(blocks)
    prompts: Many[Any] = found.get("prompt_ids", none)
    margins: Many[Any] = found.get("margin", none)
    sides = [found[name] for name in (*_PAIR, *_ONE) if name in found]
    ready = []
    for at, row in enumerate(rows):
        if found["row_id"][at].tolist() != [row]:
            raise ValueError(f"row {row} has the number {found['row_id'][at][:3].tolist()} in the file")
        if margins[at] is not None and not (len(margins[at]) == 1 and np.isfinite(margins[at][0])):
            raise ValueError(f"row {row} has no margin")
        marks = found["marks"][at].tolist()
        if not marks or not 0 <= marks[0] < 2 * max(Note):
            raise ValueError("the marks begin with no notes")
        margin = None if margins[at] is None else float(margins[at][0])
        ready.append(Ready(Sample(_sequences([side[at] for side in sides], marks), prompts[at], margin), marks[0]))
    return ready


def _sequences(sides: Many[NDArray[np.int32]], marks: list[int]) -> tuple[Sequence, ...]:
    at, sequences = 1, []
    for ids in sides:
        if len(marks) < at + 2:
            raise ValueError("the marks are too short")
        lost, spans = marks[at], marks[at + 1]
        ends = marks[at + 2 : at + 2 + 2 * spans]
        if spans < 0 or len(ends) != 2 * spans:
            raise ValueError("the marks are too short")
        if spans and (ends[0] < 0 or ends[-1] > len(ids) or ends != sorted(ends)):
            raise ValueError("the marks name other tokens than the row has")
        sequences.append(Sequence(ids, tuple(zip(ends[::2], ends[1::2], strict=True)), bool(lost & 1), bool(lost & 2)))
        at += 2 + 2 * spans
    if at != len(marks):
        raise ValueError("the marks are too long")
    return tuple(sequences)
