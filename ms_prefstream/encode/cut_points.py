"""The cut map of a conversation that a template laid out: its pieces as token positions.

Token starts (character offsets) are computed only for a turn that is cut, or where a header straddles into its content.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.encode.backends.base import Place
from ms_prefstream.encode.encoder import ConversationEncoder, tokens_before, tokens_until
from ms_prefstream.encode.encodings import Encoded
from ms_prefstream.encode.layout import Kind
from ms_prefstream.encode.truncate import CutMap, Points, Turn
from ms_prefstream.errors import RowError
from ms_prefstream.formats.record import Completion, Message
from ms_prefstream.sample import Ids, Span

_TOKENS_A_CHARACTER = 8  # more than any character has


class EncodedCutMap(CutMap):
    """The cut map of an encoded conversation; `_offsets`, (units + 1,), holds the token at which each unit begins."""

    def __init__(self, encoder: ConversationEncoder, encoded: Encoded) -> None:
        super().__init__(encoded.ids, 0, [], encoded.prompt, False)
        self._encoder = encoder
        self._contents = encoded.laid.contents
        layout = encoded.laid.layout
        self._units = layout.units
        sizes: list[int] = []
        for step, ids in zip(layout.steps, encoded.arrays, strict=True):
            if step.ids is None:
                sizes.append(len(ids))
            else:
                sizes += [len(unit.ids) for unit in self._units[step.first : step.last] if unit.ids is not None]
        self._offsets = np.concatenate([[0], np.cumsum(sizes)])
        self._response = layout.prompt_messages
        self._find_turns(layout.prompt_messages, layout.roles)

    def _find_turns(self, prompt_messages: int, roles: tuple[str, ...]) -> None:
        """Sets `keep`, `turns` and `headed` from the pieces of the prompt."""
        turns: dict[int, Turn] = {}
        current: Turn | None = None
        header = ""
        for index, unit in enumerate(self._units):
            first = int(self._offsets[index])
            if first >= self.prompt:
                break
            befores, untils = self._bounds(index)
            for at, piece in enumerate(unit.pieces):
                before = first + befores[at], first + befores[at + 1]
                until = first + untils[at], first + untils[at + 1]
                if piece.owner >= prompt_messages:
                    header += unit.text(self._contents, at, at + 1) if piece.kind is Kind.HEAD else ""
                elif piece.kind is not Kind.PREAMBLE:
                    if piece.owner not in turns:
                        turns[piece.owner] = Turn(before[0], roles[piece.owner] == "user", (index, at))
                    current = turns[piece.owner]
                    _add(current, index, at, piece.kind, before, until)
                elif current is None:
                    self.keep = before[1]
                else:  # a system message inside the header of this turn
                    current.pinned = True
                    _add(current, index, at, Kind.HEAD, before, until)
        self.turns = list(turns.values())
        self.headed = bool(header.strip())

    def _bounds(self, index: int) -> tuple[list[int], list[int]]:
        """Returns for each border of a unit's pieces how many tokens end at or before it, and how many begin before."""
        unit, ids = self._units[index], self.ids[self._offsets[index] : self._offsets[index + 1]]
        if all(piece.kind is Kind.PREAMBLE for piece in unit.pieces):
            whole = [0] + [len(ids)] * len(unit.pieces)  # stays as a whole
            return whole, whole
        if len(unit.pieces) == 1:
            return [0, len(ids)], [0, len(ids)]
        if len(unit.pieces) == 2 and unit.border == 1 and unit.head is not None and self._encoder.keeps_ends:
            before = [0, len(unit.head), len(ids)]
            if tuple(ids[: before[1]].tolist()) == unit.head:  # the usual header and content: no offsets needed
                return before, before
        starts = self._starts(index)
        ends = [len(unit.text(self._contents, 0, at)) for at in range(1, len(unit.pieces))]
        reached = self._encoder.ends(unit, self._contents)
        before = [0, *(tokens_before(reached, end) for end in ends), len(ids)]
        return before, [0, *(tokens_until(starts, end) for end in ends), len(ids)]

    def _starts(self, index: int) -> NDArray[np.int64]:
        """Returns where the tokens of a unit begin, in characters of the unit."""
        unit = self._units[index]
        if unit.control >= 0:
            return np.array([0, len(unit.pieces[0].text or "")], np.int64)
        return self._encoder.starts(unit, self._contents)

    def frame(self, turn: Turn) -> Ids:
        """Returns the header of a turn; it is encoded alone where its last token straddles into the content."""
        if turn.content == turn.body:
            return self.ids[turn.begin : turn.body]
        unit, first = self._units[turn.units[0]], int(self._offsets[turn.units[0]])
        place = Place.CONTINUATION if turn.header[0] else unit.place
        header = self._encoder.ids(unit.text(self._contents, *turn.header), place)
        return np.concatenate([self.ids[turn.begin : max(turn.begin, first)], header])

    def points(self, turn: Turn) -> Points:
        """Returns where the content of a turn can be divided."""
        starts = self._starts(turn.units[0])
        first = int(self._offsets[turn.units[0]])
        inside = np.arange(turn.body - first, turn.body_end - first + 1)
        inside = inside[starts[inside] >= 0]
        return inside + first, starts[inside]

    def clean(self, position: int) -> int:
        """Returns the last position up to this one, but not before the response, at which a character begins."""
        index = int(np.searchsorted(self._offsets, position, side="right")) - 1
        first = int(self._offsets[index])
        last = self.ids[max(first, position - _TOKENS_A_CHARACTER) : position]
        if position > first and self._encoder.decode(last.tolist()).endswith("\ufffd"):
            starts = self._starts(index)
            position = first + int(np.flatnonzero(starts[: position - first + 1] >= 0)[-1])
        return max(position, self.prompt)

    def places(self, content: str) -> NDArray[np.int64]:
        """Returns the token that holds each character of the content of the first response turn, (n,) int64.

        It is -1 for a character that the template leaves out. Of a divided character it is the last token.
        """
        found, begin = np.full(len(content), -1, np.int64), 0
        for index, unit in enumerate(self._units):
            for at, piece in enumerate(unit.pieces):
                if piece.owner != self._response or piece.kind is not Kind.BODY or (piece.text and self._contents):
                    continue  # text that the template adds to the content
                text = unit.text(self._contents, at, at + 1)
                if (at_content := content.find(text, begin)) < 0:
                    continue  # the template joined it with text of its own
                begin = at_content
                first = len(unit.text(self._contents, 0, at))
                starts = self._starts(index)
                tokens = np.flatnonzero(starts >= 0)  # those that begin a character, and the end
                characters = np.arange(first, first + len(text))
                after = np.searchsorted(starts[tokens], characters, side="right")
                is_last = starts[tokens[after]] == characters + 1  # of those that begin in a token: it may be divided
                holding = np.where(is_last, tokens[after] - 1, tokens[after - 1])
                found[begin : begin + len(text)] = self._offsets[index] + holding
                begin += len(text)
        return found


def _add(turn: Turn, unit: int, piece: int, kind: Kind, before: Span, until: Span) -> None:
    """Adds a piece of a unit to a turn: the positions of its two ends, as `_bounds` gives them."""
    turn.end = before[1]
    if kind is Kind.BODY:
        if not turn.units:
            turn.content, turn.body = before[0], until[0]
            turn.header = (turn.first[1] if turn.first[0] == unit else 0, piece)
        turn.tail, turn.body_end = before[1], until[1]
        turn.units.append(unit)
    elif not turn.units:
        turn.content = turn.body = turn.body_end = turn.tail = before[1]


def least_length(encoder: ConversationEncoder) -> int:
    """Returns the smallest useful max_length: the tokens of the template alone, and one of response."""
    question, answer = Message("user", "a"), Message("assistant", "a")
    (found,) = encoder.encode([Completion((question,), (answer,))])
    if isinstance(found, RowError):
        return 1
    return EncodedCutMap(encoder, found[1]).least + 1
