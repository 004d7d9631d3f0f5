"""The data that travels between the folders: token sequences with their spans, samples, loaded rows, batches."""

from __future__ import annotations

import enum
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import RowError


class Note(enum.IntFlag):
    """Facts about a good row that a report counts."""

    NONE = 0
    TRUNCATED = 1
    REWRITTEN = 2
    BOUNDARY_DIFFERS = 4
    QUESTION_CUT = 8
    CONTENT_LOST = 16
    EMPTY_THINK = 32
    MARKERS = 64


class Loaded(NamedTuple):
    """One row: its sample with notes, or why there is none (the error without its origin).

    `unread` names the fields of the row that nothing read, see `ms_prefstream.formats.reader`.
    """

    sample: Sample | None
    error: RowError | None
    notes: Note = Note.NONE
    unread: tuple[str, ...] = ()


Batch = dict[str, NDArray[Any]]


Ids: TypeAlias = NDArray[np.int32]
Span: TypeAlias = tuple[int, int]


class Sequence(NamedTuple):
    """One token sequence, not padded.

    Attributes:
        ids: (n,) int32.
        spans: Half-open token ranges [start, end) under the loss, in order, never overlapping; empty for a prompt
            without response.
        truncated: Whether anything of the prompt or of what is trained on was cut off.
        question_cut: Whether so much was cut off that no text of the prompt's last message is left.
    """

    ids: Ids
    spans: tuple[Span, ...]
    truncated: bool = False
    question_cut: bool = False

    @property
    def lost(self) -> int:
        """`truncated` (1) and `question_cut` (2) as one number, for files and messages."""
        return self.truncated + 2 * self.question_cut


class Sample(NamedTuple):
    """One row, ready to be batched.

    Attributes:
        sequences: (chosen, rejected) for pairs; (prompt + response,) for RLHF.
        prompt: (p,) int32, the ids a rollout starts from; RLHF only.
        margin: float or None; how much better the chosen side is.
        ref_logps: (chosen, rejected) log-probabilities of a reference model, summed over the loss mask, or None.
    """

    sequences: tuple[Sequence, ...]
    prompt: Ids | None = None
    margin: float | None = None
    ref_logps: tuple[float, float] | None = None

    @property
    def length(self) -> int:
        """Tokens of the longer sequence: the key that windows are sorted by."""
        if len(self.sequences) == 2:  # asked of every row, twice
            chosen, rejected = self.sequences
            return max(len(chosen.ids), len(rejected.ids))
        return len(self.sequences[0].ids)

    @property
    def total_length(self) -> int:
        """Tokens of all sequences: what the sample takes of a packed row."""
        return sum(len(sequence.ids) for sequence in self.sequences)


class Ready(NamedTuple):
    """A row that was made into a sample before, as a cache holds it.

    Attributes:
        sample: The sample.
        notes: What reports count about it; a `Note` as a number.
    """

    sample: Sample
    notes: int
