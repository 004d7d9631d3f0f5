"""Where a prompt may be cut: what must stay, its turns, and the characters at which its text can be divided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.encode.encoder import ConversationEncoder, Encoded, tokens_before
from ms_prefstream.encode.layout import Kind


class Turn(NamedTuple):
    """Token range of one prompt message, and of its text if that can be cut (begin == end: it cannot).

    Attributes:
        owner: Index of the message.
        begin: Its first token, header included.
        body: First token of its content.
        body_end: Behind the last token of its content.
        end: Behind its last token.
        opens: Whether an exchange begins with it (a user message).
    """

    owner: int
    begin: int
    body: int
    body_end: int
    end: int
    opens: bool


@dataclass(slots=True)
class CutMap:
    """What truncation needs to know about one encoded conversation.

    Attributes:
        keep: Leading tokens that always stay: BOS, the template's or the row's system message.
        turns: The other prompt messages in order.
        header: Where the header that makes the model answer begins.
        prompt: Where the response begins.
        points: For a turn: (token positions, character offsets) at which its content can be divided.
        clean: Largest position <= the given one at which the response can be cut without splitting a character.
    """

    keep: int
    turns: list[Turn]
    header: int
    prompt: int
    points: Callable[[Turn], tuple[NDArray[np.int64], NDArray[np.int64]]]
    clean: Callable[[int], int]


def cut_map(encoder: ConversationEncoder, encoded: Encoded) -> CutMap:
    """The cut map of a conversation that was laid out by a template."""
    layout = encoded.laid.layout
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in encoded.arrays])])
    ranges: dict[int, list[int]] = {}  # owner -> [begin, body, body_end, end], token positions
    units: dict[int, list[int]] = {}  # owner -> units that hold its content
    keep = header = 0
    for index, unit in enumerate(layout.units):
        if offsets[index] >= encoded.prompt:
            break
        bounds = _piece_bounds(encoder, encoded, index) + offsets[index]
        for piece, begin, end in zip(unit.pieces, bounds, bounds[1:], strict=False):
            if piece.kind is Kind.PREAMBLE or (piece.owner == 0 and layout.roles[0] == "system"):
                keep = int(end)
            elif piece.owner < layout.prompt_messages:
                spot = ranges.setdefault(piece.owner, [int(begin), int(begin), int(begin), int(end)])
                spot[3] = int(end)
                if piece.kind is Kind.BODY:
                    units.setdefault(piece.owner, []).append(index)
                    if len(units[piece.owner]) == 1:
                        spot[1] = int(begin)
                    spot[2] = int(end)
    header = max([keep, *(spot[3] for spot in ranges.values())])
    turns = []
    for owner, (begin, body, body_end, end) in sorted(ranges.items()):
        whole = len(set(units.get(owner, ()))) == 1
        turns.append(Turn(owner, begin, body, body_end if whole else body, end, layout.roles[owner] == "user"))

    def points(turn: Turn) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        index = units[turn.owner][0]
        starts = encoder.starts(encoded, index)
        first, last = turn.body - offsets[index], turn.body_end - offsets[index]
        inside = np.arange(first, last + 1)
        inside = inside[starts[inside] >= 0]
        return inside + offsets[index], starts[inside]

    def clean(position: int) -> int:
        while position > encoded.prompt:
            index = int(np.searchsorted(offsets, position, side="right")) - 1
            if position == offsets[index]:
                return position
            starts = encoder.starts(encoded, index)
            inside = np.flatnonzero(starts[: position - offsets[index] + 1] >= 0)
            return max(int(inside[-1] + offsets[index]), encoded.prompt) if len(inside) else int(offsets[index])
        return position

    return CutMap(keep, turns, header, encoded.prompt, points, clean)


def token_cut_map(prompt: int) -> CutMap:
    """The cut map of a row that came as ids: one turn, to be divided anywhere."""
    turn = Turn(0, 0, 0, prompt, prompt, True)
    positions = np.arange(prompt + 1)
    return CutMap(0, [turn], prompt, prompt, lambda _: (positions, positions), lambda position: position)


def _piece_bounds(encoder: ConversationEncoder, encoded: Encoded, index: int) -> NDArray[np.int64]:
    """(pieces + 1,) token positions inside a unit; a token that straddles belongs to the content beside it."""
    unit, size = encoded.laid.layout.units[index], len(encoded.arrays[index])
    if len(unit.pieces) == 1:
        return np.array([0, size])
    starts = encoder.starts(encoded, index)
    bounds = [0]
    characters = 0
    for piece, behind in zip(unit.pieces, unit.pieces[1:], strict=False):
        characters += len(encoded.laid.contents[piece.owner]) if piece.text is None else len(piece.text)
        if piece.kind is Kind.BODY and behind.kind is not Kind.BODY:
            bounds.append(int(np.flatnonzero(starts >= characters)[0]))
        else:
            bounds.append(tokens_before(starts, characters))
    return np.array([*bounds, size])
