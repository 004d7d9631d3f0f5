"""Loaded rows as one block of bytes: all ids in one array, a few numbers a row, pickles only for what is rare."""

from __future__ import annotations

import itertools
import pickle
import struct
from collections.abc import Sequence as Many
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import RowError
from ms_prefstream.sample import Loaded, Note, Sample, Sequence

_HEAD = struct.Struct("<4Q")  # rows, ids, numbers, bytes of the pickle
_NO_PROMPT = -1
_ERROR = -1


def pack(loaded: Many[Loaded]) -> list[Any]:
    """The buffers of a block, which `unpack` turns into the same rows.

        header | ids of all sequences and prompts, int32 | numbers, int32 | pickled errors, margins, ref_logps

    The numbers of a good row: sequences, notes, prompt tokens (-1 for none), and for each sequence its tokens, what it
    lost (`Sequence.lost`), its number of spans and their ends; of a bad row: -1, notes.
    """
    arrays: list[NDArray[np.int32]] = []
    numbers: list[int] = []
    errors: list[RowError] = []
    margins: list[float | None] = []
    logps: list[tuple[float, float] | None] = []
    for sample, error, notes in loaded:
        if sample is None:
            assert error is not None  # a row without sample says why
            numbers += (_ERROR, int(notes))
            errors.append(error)
            continue
        sequences, prompt, margin, ref_logps = sample
        margins.append(margin)
        logps.append(ref_logps)
        numbers += (len(sequences), int(notes), _NO_PROMPT if prompt is None else len(prompt))
        if prompt is not None:
            arrays.append(prompt)
        for sequence in sequences:
            ids, spans = sequence.ids, sequence.spans
            arrays.append(ids)
            numbers += (len(ids), sequence.lost, len(spans))
            for span in spans:
                numbers += span
    ids = np.concatenate(arrays, casting="no", dtype=np.int32) if arrays else np.empty(0, np.int32)
    rare = (
        errors,
        margins if any(margin is not None for margin in margins) else None,
        logps if any(pair is not None for pair in logps) else None,
    )
    pickled = b"" if rare == ([], None, None) else pickle.dumps(rare, protocol=5)
    table = np.array(numbers, np.int32)
    return [_HEAD.pack(len(loaded), len(ids), len(table), len(pickled)), ids.data, table.data, pickled]


def unpack(block: bytearray) -> list[Loaded]:
    """The rows of a block; their arrays are views of it."""
    rows, tokens, count, size = _HEAD.unpack_from(block)
    begin = _HEAD.size
    flat = np.frombuffer(block, np.int32, tokens, begin)
    numbers = np.frombuffer(block, np.int32, count, begin + 4 * tokens)
    errors: list[RowError] = []
    margins = logps = None
    if size:
        errors, margins, logps = pickle.loads(memoryview(block)[begin + 4 * (tokens + count) :])
    if logps is None and count == rows * _PLAIN_PAIR:
        table = numbers.reshape(rows, _PLAIN_PAIR)
        if (table[:, _FORM] == _PAIR_FORM).all():
            return _plain_pairs(flat, table, margins or [None] * rows)
    return _any_rows(rows, flat, numbers.tolist(), errors, margins, logps)


# Of nearly every row of a pair task: two sequences, no prompt of its own, one span each.
_PLAIN_PAIR = 13
_FORM = [0, 2, 5, 10]
_PAIR_FORM = np.array([2, _NO_PROMPT, 1, 1])


def _plain_pairs(flat: NDArray[np.int32], table: NDArray[np.int32], margins: Many[float | None]) -> list[Loaded]:
    """(n, 13) numbers of rows that are all of this form; more than twice as fast as `_any_rows`."""
    ends = np.cumsum(table[:, [3, 8]].ravel()).tolist()
    bounds = iter([flat[begin:end] for begin, end in itertools.pairwise([0, *ends])])
    new, loaded = tuple.__new__, []  # what the constructors of named tuples call in the end
    for numbers, margin in zip(table.tolist(), margins, strict=True):
        _, notes, _, _, lost, _, start, stop, _, other_lost, _, other_start, other_stop = numbers
        chosen = new(Sequence, (next(bounds), ((start, stop),), bool(lost & 1), bool(lost & 2)))
        rejected = new(
            Sequence, (next(bounds), ((other_start, other_stop),), bool(other_lost & 1), bool(other_lost & 2))
        )
        sample = new(Sample, ((chosen, rejected), None, margin, None))
        loaded.append(new(Loaded, (sample, None, _NOTES[notes])))
    return loaded


def _any_rows(
    rows: int,
    flat: NDArray[np.int32],
    numbers: list[int],
    errors: list[RowError],
    margins: list[float | None] | None,
    logps: list[tuple[float, float] | None] | None,
) -> list[Loaded]:
    loaded: list[Loaded] = []
    at = taken = good = 0
    for _ in range(rows):
        sides, notes = numbers[at], _NOTES[numbers[at + 1]]
        if sides == _ERROR:
            loaded.append(Loaded(None, errors[len(loaded) - good], notes))
            at += 2
            continue
        prompt = None
        if numbers[at + 2] != _NO_PROMPT:
            prompt = flat[taken : taken + numbers[at + 2]]
            taken += numbers[at + 2]
        at += 3
        sequences = []
        for _ in range(sides):
            length, lost, spans = numbers[at : at + 3]
            at += 3
            ends = numbers[at : at + 2 * spans]
            at += 2 * spans
            pairs = tuple(zip(ends[::2], ends[1::2], strict=True))
            sequences.append(Sequence(flat[taken : taken + length], pairs, bool(lost & 1), bool(lost & 2)))
            taken += length
        margin = None if margins is None else margins[good]
        sample = Sample(tuple(sequences), prompt, margin, None if logps is None else logps[good])
        loaded.append(Loaded(sample, None, notes))
        good += 1
    return loaded


_NOTES = [Note(value) for value in range(2 * max(Note))]
