"""How a rendered conversation falls into units: control tokens, and the runs of text between them.

A control token in the template is a hard border: no token ever spans it, so every unit is encoded on its own and
units that repeat are encoded once. Inside a unit, pieces say whose text it is::

    <|im_start|>assistant\\nHello<|im_end|>\\n

    unit 0  control <|im_start|>    owner 1  HEAD
    unit 1  "assistant\\n" + slot    owner 1  HEAD, BODY
    unit 2  control <|im_end|>      owner 1  TAIL
    unit 3  "\\n"                    owner 1  TAIL
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ms_prefstream.encode.text import Place, TextEncoder
from ms_prefstream.tasks.sample import Ids


class Kind(enum.IntEnum):
    """What a piece of a rendered conversation is."""

    PREAMBLE = 0  # BOS and the template's default system block: belongs to no message
    HEAD = 1  # template text before a message's content
    BODY = 2  # the content
    TAIL = 3  # template text behind the content: end of turn and what follows it


class Piece(NamedTuple):
    """A run of text with one owner (the index of its message).

    `text` is None where the content of the owner is to be filled in, and the text itself elsewhere.
    """

    owner: int
    kind: Kind
    text: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """One control token, or one run of text between control tokens.

    Attributes:
        pieces: What the unit is made of; exactly one for a control token.
        place: Where the text stands (tokenizers with a dummy prefix care).
        control: The id of the control token, -1 for text.
        bodies: Indices of the pieces that are response text.
        ids: (n,) int32 if every piece is fixed, so that the unit is encoded once per layout.
        head: (h,) int32 ids of the pieces before `border`, if those are fixed.
    """

    pieces: tuple[Piece, ...]
    place: Place = Place.AFTER_SPECIAL
    control: int = -1
    bodies: tuple[int, ...] = ()
    ids: Ids | None = None
    head: Ids | None = None

    @property
    def border(self) -> int:
        """Index of the first piece of response text, 0 if there is none or nothing stands before it."""
        return self.bodies[0] if self.bodies else 0

    def text(self, contents: Sequence[str], first: int = 0, last: int | None = None) -> str:
        """The text of the pieces [first, last) with the contents filled in."""
        return "".join(
            contents[piece.owner] if piece.text is None else piece.text for piece in self.pieces[first:last]
        )


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The units of a conversation and where its response part begins.

    Attributes:
        units: All units in order.
        shared: How many leading units hold nothing of the response messages: encoded once for both sides of a pair.
        prompt_messages: How many leading messages are the prompt.
        roles: The role of each message.
        trims: Messages whose content the template strips of white space.
    """

    units: tuple[Unit, ...]
    shared: int
    prompt_messages: int
    roles: tuple[str, ...]
    trims: frozenset[int] = frozenset()


def build_layout(
    pieces: Sequence[tuple[Piece, int]],
    prompt_messages: int,
    roles: tuple[str, ...],
    encoder: TextEncoder,
    trims: frozenset[int] = frozenset(),
) -> Layout:
    """Group pieces into units and encode what is fixed.

    Args:
        pieces: (piece, control id or -1) in rendering order; empty fixed texts are left out here.
        prompt_messages: How many leading messages are the prompt.
        roles: The role of each message.
        encoder: Encodes the fixed parts.
        trims: Messages whose content the template strips.
    """
    units: list[Unit] = []
    run: list[Piece] = []
    place = Place.START

    def close() -> None:
        if run:
            units.append(_text_unit(tuple(run), place, prompt_messages, roles, encoder))
            run.clear()

    for piece, control in pieces:
        if control >= 0:
            close()
            bodies = _bodies((piece,), prompt_messages, roles)
            units.append(Unit((piece,), place, control, bodies, np.array([control], np.int32)))
            place = Place.AFTER_SPECIAL
        elif piece.text != "":
            run.append(piece)
    close()
    of_response = [any(piece.owner >= prompt_messages for piece in unit.pieces) for unit in units]
    shared = of_response.index(True) if True in of_response else len(units)
    return Layout(tuple(units), shared, prompt_messages, roles, trims)


def _text_unit(
    pieces: tuple[Piece, ...], place: Place, prompt_messages: int, roles: tuple[str, ...], encoder: TextEncoder
) -> Unit:
    bodies = _bodies(pieces, prompt_messages, roles)
    ids = head = None
    if all(piece.text is not None for piece in pieces):
        ids = encoder.encode(["".join(piece.text or "" for piece in pieces)], place)[0]
    if bodies and bodies[0] and all(piece.text is not None for piece in pieces[: bodies[0]]):
        head = encoder.encode(["".join(piece.text or "" for piece in pieces[: bodies[0]])], place)[0]
    return Unit(pieces, place, -1, bodies, ids, head)


def _bodies(pieces: tuple[Piece, ...], prompt_messages: int, roles: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(
        index
        for index, (owner, kind, _) in enumerate(pieces)
        if kind is Kind.BODY and owner >= prompt_messages and roles[owner] == "assistant"
    )
