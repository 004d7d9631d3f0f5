"""The data that travels between the folders: token sequences with their spans, samples, loaded rows, batches."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Many
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
    SEPARATOR_TRIMMED = 128
    DESIRABLE = 256
    UNDESIRABLE = 512


class Loaded(NamedTuple):
    """One row: its sample with notes, or why there is none (the error without its origin).

    `unread` names the fields of the row that nothing read, see `ms_prefstream.formats.reader`.
    """

    sample: Sample | None
    error: RowError | None
    notes: Note = Note.NONE
    unread: tuple[str, ...] = ()


Batch = dict[str, NDArray[Any]]


TEXT = "text"
"""The dtype of a column of strings; the others are called as in numpy."""

LARGEST = float(np.finfo(np.float32).max)
"""The largest number in batches and caches."""

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


_NO_COLUMNS: Mapping[str, Any] = {}


class Sample(NamedTuple):
    """One row, ready to be batched.

    Attributes:
        sequences: (chosen, rejected) for pairs; (prompt + response,) for RLHF.
        prompt: (p,) int32, the ids a rollout starts from; RLHF only.
        columns: Further values by name, see `Block.columns`.
        ref_logps: Log-probabilities of each sequence by a reference model, summed over the loss mask, or None.
        scores: A value of each span of the only sequence, or None.
    """

    sequences: tuple[Sequence, ...]
    prompt: Ids | None = None
    columns: Mapping[str, Any] = _NO_COLUMNS
    ref_logps: tuple[float, ...] | None = None
    scores: tuple[float, ...] | None = None

    @property
    def margin(self) -> float | None:
        """How much better the chosen side is; None if the row does not say."""
        found = self.columns.get("margin")
        return found if isinstance(found, float) else None

    @property
    def length(self) -> int:
        """Tokens of the longer sequence: the key that windows are sorted by."""
        if len(self.sequences) == 2:  # asked of every row, twice
            chosen, rejected = self.sequences
            return max(len(chosen.ids), len(rejected.ids))
        return len(self.sequences[0].ids)


_NO_SPAN = (0, 0)
_MISSING = {"f": np.nan, "i": 0, "O": ""}
"""By the kind of a column's dtype: its value in rows that have none."""


