"""Encoded conversations: joined with a dozen array operations where their layout is a usual one, else one by one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.encode.backends.base import FlatIds, Place, TextEncoder
from ms_prefstream.encode.layout import LaidOut, Layout
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

    `tickets` holds the ticket of each open step. `heads` holds the ticket of the text before the response, for steps in
    which that text is not fixed; `rests` the ticket of the text after it (inference boundary only).
    """

    __slots__ = ("heads", "laid", "rests", "tickets")

    def __init__(self, laid: LaidOut, tickets: list[int]) -> None:
        self.laid = laid
        self.tickets = tickets
        self.heads: Mapping[int, int] = _NO_TICKETS
        self.rests: Mapping[int, int] = _NO_TICKETS


Drafts: TypeAlias = tuple[Draft, ...]


class Encodings(Sequence[tuple[Encoded, ...] | RowError]):
    """Encoded records: one by one as `Encoded`, or all of them as a `Block`.

    Args:
        drafts: The conversations of each record, or why there are none.
        results: The ids of each ticket.
        assemble: See `ConversationEncoder.assemble`, and `is_usual` there.
        is_usual: Whether conversations of a layout are assembled together.
    """

    def __init__(
        self,
        drafts: Sequence[Drafts | RowError],
        results: FlatIds,
        assemble: Callable[[Draft, Sequence[Ids]], Encoded],
        is_usual: Callable[[Layout], bool],
    ) -> None:
        self._drafts, self._results, self._assemble, self._is_usual = drafts, results, assemble, is_usual

    def __len__(self) -> int:
        return len(self._drafts)

    def __getitem__(self, record: Any) -> Any:
        drafts = self._drafts[record]
        if isinstance(drafts, RowError):
            return drafts
        return tuple([self._assemble(draft, self._results) for draft in drafts])

    def block(self) -> tuple[Block, NDArray[np.int64]]:
        """Returns the conversations of all records, two a record, and how many tokens of each are the prompt.

        The second array, (n, 2) int64, has -1 where a record has no such conversation.
        """
        block = Block.empty(len(self), 2)
        layouts: dict[Layout, _Alike] = {}
        for row, drafts in enumerate(self._drafts):
            if isinstance(drafts, RowError):
                block.refuse(row, drafts)
                continue
            place = 2 * row
            for draft in drafts:
                laid = draft.laid
                alike = layouts.get(laid.layout)
                if alike is None:
                    alike = layouts[laid.layout] = _Alike([], [], laid.notes & ~Note.MARKERS)
                alike.places.append(place)
                alike.drafts.append(draft)
                place += 1
                if laid.notes is not alike.notes or laid.rewritten or laid.unread:
                    _note(block, row, laid)
        prompts = np.full((len(self), 2), -1, np.int64)
        joined = _Joined(self._results, block, prompts)
        others: list[tuple[int, Draft]] = []
        for layout, (places, drafts_, notes) in layouts.items():
            if notes:
                block.notes[np.array(places) // 2] |= int(notes)
            if len(places) < _TOGETHER or not self._is_usual(layout):
                others += zip(places, drafts_, strict=True)
            else:
                is_other = joined.add(layout, places, [draft.tickets for draft in drafts_])
                others += [(places[at], drafts_[at]) for at in np.flatnonzero(is_other).tolist()]
        joined.finish()
        sequences: list[tuple[int, int, TokenSequence]] = []
        for place, draft in others:
            row, side = divmod(place, 2)
            one = self._assemble(draft, self._results)
            sequences.append((row, side, TokenSequence(one.ids, one.spans)))
            prompts[row, side] = one.prompt
            if one.differs:
                block.notes[row] |= Note.BOUNDARY_DIFFERS
        block.replace(sequences)
        return block, prompts


class _Alike(NamedTuple):
    """Conversations of one layout.

    Attributes:
        places: 2 * record + side of each.
        drafts: The draft of each.
        notes: What the layout says of all of them.
    """

    places: list[int]
    drafts: list[Draft]
    notes: Note


class _Joined:
    """The conversations of the usual layouts, joined in a block.

    A conversation is a row of segments, one a step: parts of an array of all results and all known ids.
    """

    def __init__(self, results: FlatIds, block: Block, prompts: NDArray[np.int64]) -> None:
        self._results, self._block, self._prompts = results, block, prompts
        self._sources, self._end = [results.ids], len(results.ids)
        self._segments: list[NDArray[np.int64]] = []  # (2, conversations, steps), begin in the sources and length
        self._joined = 0  # tokens

    def add(self, layout: Layout, places: Sequence[int], tickets: Sequence[Sequence[int]]) -> NDArray[np.bool_]:
        """Adds conversations of a layout.

        Returns:
            Which of them must be assembled one by one: those whose answer does not begin with the ids of its head, so
            that the response border is not at the end of these (see `ConversationEncoder._response_border`).
        """
        parts = layout.parts
        segments = np.empty((2, len(places), len(parts)), np.int64)
        table = np.array(tickets, np.int64).reshape(len(places), len(layout.open))
        for at, part in enumerate(parts):
            if isinstance(part, int):
                segments[0, :, at] = self._results.begins[table[:, part]]
                segments[1, :, at] = self._results.lengths[table[:, part]]
                continue
            segments[:, :, at] = np.array([[self._end], [len(part)]])
            self._sources.append(part)
            self._end += len(part)
        is_other = np.zeros(len(places), np.bool_)
        if layout.answer is not None:
            at, head, trained = layout.answer
            is_other = ~self._begins_with(head, *segments[:, :, at])
            segments = segments[:, ~is_other]
        lengths = segments[1].sum(axis=1)
        row, side = np.divmod(np.array(places)[~is_other], 2)
        ends = np.cumsum(lengths) + self._joined
        block = self._block
        block.begins[row, side], block.lengths[row, side] = ends - lengths, lengths
        self._prompts[row, side] = lengths
        if layout.answer is not None:
            first = segments[1, :, :at].sum(axis=1)
            begin, last = first + len(head), first + segments[1, :, at] + trained
            block.spans[row, side] = np.where(begin < last, (begin, last), 0).T
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
        block.unread[row] = tuple(dict.fromkeys((*block.unread.get(row, ()), *laid.unread)))


class Texts:
    """A batch of texts; a ticket is an index into the result of `encode`."""

    def __init__(self) -> None:
        self._size = 0
        self._by_place: dict[Place, dict[str, int]] = {}  # text -> ticket
        self._place: Place | None = None  # the place of the last text, and its tickets
        self._texts: dict[str, int] = {}
        self._known: dict[int, Ids] = {}

    def add(self, text: str, place: Place) -> int:
        """Adds a text at a place; returns its ticket."""
        if place is not self._place:
            self._place = place
            self._texts = self._by_place.setdefault(place, {})
        ticket = self._texts.setdefault(text, self._size)
        if ticket == self._size:
            self._size += 1
        return ticket

    def add_known(self, ids: Ids) -> int:
        """Adds ids that need no encoding; returns their ticket."""
        self._known[self._size] = ids
        self._size += 1
        return self._size - 1

    def encode(self, encoder: TextEncoder) -> FlatIds:
        """Returns the ids of every ticket."""
        if len(self._by_place) == 1 and not self._known:
            return FlatIds.of(encoder.encode(list(self._texts), self._place or Place.START))
        begins, lengths = np.zeros((2, self._size), np.int64)
        parts, end = [np.empty(0, np.int32)], 0
        found = [
            (list(tickets.values()), FlatIds.of(encoder.encode(list(tickets), place)))
            for place, tickets in self._by_place.items()
        ]
        for at, flat in [*found, (list(self._known), FlatIds.of(list(self._known.values())))]:
            begins[at], lengths[at] = flat.begins + end, flat.lengths
            parts.append(flat.ids)
            end += len(flat.ids)
        return FlatIds(np.concatenate(parts), begins, lengths)
