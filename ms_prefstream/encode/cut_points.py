"""The cut map of a conversation: its pieces as token positions; character offsets only of the turn that is cut."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.encode.backends.base import Place
from ms_prefstream.encode.encoder import ConversationEncoder, Encoded, tokens_before, tokens_until
from ms_prefstream.encode.layout import Kind
from ms_prefstream.encode.truncate import CutMap, Points, Turn
from ms_prefstream.sample import Ids, Span

_TOKENS_A_CHARACTER = 8  # more than any character has


class _Units:
    """The units of an encoded conversation with their token positions.

    Attributes:
        offsets: (units + 1,) where each unit begins.
    """

    def __init__(self, encoder: ConversationEncoder, encoded: Encoded) -> None:
        self._encoder = encoder
        self._encoded = encoded
        self.units = encoded.laid.layout.units
        sizes: list[int] = []
        for step, ids in zip(encoded.laid.layout.steps, encoded.arrays, strict=True):
            if step.ids is None:
                sizes.append(len(ids))
            else:
                sizes += [len(unit.ids) for unit in self.units[step.first : step.last] if unit.ids is not None]
        self.offsets = np.concatenate([[0], np.cumsum(sizes)])
        self.all = encoded.ids

    def ids(self, index: int) -> Ids:
        """The ids of a unit."""
        return self.all[self.offsets[index] : self.offsets[index + 1]]

    def starts(self, index: int) -> NDArray[np.int64]:
        """Where the tokens of a unit begin, in characters of the unit."""
        unit = self.units[index]
        if unit.control >= 0:
            return np.array([0, len(unit.pieces[0].text or "")], np.int64)
        return self._encoder.starts(unit, self._encoded.laid.contents)

    def bounds(self, index: int) -> tuple[list[int], list[int]]:
        """Token positions of the borders between the pieces of a unit, its ends included, (pieces + 1) each.

        Returns:
            (before, until): how many tokens end at or before each border, and how many begin before it.
        """
        unit, ids = self.units[index], self.ids(index)
        if all(piece.kind is Kind.PREAMBLE for piece in unit.pieces):
            whole = [0] + [len(ids)] * len(unit.pieces)  # stays as a whole
            return whole, whole
        if len(unit.pieces) == 1:
            return [0, len(ids)], [0, len(ids)]
        if len(unit.pieces) == 2 and unit.border == 1 and unit.head is not None and self._encoder.keeps_ends:
            before = [0, len(unit.head), len(ids)]
            if tuple(ids[: before[1]].tolist()) == unit.head:  # the usual header and content: no offsets needed
                return before, before
        starts = self.starts(index)
        ends = [len(unit.text(self._encoded.laid.contents, 0, at)) for at in range(1, len(unit.pieces))]
        before = [0, *(tokens_before(starts, end) for end in ends), len(ids)]
        return before, [0, *(tokens_until(starts, end) for end in ends), len(ids)]

    def frame(self, turn: Turn) -> Ids:
        """The header of a turn: as it stands there, or by itself where its last token straddles into the content."""
        if turn.content == turn.body:
            return self.all[turn.begin : turn.body]
        unit, first = self.units[turn.unit], int(self.offsets[turn.unit])
        place = Place.CONTINUATION if turn.header[0] else unit.place
        header = self._encoder.ids(unit.text(self._encoded.laid.contents, *turn.header), place)
        return np.concatenate([self.all[turn.begin : max(turn.begin, first)], header])

    def points(self, turn: Turn) -> Points:
        """Where the content of a turn can be divided."""
        starts = self.starts(turn.unit)
        first = int(self.offsets[turn.unit])
        inside = np.arange(turn.body - first, turn.body_end - first + 1)
        inside = inside[starts[inside] >= 0]
        return inside + first, starts[inside]

    def clean(self, position: int) -> int:
        """The largest position up to this one at which a character begins."""
        index = int(np.searchsorted(self.offsets, position, side="right")) - 1
        first = int(self.offsets[index])
        last = self.all[max(first, position - _TOKENS_A_CHARACTER) : position]
        if position == first or not self._encoder.decode(last.tolist()).endswith("\ufffd"):
            return position
        starts = self.starts(index)
        return first + int(np.flatnonzero(starts[: position - first + 1] >= 0)[-1])


class _Spot:
    """A prompt message while its pieces are collected: token positions, and the units that hold its content."""

    def __init__(self, begin: int, unit: int, piece: int) -> None:
        self._first = unit, piece
        self._header = (0, 0)
        self.begin = self.content = self.body = self.body_end = self.tail = self.end = begin
        self.units: list[int] = []
        self.pinned = False

    def add(self, unit: int, piece: int, kind: Kind, before: Span, until: Span) -> None:
        """Add a piece of a unit: the positions of its two ends, as `_Units.bounds` gives them."""
        self.end = before[1]
        if kind is Kind.BODY:
            if not self.units:
                self.content, self.body = before[0], until[0]
                self._header = (self._first[1] if self._first[0] == unit else 0, piece)
            self.tail, self.body_end = before[1], until[1]
            self.units.append(unit)
        elif not self.units:
            self.content = self.body = self.body_end = self.tail = before[1]

    def turn(self, opens: bool) -> Turn:
        divisible = len(set(self.units)) == 1 and self.body < self.body_end
        return Turn(
            self.begin, self.content, self.body, self.body_end, self.tail, self.end,
            opens, divisible, self.pinned, self.units[0] if self.units else -1, self._header,
        )  # fmt: skip


def cut_map(encoder: ConversationEncoder, encoded: Encoded) -> CutMap:
    """The cut map of a conversation that was laid out by a template."""
    layout = encoded.laid.layout
    units = _Units(encoder, encoded)
    spots: dict[int, _Spot] = {}
    current: _Spot | None = None
    keep = 0
    header = ""
    for index, unit in enumerate(layout.units):
        first = int(units.offsets[index])
        if first >= encoded.prompt:
            break
        befores, untils = units.bounds(index)
        for at, piece in enumerate(unit.pieces):
            before = first + befores[at], first + befores[at + 1]
            until = first + untils[at], first + untils[at + 1]
            if piece.owner >= layout.prompt_messages:
                header += unit.text(encoded.laid.contents, at, at + 1) if piece.kind is Kind.HEAD else ""
            elif piece.kind is not Kind.PREAMBLE:
                current = spots.setdefault(piece.owner, _Spot(before[0], index, at))
                current.add(index, at, piece.kind, before, until)
            elif current is None:
                keep = before[1]
            else:  # a system message inside the header of this turn
                current.pinned = True
                current.add(index, at, Kind.HEAD, before, until)
    turns = [spot.turn(layout.roles[owner] == "user") for owner, spot in spots.items()]
    return CutMap(
        units.all,
        keep,
        turns,
        encoded.prompt,
        bool(header.strip()),
        units.frame,
        units.points,
        lambda position: max(units.clean(position), encoded.prompt),
    )
