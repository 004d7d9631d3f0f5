"""Where a prompt may be cut: what must stay, its turns, and the characters at which its text can be divided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.encode.encoder import ConversationEncoder, Encoded
from ms_prefstream.encode.layout import Kind
from ms_prefstream.encode.offsets import tokens_before, tokens_until
from ms_prefstream.tasks.sample import Ids, Span

Points: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int64]]
"""(token positions, character offsets) at which a text can be divided."""


class Turn(NamedTuple):
    """Token range of one prompt message and of its text.

    Attributes:
        begin: Its first token, header included.
        body: First token of its content.
        body_end: Behind the last token of its content.
        end: Behind its last token.
        opens: Whether an exchange begins with it (a user message).
        divisible: Whether its text can be cut.
        pinned: Whether the template wrote the system message into its header, which must stay then.
    """

    begin: int
    body: int
    body_end: int
    end: int
    opens: bool
    divisible: bool
    pinned: bool = False


@dataclass(slots=True)
class CutMap:
    """What truncation needs to know about one encoded conversation.

    Attributes:
        keep: Leading tokens that always stay: BOS, the template's or the row's system message.
        turns: The other prompt messages in order.
        floor: What is left when everything else is gone: BOS, system message and generation header.
        prompt: Where the response begins.
        points: For a turn: where its content can be divided.
        clean: Largest position <= the given one at which the response can be cut without splitting a character.
    """

    keep: int
    turns: list[Turn]
    floor: tuple[Span, ...]
    prompt: int
    points: Callable[[Turn], Points]
    clean: Callable[[int], int]

    @property
    def least(self) -> int:
        """Tokens of the floor."""
        return sum(end - begin for begin, end in self.floor)


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
        self._all = encoded.ids()

    def ids(self, index: int) -> Ids:
        """The ids of a unit."""
        return self._all[self.offsets[index] : self.offsets[index + 1]]

    def starts(self, index: int) -> NDArray[np.int64]:
        """Where the tokens of a unit begin, in characters of the unit."""
        unit = self.units[index]
        if unit.control >= 0:
            return np.array([0, len(unit.pieces[0].text or "")], np.int64)
        return self._encoder.starts(unit, self._encoded.laid.contents)

    def bounds(self, index: int) -> list[int]:
        """(pieces + 1) token positions inside a unit; a token that straddles belongs to the content beside it."""
        unit, ids = self.units[index], self.ids(index)
        if all(piece.kind is Kind.PREAMBLE for piece in unit.pieces):
            return [0] + [len(ids)] * len(unit.pieces)  # stays as a whole
        if len(unit.pieces) == 1:
            return [0, len(ids)]
        if len(unit.pieces) == 2 and unit.border == 1 and unit.head is not None:
            size = len(unit.head)
            if tuple(ids[:size].tolist()) == unit.head:  # the usual header and content: no offsets needed
                return [0, size, len(ids)]
        starts = self.starts(index)
        bounds = [0]
        for at, (piece, behind) in enumerate(zip(unit.pieces, unit.pieces[1:], strict=False), 1):
            characters = len(unit.text(self._encoded.laid.contents, 0, at))
            into_next = piece.kind is not Kind.BODY or behind.kind is Kind.BODY
            bound = tokens_before(starts, characters) if into_next else tokens_until(starts, characters)
            bounds.append(max(bounds[-1], bound))
        return [*bounds, len(ids)]

    def points(self, index: int, begin: int, end: int) -> Points:
        """Where the tokens [begin, end) of a unit can be divided."""
        starts = self.starts(index)
        first = int(self.offsets[index])
        inside = np.arange(begin - first, end - first + 1)
        inside = inside[starts[inside] >= 0]
        return inside + first, starts[inside]

    def clean(self, position: int) -> int:
        """The largest position up to this one at which a character begins."""
        index = int(np.searchsorted(self.offsets, position, side="right")) - 1
        first = int(self.offsets[index])
        if position == first:
            return position
        starts = self.starts(index)
        return first + int(np.flatnonzero(starts[: position - first + 1] >= 0)[-1])


class _Spot:
    """A prompt message while its pieces are collected: token positions, and the units that hold its content."""

    def __init__(self, begin: int) -> None:
        self.begin = self.body = self.body_end = self.end = begin
        self.units: list[int] = []
        self.pinned = False

    def add(self, unit: int, kind: Kind, begin: int, end: int) -> None:
        self.end = end
        if kind is Kind.BODY:
            self.body = self.body if self.units else begin
            self.body_end = end
            self.units.append(unit)
        elif not self.units:
            self.body = self.body_end = end

    def turn(self, opens: bool) -> Turn:
        divisible = len(set(self.units)) == 1 and self.body < self.body_end
        return Turn(self.begin, self.body, self.body_end, self.end, opens, divisible, self.pinned)


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
        bounds = units.bounds(index)
        for at, piece in enumerate(unit.pieces):
            begin, end = first + bounds[at], first + bounds[at + 1]
            if piece.owner >= layout.prompt_messages:
                header += unit.text(encoded.laid.contents, at, at + 1) if piece.kind is Kind.HEAD else ""
            elif piece.kind is not Kind.PREAMBLE:
                current = spots.setdefault(piece.owner, _Spot(begin))
                current.add(index, piece.kind, begin, end)
            elif current is None:
                keep = end
            else:  # a system message inside the header of this turn
                current.pinned = True
                current.add(index, Kind.HEAD, begin, end)
    turns = [spot.turn(layout.roles[owner] == "user") for owner, spot in spots.items()]
    where = {turn: spot.units[0] for turn, spot in zip(turns, spots.values(), strict=True) if spot.units}
    return CutMap(
        keep,
        turns,
        _floor(keep, turns, encoded.prompt, bool(header.strip())),
        encoded.prompt,
        lambda turn: units.points(where[turn], turn.body, turn.body_end),
        lambda position: max(units.clean(position), encoded.prompt),
    )


def _floor(keep: int, turns: list[Turn], prompt: int, has_header: bool) -> tuple[Span, ...]:
    """What is left of a prompt without any of its turns' text.

    Where the template has no header of its own for answers ([INST] style), the frame of the last turn serves as one.
    """
    ranges = [(0, keep)]
    ranges += [(turn.begin, turn.body) for turn in turns if turn.pinned or (turn is turns[-1] and not has_header)]
    if not turns:
        ranges.append((keep, prompt))
    else:
        ranges.append((turns[-1].end if has_header and not turns[-1].pinned else turns[-1].body_end, prompt))
    return tuple(ranges)


def token_cut_map(prompt: int) -> CutMap:
    """The cut map of a row that came as ids: one turn, to be divided anywhere."""
    positions = np.arange(prompt + 1)
    turns = [Turn(0, 0, prompt, prompt, opens=True, divisible=True)] if prompt else []
    return CutMap(0, turns, (), prompt, lambda _: (positions, positions), lambda position: position)
