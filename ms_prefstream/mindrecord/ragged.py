"""The layout `ragged`: samples as they are, nothing padded, in columns that `mps.stream` reads back.

    pairs   row_id [17]   chosen_ids [5 6 7 8]   rejected_ids [5 6 9]   marks [0  0 1 2 4  0 1 2 3]   margin [0.5]
    RLHF    row_id [17]   prompt_ids [5 6]   ids [5 6 7 8]   marks [0  0 1 2 4]

`marks` are the notes of reports, then for each sequence: whether it was cut, how many spans are under the loss, and
the first token and the end of each.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.mindrecord.reader import decode
from ms_prefstream.mindrecord.schema import Column, Columns
from ms_prefstream.sample import Ready, Sample, Sequence

_PAIR = ("chosen_ids", "rejected_ids")
_ONE = ("ids",)


def ragged_columns(pairs: bool, length: int, prompt_length: int | None, margin: bool) -> dict[str, Column]:
    """Returns the columns of a task's samples, in order.

    Args:
        pairs: Whether a sample has a chosen and a rejected side.
        length: Tokens of the longest sequence.
        prompt_length: Tokens of the longest prompt, where samples have a prompt of their own; None for `length`.
        margin: Whether there is a margin column.
    """
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


def ragged_values(
    samples: Many[Sample], notes: Many[int], rows: Many[int], columns: Columns
) -> dict[str, list[NDArray[Any]]]:
    """Samples as columns of a file, n arrays each.

    Args:
        samples: The samples.
        notes: What reports count about each.
        rows: Their row ids.
        columns: The layout's.
    """
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


class RaggedReader:
    """Bytes of rows back to samples.

    Args:
        columns: Name -> dtype of the layout's columns.
    """

    def __init__(self, columns: dict[str, str]) -> None:
        self._names = sorted(columns)  # as they lie in a file
        self._dtypes = [columns[name] for name in self._names]
        self._sides = [name for name in (*_PAIR, *_ONE) if name in columns]

    def read(self, blocks: Many[bytes], rows: Many[int]) -> list[Ready]:
        """The samples of some rows.

        Args:
            blocks: The bytes of each row.
            rows: The row ids that they must have.

        Raises:
            ValueError: The bytes are not what was written for these rows.
        """
        if not blocks:
            return []
        found = dict(zip(self._names, decode(blocks, self._dtypes), strict=True))
        none: list[None] = [None] * len(blocks)
        prompts: Many[Any] = found.get("prompt_ids", none)
        margins: Many[Any] = found.get("margin", none)
        ready = []
        for at, row in enumerate(rows):
            if found["row_id"][at].tolist() != [row]:
                raise ValueError(f"row {row} has the number {found['row_id'][at].tolist()} in the file")
            sides = [found[name][at] for name in self._sides]
            marks = found["marks"][at].tolist()
            margin = None if margins[at] is None else float(margins[at][0])
            ready.append(Ready(Sample(_sequences(sides, marks), prompts[at], margin), marks[0]))
        return ready


def _sequences(sides: Many[NDArray[np.int32]], marks: list[int]) -> tuple[Sequence, ...]:
    at, sequences = 1, []
    for ids in sides:
        lost, spans = marks[at], marks[at + 1]
        ends = marks[at + 2 : at + 2 + 2 * spans]
        if len(ends) != 2 * spans:
            raise ValueError("the marks are too short")
        sequences.append(Sequence(ids, tuple(zip(ends[::2], ends[1::2], strict=True)), bool(lost & 1), bool(lost & 2)))
        at += 2 + 2 * spans
    if at != len(marks):
        raise ValueError("the marks are too long")
    return tuple(sequences)
