"""Encoded conversations: joined with a dozen array operations where their layout is a usual one, else one by one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.encode.backends.base import FlatIds, Place, TextEncoder
from ms_prefstream.encode.columns import Alike
from ms_prefstream.encode.layout import LaidOut, Layout, Stretch
from ms_prefstream.errors import RowError
from ms_prefstream.sample import Block, Ids, Note, Span, runs
from ms_prefstream.sample import Sequence as TokenSequence

_NONE = np.empty(0, np.int32)
_NO_TICKETS: Mapping[int, int] = {}
_TOGETHER = 4  # conversations of one layout that are worth array operations


@dataclass
class Encoded:
    """One conversation as ids, not cut yet.

    Attributes:
        laid: Its layout and contents.
        arrays: int32 ids of each step of the layout.
        prompt: Tokens of the prompt, generation header included.
        length: Tokens in all.
        spans: Token ranges under the loss: the response and its end of turn.
        differs: Whether the prompt's ids at generation time are not a prefix of the joint encoding.
    """

    laid: LaidOut
    arrays: list[Ids]
    prompt: int
    length: int
    spans: tuple[Span, ...]
    differs: bool

    @functools.cached_property
    def ids(self) -> Ids:
        """(length,) int32."""
        return np.concatenate(self.arrays) if self.arrays else _NONE


class Draft:
    """A conversation whose texts are still to be encoded.

    `tickets` holds the ticket of each of the layout's texts. `heads` holds the ticket of the text before the response,
    for steps in which that text is not fixed; `rests` the ticket of the text after it (inference boundary only).
    """

    __slots__ = ("heads", "laid", "rests", "tickets")

    def __init__(self, laid: LaidOut, tickets: list[int]) -> None:
        self.laid = laid
        self.tickets = tickets
        self.heads: Mapping[int, int] = _NO_TICKETS
        self.rests: Mapping[int, int] = _NO_TICKETS


Drafts: TypeAlias = tuple[Draft, ...]

Ticketed: TypeAlias = tuple[Alike, NDArray[np.int64]]
"""n conversations of one layout, and the tickets of their texts, (n, texts)."""


class Encodings(Sequence[tuple[Encoded, ...] | RowError]):
    """Encoded records: one by one as `Encoded`, or all of them as a `Block`.

    Args:
        records: How many there are.
        drafts: The conversations, or why there are none, of the records that are not in `columns`.
        columns: The conversations of the others.
        results: The ids of each ticket.
        assemble: See `ConversationEncoder.assemble`, and `is_usual` there.
        is_usual: Whether conversations of a layout are assembled together.
    """

    def __init__(
        self,
        records: int,
        drafts: Mapping[int, Drafts | RowError],
        columns: Sequence[Ticketed],
        results: FlatIds,
        assemble: Callable[[Draft, Sequence[Ids]], Encoded],
        is_usual: Callable[[Layout], bool],
    ) -> None:
        self._size, self._drafts, self._columns, self._results = records, drafts, columns, results
        self._assemble, self._is_usual = assemble, is_usual

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, record: Any) -> Any:
        drafts = self._drafts_of(range(len(self))[record])
        if isinstance(drafts, RowError):
            return drafts
        return tuple([self._assemble(draft, self._results) for draft in drafts])

    def _drafts_of(self, record: int) -> Drafts | RowError:
        if record in self._drafts:
            return self._drafts[record]
        sides: dict[int, Draft] = {}
        for (layout, columns, rewritten, notes, unread), tickets in self._columns:
            for at in np.flatnonzero(columns.records == record).tolist():
                contents = [column[at] for column in columns.contents]
                laid = LaidOut(layout, contents, bool(rewritten[at]), notes, unread)
                sides[int(columns.sides[at])] = Draft(laid, tickets[at].tolist())
        return tuple([sides[side] for side in range(len(sides))])

    def block(self) -> tuple[Block, NDArray[np.int64]]:
        """Returns the conversations of all records, two a record, and how many tokens of each are the prompt.

        The second array, (n, 2) int64, has -1 where a record has no such conversation.
        """
        block, prompts = Block.empty(len(self), 2), np.full((len(self), 2), -1, np.int64)
        joined = _Joined(self._results, block, prompts)
        others: list[tuple[int, int]] = []
        for alike, tickets in self._columns:
            rows, sides = alike.columns.records, alike.columns.sides
            np.bitwise_or.at(block.notes, rows, int(alike.notes) | alike.rewritten * int(Note.REWRITTEN))
            for row in rows.tolist() if alike.unread else ():
                _add_unread(block, row, alike.unread)
            is_other = joined.add(alike.layout, rows, sides, tickets)
            others += zip(rows[is_other].tolist(), sides[is_other].tolist(), strict=True)
        others += self._add_drafts(joined, block)
        joined.finish()
        sequences: list[tuple[int, int, TokenSequence]] = []
        for row, side in others:
            drafts = self._drafts_of(row)
            assert not isinstance(drafts, RowError)  # a refused one has no conversations
            one = self._assemble(drafts[side], self._results)
            sequences.append((row, side, TokenSequence(one.ids, one.spans)))
            prompts[row, side] = one.prompt
            if one.differs:
                block.notes[row] |= Note.BOUNDARY_DIFFERS
        block.replace(sequences)
        return block, prompts

    def _add_drafts(self, joined: _Joined, block: Block) -> Iterator[tuple[int, int]]:
        """Adds the conversations of drafts; yields row and side of those that must be assembled one by one."""
        layouts: dict[Layout, tuple[list[int], list[int], list[Sequence[int]]]] = {}
        for row, drafts in self._drafts.items():
            if isinstance(drafts, RowError):
                block.refuse(row, drafts)
                continue
            for side, draft in enumerate(drafts):
                laid = draft.laid
                alike = layouts.setdefault(laid.layout, ([], [], []))
                alike[0].append(row)
                alike[1].append(side)
                alike[2].append(draft.tickets)
                if laid.notes or laid.rewritten or laid.unread:
                    _note(block, row, laid)
        for layout, (rows, sides, tickets) in layouts.items():
            is_other = np.ones(len(rows), np.bool_)
            if len(rows) >= _TOGETHER and self._is_usual(layout):
                table = np.array(tickets, np.int64).reshape(len(rows), len(layout.texts))
                is_other = joined.add(layout, np.array(rows), np.array(sides), table)
            for at in np.flatnonzero(is_other).tolist():
                yield rows[at], sides[at]


class _Joined:
    """The conversations of the usual layouts, joined in a block.

    A conversation is a row of segments, one a step: parts of an array of all results and all known ids.
    """

    def __init__(self, results: FlatIds, block: Block, prompts: NDArray[np.int64]) -> None:
        self._results, self._block, self._prompts = results, block, prompts
        self._sources, self._end = [results.ids], len(results.ids)
        self._segments: list[NDArray[np.int64]] = []  # (2, conversations, steps), begin in the sources and length
        self._joined = 0  # tokens

    def add(
        self, layout: Layout, rows: NDArray[np.int64], sides: NDArray[np.int64], tickets: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Adds n conversations of a layout, given by row, side and the tickets, (n, texts), of its texts.

        Returns:
            (n,), which of them must be assembled one by one: those whose answer does not begin with the ids of its
            head, so that the response border is not at the end of these (see `ConversationEncoder._response_border`).
        """
        parts = layout.parts
        segments = np.empty((2, len(rows), len(parts)), np.int64)
        for at, part in enumerate(parts):
            if isinstance(part, int):
                segments[0, :, at] = self._results.begins[tickets[:, part]]
                segments[1, :, at] = self._results.lengths[tickets[:, part]]
                continue
            segments[:, :, at] = np.array([[self._end], [len(part)]])
            self._sources.append(part)
            self._end += len(part)
        is_other = np.zeros(len(rows), np.bool_)
        if layout.answer is not None:
            first, last, border, at, head, trained = layout.answer
            is_other = ~self._begins_with(head, *segments[:, :, at])
            segments = segments[:, ~is_other]
        lengths = segments[1].sum(axis=1)
        row, side = rows[~is_other], sides[~is_other]
        ends = np.cumsum(lengths) + self._joined
        block = self._block
        block.begins[row, side], block.lengths[row, side] = ends - lengths, lengths
        self._prompts[row, side] = lengths
        if layout.answer is not None:
            begin = segments[1, :, :first].sum(axis=1) + border
            end = segments[1, :, :last].sum(axis=1) + trained
            block.spans[row, side] = np.where(begin < end, (begin, end), 0).T
            self._prompts[row, side] = begin
        if layout.differs:
            block.notes[row] |= Note.BOUNDARY_DIFFERS
        self._segments.append(segments.reshape(2, -1))
        self._joined += int(lengths.sum())
        return is_other

    def _begins_with(
        self, head: Sequence[int], begins: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Returns (n,) bool, whether these results begin with the ids of the head."""
        found = lengths >= len(head)
        for at, id_ in enumerate(head if len(self._results.ids) else ()):
            found &= self._results.ids[np.minimum(begins + at, len(self._results.ids) - 1)] == id_
        return found

    def finish(self) -> None:
        """Sets the ids of the block."""
        if not self._segments:
            return
        places = runs(*np.concatenate(self._segments, axis=1))
        self._block.ids = np.concatenate(self._sources).take(places)


def _note(block: Block, row: int, laid: LaidOut) -> None:
    """Notes on a row what its template did with a conversation."""
    block.notes[row] |= int(laid.notes | (Note.REWRITTEN if laid.rewritten else Note.NONE))
    if laid.unread:
        _add_unread(block, row, laid.unread)


def _add_unread(block: Block, row: int, names: tuple[str, ...]) -> None:
    """Notes on a row the fields that its template does not write."""
    known = block.unread.get(row, names)
    block.unread[row] = names if known == names else tuple(dict.fromkeys((*known, *names)))


class _AtPlace(NamedTuple):
    """The texts at one place, in order, their tickets, and the tickets by text of those that may repeat."""

    texts: list[str]
    tickets: list[int]
    known: dict[str, int]


class Texts:
    """A batch of texts; a ticket is an index into the result of `encode`."""

    def __init__(self) -> None:
        self._size = 0
        self._by_place: dict[Place, _AtPlace] = {}
        self._known: dict[int, Ids] = {}

    def add(self, text: str, place: Place) -> int:
        """Adds a text at a place; returns its ticket, the same for the same text."""
        return self._add(text, self._at(place))

    def _add(self, text: str, at: _AtPlace) -> int:
        size = self._size
        ticket = at.known.setdefault(text, size)
        if ticket == size:
            at.texts.append(text)
            at.tickets.append(size)
            self._size += 1
        return ticket

    def add_column(
        self, stretch: Stretch, contents: Sequence[Sequence[str]], add: Callable[[str], int] | None = None
    ) -> NDArray[np.int64]:
        """Adds the texts of a stretch for many conversations; returns their tickets, (n,).

        They are the same for the same content objects. Both sides of a pair have the objects of their prompt in common;
        comparing texts would cost more than it saves. Only texts with several contents are compared.

        Args:
            stretch: The stretch.
            contents: For each slot of the layout the n contents.
            add: Adds one text and returns its ticket; None adds them here.
        """
        if len(stretch.slots) != 1:
            return self._add_texts(stretch, contents, add)
        (slot,), (before, after) = stretch.slots, stretch.texts
        column, at = contents[slot], self._at(stretch.place)
        ids, distinct = list(map(id, column)), dict(zip(map(id, column), column, strict=True))
        if add is not None:
            numbers = {key: add(before + content + after) for key, content in distinct.items()}
        else:
            numbers = dict(zip(distinct, range(self._size, self._size + len(distinct)), strict=True))
            is_bare = not (before or after)
            at.texts.extend(distinct.values() if is_bare else [before + one + after for one in distinct.values()])
            at.tickets.extend(numbers.values())
            self._size += len(distinct)
        return np.fromiter(map(numbers.__getitem__, ids), np.int64, len(ids))

    def _add_texts(
        self, stretch: Stretch, contents: Sequence[Sequence[str]], add: Callable[[str], int] | None
    ) -> NDArray[np.int64]:
        """Adds the texts of a stretch with several contents."""
        columns = [contents[slot] for slot in stretch.slots]
        pattern = "%s".join([text.replace("%", "%%") for text in stretch.texts])
        at = self._at(stretch.place)
        numbers: dict[tuple[int, ...], int] = {}
        keys = list(zip(*[map(id, column) for column in columns], strict=True))
        for key, one in dict(zip(keys, zip(*columns, strict=True), strict=True)).items():
            numbers[key] = self._add(pattern % one, at) if add is None else add(pattern % one)
        return np.fromiter(map(numbers.__getitem__, keys), np.int64, len(keys))

    def add_known(self, ids: Ids) -> int:
        """Adds ids that need no encoding; returns their ticket."""
        self._known[self._size] = ids
        self._size += 1
        return self._size - 1

    def _at(self, place: Place) -> _AtPlace:
        """Returns the texts at a place."""
        found = self._by_place.get(place)
        if found is None:
            found = self._by_place[place] = _AtPlace([], [], {})
        return found

    def encode(self, encoder: TextEncoder) -> FlatIds:
        """Returns the ids of every ticket."""
        if len(self._by_place) == 1 and not self._known:
            ((place, (texts, *_)),) = self._by_place.items()
            return FlatIds.of(encoder.encode(texts, place))
        begins, lengths = np.zeros((2, self._size), np.int64)
        parts, end = [np.empty(0, np.int32)], 0
        found = [(at, FlatIds.of(encoder.encode(texts, place))) for place, (texts, at, _) in self._by_place.items()]
        for at, flat in [*found, (list(self._known), FlatIds.of(list(self._known.values())))]:
            begins[at], lengths[at] = flat.begins + end, flat.lengths
            parts.append(flat.ids)
            end += len(flat.ids)
        return FlatIds(np.concatenate(parts), begins, lengths)