@dataclasses.dataclass(eq=False)
class Block(Many[Loaded]):
    """Loaded rows as arrays: n rows of S sequences each. Iteration and `block[row]` give them one by one as `Loaded`.

    A bad row has an error, and sequences of no length.

    Attributes:
        ids: (t,) int32, the tokens of all sequences and prompts, in any order.
        begins: (n, S) int64, where each sequence begins in `ids`.
        lengths: (n, S) int64, how many tokens it has.
        spans: (n, S, 2) int64, begin and end of its first span; (0, 0) for none.
        lost: (n, S) uint8, see `Sequence.lost`.
        notes: (n,) uint16, a `Note` as a number.
        more: (row, side) -> all spans of a sequence that has several.
        errors: Row -> why there is no sample (without origin).
        unread: Row -> fields that nothing read.
        prompts: (n, 2) int64, begin and length of the prompt that a rollout starts from; None without any.
        ref_logps: (n, S) float32, see `Sample`; None without any.
        columns: Further values of the rows by name, such as ``margin``: (n,) numbers, or strings as objects. A row
            without a value has NaN, 0 or "".
        scores: Row -> a value of each span of its only sequence, see `Sample`.
    """

    ids: Ids
    begins: NDArray[np.int64]
    lengths: NDArray[np.int64]
    spans: NDArray[np.int64]
    lost: NDArray[np.uint8]
    notes: NDArray[np.uint16]
    more: dict[tuple[int, int], tuple[Span, ...]] = dataclasses.field(default_factory=dict)
    errors: dict[int, RowError] = dataclasses.field(default_factory=dict)
    unread: dict[int, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    prompts: NDArray[np.int64] | None = None
    ref_logps: NDArray[np.float32] | None = None
    columns: dict[str, NDArray[Any]] = dataclasses.field(default_factory=dict)
    scores: dict[int, tuple[float, ...]] = dataclasses.field(default_factory=dict)

    @classmethod
    def empty(cls, rows: int, sides: int) -> Block:
        """Returns a block of rows without tokens."""
        shape = rows, sides
        return cls(
            ids=np.empty(0, np.int32),
            begins=np.zeros(shape, np.int64),
            lengths=np.zeros(shape, np.int64),
            spans=np.zeros((*shape, 2), np.int64),
            lost=np.zeros(shape, np.uint8),
            notes=np.zeros(rows, np.uint16),
        )

    @classmethod
    def of(cls, rows: Many[Loaded | Sample]) -> Block:
        """Returns rows given one by one as a block."""
        loaded = [Loaded(one, None) if isinstance(one, Sample) else one for one in rows]
        sides = max((len(one.sample.sequences) for one in loaded if one.sample is not None), default=1)
        block = cls.empty(len(loaded), sides)
        block.put(enumerate(loaded))
        return block

    def put(self, rows: Iterable[tuple[int, Loaded]]) -> None:
        """Sets rows given one by one; their tokens are added to `ids`."""
        sequences: list[tuple[int, int, Sequence]] = []
        prompts: list[tuple[int, Ids]] = []
        values: dict[str, dict[int, Any]] = {}
        for row, (sample, error, notes, unread) in rows:
            self.notes[row] = int(notes)
            if unread:
                self.unread[row] = unread
            if sample is None:
                assert error is not None  # a row has one or the other
                self.refuse(row, error)
                continue
            sequences += [(row, side, sequence) for side, sequence in enumerate(sample.sequences)]
            if sample.prompt is not None:
                prompts.append((row, sample.prompt))
            for name, value in sample.columns.items():
                values.setdefault(name, {})[row] = value
            if sample.scores is not None:
                self.scores[row] = sample.scores
            if sample.ref_logps is not None:
                if self.ref_logps is None:
                    self.ref_logps = np.full((len(self), len(sample.ref_logps)), np.nan, np.float32)
                self.ref_logps[row] = sample.ref_logps
        self.replace(sequences)
        for name, given in values.items():
            array = as_column(list(given.values()))
            self.column(name, array.dtype)[list(given)] = array
        if prompts:
            self.prompts = np.zeros((len(self), 2), np.int64) if self.prompts is None else self.prompts
            ends = np.cumsum([len(self.ids), *[len(ids) for _, ids in prompts]]).tolist()
            for (row, ids), begin in zip(prompts, ends, strict=False):
                self.prompts[row] = begin, len(ids)
            self.ids = np.concatenate([self.ids, *[ids for _, ids in prompts]], dtype=np.int32, casting="no")

    def replace(self, sequences: Many[tuple[int, int, Sequence]]) -> None:
        """Sets some sequences, given as (row, side, sequence); their tokens are added to `ids`."""
        end = len(self.ids)
        for row, side, sequence in sequences:
            length = len(sequence.ids)
            self.begins[row, side], self.lengths[row, side] = end, length
            self.lost[row, side] = sequence.lost
            self.set_spans(row, side, sequence.spans)
            end += length
        self.ids = np.concatenate([self.ids, *[one.ids for _, _, one in sequences]], dtype=np.int32, casting="no")

    def column(self, name: str, dtype: Any) -> NDArray[Any]:
        """Returns one of `columns`, with values for no row if there was none of this name."""
        if name not in self.columns:
            self.columns[name] = _no_values(len(self), dtype)
        return self.columns[name]

    def set_spans(self, row: int, side: int, spans: Many[Span]) -> None:
        """Sets the spans of a sequence."""
        self.spans[row, side] = spans[0] if spans else _NO_SPAN
        self.more.pop((row, side), None)
        if len(spans) > 1:
            self.more[row, side] = tuple(spans)

    def refuse(self, row: int, error: RowError) -> None:
        """Makes a row a bad one; the first error of a row is kept."""
        self.errors.setdefault(row, error.as_value())
        for side in range(self.sides if self.more else 0):
            self.more.pop((row, side), None)
        self.scores.pop(row, None)
        self.lengths[row], self.spans[row], self.lost[row] = 0, 0, 0

    def __len__(self) -> int:
        return len(self.notes)

    @property
    def sides(self) -> int:
        """How many sequences a row has (S)."""
        return self.begins.shape[1]

    @property
    def good(self) -> NDArray[np.bool_]:
        """(n,) bool, whether a row has a sample."""
        good = np.ones(len(self), np.bool_)
        if self.errors:
            good[list(self.errors)] = False
        return good

    @property
    def longest(self) -> NDArray[np.int64]:
        """(n,) int64, see `Sample.length`; 0 for a bad row."""
        found: NDArray[np.int64] = np.maximum.reduce(self.lengths, axis=1)
        return found

    @property
    def totals(self) -> NDArray[np.int64]:
        """(n,) int64, the tokens of all its sequences: what a sample takes of a packed row; 0 for a bad row."""
        found: NDArray[np.int64] = self.lengths.sum(axis=1)
        return found

    def take(self, rows: NDArray[np.int64] | Many[int] | slice) -> Block:
        """Returns some rows, in this order; `ids` is shared, and all arrays are if the rows are a slice."""
        if not isinstance(rows, slice):
            rows = np.asarray(rows, np.int64)
        is_plain = not (self.more or self.errors or self.unread or self.scores)
        places = [] if is_plain else list(enumerate(np.arange(len(self))[rows].tolist()))
        both = [(to, at, side) for to, at in places for side in range(self.sides)] if self.more else []
        more = {(to, side): self.more[at, side] for to, at, side in both if (at, side) in self.more}
        return Block(
            self.ids,
            self.begins[rows],
            self.lengths[rows],
            self.spans[rows],
            self.lost[rows],
            self.notes[rows],
            more,
            {to: self.errors[at] for to, at in places if at in self.errors},
            {to: self.unread[at] for to, at in places if at in self.unread},
            prompts=None if self.prompts is None else self.prompts[rows],
            ref_logps=None if self.ref_logps is None else self.ref_logps[rows],
            columns={name: values[rows] for name, values in self.columns.items()},
            scores={to: self.scores[at] for to, at in places if at in self.scores},
        )

    def compact(self) -> None:
        """Drops the tokens that no row has, where they are most of `ids`: long rows that were cut or refused."""
        parts = [np.stack([self.begins, self.lengths], axis=-1).reshape(-1, 2)]
        if self.prompts is not None:
            parts.append(np.where(self.good[:, None], self.prompts, 0))
        begins, lengths = np.concatenate(parts).T
        ends = np.cumsum(lengths)
        if 2 * lengths.sum() >= len(self.ids):
            return
        self.ids = self.ids[runs(begins, lengths)]
        sequences = self.begins.size
        self.begins = (ends - lengths)[:sequences].reshape(self.begins.shape)
        if self.prompts is not None:
            self.prompts = np.stack([ends - lengths, lengths], axis=1)[sequences:]

    @classmethod
    def join(cls, blocks: Many[Block]) -> Block:
        """Returns the rows of several blocks with equally many sequences a row, one block after the other."""
        if len(blocks) == 1:
            return blocks[0]
        firsts = np.cumsum([0, *map(len, blocks)]).tolist()
        joined = cls.empty(firsts[-1], max((block.sides for block in blocks), default=1))
        is_shared = len({id(block.ids) for block in blocks}) == 1  # parts of one block
        end = 0
        for first, last, block in zip(firsts, firsts[1:], blocks, strict=False):
            joined.begins[first:last] = block.begins + end
            for name in ("lengths", "spans", "lost", "notes"):
                getattr(joined, name)[first:last] = getattr(block, name)
            if block.prompts is not None:
                joined.prompts = np.zeros((len(joined), 2), np.int64) if joined.prompts is None else joined.prompts
                joined.prompts[first:last] = block.prompts + np.array([end, 0])
            if block.ref_logps is not None:
                if joined.ref_logps is None:
                    joined.ref_logps = np.full((len(joined), block.ref_logps.shape[1]), np.nan, np.float32)
                joined.ref_logps[first:last] = block.ref_logps
            joined.more |= {(first + row, side): spans for (row, side), spans in block.more.items()}
            joined.errors |= {first + row: error for row, error in block.errors.items()}
            joined.scores |= {first + row: scores for row, scores in block.scores.items()}
            joined.unread |= {first + row: fields for row, fields in block.unread.items()}
            end += 0 if is_shared else len(block.ids)
        joined.ids = blocks[0].ids if is_shared else np.concatenate([joined.ids, *[block.ids for block in blocks]])
        for name in dict.fromkeys(name for block in blocks for name in block.columns):
            dtype = np.result_type(*[block.columns[name] for block in blocks if name in block.columns])
            parts = [block.columns.get(name, _no_values(len(block), dtype)) for block in blocks]
            joined.columns[name] = np.concatenate(parts)
        return joined

    def arrays(self, side: int) -> list[Ids]:
        """Returns the ids of a sequence of every row, as parts of `ids`."""
        begins, lengths = self.begins[:, side], self.lengths[:, side]
        return [self.ids[begin:end] for begin, end in zip(begins.tolist(), (begins + lengths).tolist(), strict=True)]

    def spans_of(self, row: int, side: int) -> tuple[Span, ...]:
        """Returns the spans of a sequence."""
        several = self.more.get((row, side))
        if several is not None:
            return several
        begin, end = self.spans[row, side].tolist()
        return ((begin, end),) if begin < end else ()

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return self.take(row)
        row = range(len(self))[row]
        error, notes, unread = self.errors.get(row), Note(int(self.notes[row])), self.unread.get(row, ())
        if error is not None:
            return Loaded(None, error, notes, unread)
        begins, lengths, lost = self.begins[row].tolist(), self.lengths[row].tolist(), self.lost[row].tolist()
        sequences = tuple(
            Sequence(self.ids[begin : begin + length], self.spans_of(row, side), bool(flags & 1), bool(flags & 2))
            for side, (begin, length, flags) in enumerate(zip(begins, lengths, lost, strict=True))
        )
        columns = {name: _plain(values[row]) for name, values in self.columns.items()}
        prompt = None
        if self.prompts is not None:
            begin, length = self.prompts[row].tolist()
            prompt = self.ids[begin : begin + length]
        ref_logps: Any = None if self.ref_logps is None else tuple(self.ref_logps[row].tolist())
        given = {name: value for name, value in columns.items() if value == value}  # NaN stands for none
        sample = Sample(sequences, prompt, given, ref_logps, self.scores.get(row))
        return Loaded(sample, None, notes, unread)

    def __iter__(self) -> Iterator[Loaded]:
        return map(self.__getitem__, range(len(self)))


def as_column(values: Many[Any]) -> NDArray[Any]:
    """Returns the values of some rows as one of `Block.columns`: strings as objects."""
    return np.array(values, object if values and isinstance(values[0], str) else None)


def _no_values(rows: int, dtype: Any) -> NDArray[Any]:
    """Returns a column without a value for any row."""
    return np.full(rows, _MISSING[np.dtype(dtype).kind], dtype)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def runs(firsts: NDArray[np.integer[Any]], lengths: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Concatenates ranges: firsts 5 0, lengths 3 2 -> 5 6 7 0 1; int64."""
    numbers: NDArray[np.int64] = np.repeat(firsts - (np.cumsum(lengths) - lengths), lengths)
    numbers += np.arange(len(numbers))
    return numbers


class Ready(NamedTuple):
    """A row that was made into a sample before, as a cache holds it.

    Attributes:
        sample: The sample.
        notes: What reports count about it; a `Note` as a number.
    """

    sample: Sample
    notes: int
