"""Loaded rows on their way from a worker: all token ids in one array, everything else as plain values."""

from __future__ import annotations

import itertools
from collections.abc import Sequence as Many
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ms_prefstream.errors import RowError
from ms_prefstream.sample import Ids, Loaded, Note, Sample, Sequence

_Row: TypeAlias = tuple[int, bool, float | None, tuple[float, float] | None, RowError | None, int]


class Block(NamedTuple):
    """Loaded rows, cheap to pickle.

    Attributes:
        ids: The ids of all sequences, then those of all prompts, int32.
        lengths: How many ids each of them has.
        columns: The other fields of `Sequence`, a list each, with one value per sequence.
        rows: (sequences, whether there is a prompt, margin, ref_logps, error, notes) of each row.
    """

    ids: Ids
    lengths: list[int]
    columns: list[list[Any]]
    rows: list[_Row]


def pack(loaded: Many[Loaded]) -> Block:
    """Returns the block that `unpack` turns into the same rows."""
    samples = [one.sample for one in loaded if one.sample is not None]
    sequences = [sequence for sample in samples for sequence in sample.sequences]
    arrays = [sequence.ids for sequence in sequences]
    arrays += [sample.prompt for sample in samples if sample.prompt is not None]
    rows: list[_Row] = [
        (0, False, None, None, error, int(notes))
        if sample is None
        else (len(sample.sequences), sample.prompt is not None, sample.margin, sample.ref_logps, None, int(notes))
        for sample, error, notes in loaded
    ]
    return Block(
        ids=np.concatenate(arrays, casting="no", dtype=np.int32) if arrays else np.empty(0, np.int32),
        lengths=list(map(len, arrays)),
        columns=[[sequence[field] for sequence in sequences] for field in range(1, len(Sequence._fields))],
        rows=rows,
    )


_NOTES = [Note(value) for value in range(2 * max(Note))]


def unpack(block: Block) -> list[Loaded]:
    """Returns the rows of a block; their arrays are views of it."""
    ends = itertools.accumulate(block.lengths, initial=0)
    arrays = [block.ids[begin:end] for begin, end in itertools.pairwise(ends)]
    new = tuple.__new__  # what the constructors of named tuples end in; the training thread does this for every row
    sequences = map(new, itertools.repeat(Sequence), zip(arrays, *block.columns))  # noqa: B905 - prompts come after
    prompts = iter(arrays[len(block.columns[0]) :])
    loaded: list[Loaded] = []
    for count, has_prompt, margin, ref_logps, error, notes in block.rows:
        sample = None
        if error is None:
            prompt = next(prompts) if has_prompt else None
            sample = new(Sample, (tuple(itertools.islice(sequences, count)), prompt, margin, ref_logps))
        loaded.append(new(Loaded, (sample, error, _NOTES[notes])))
    return loaded
