"""SentencePiece's protocol buffers: the few fields that are needed, read and changed without a schema.

Field numbers are those of sentencepiece_model.proto (ModelProto: 1 pieces, 2 trainer_spec, 3 normalizer_spec) and
sentencepiece.proto (SentencePieceText: 2 pieces, with 2 id, 4 begin, 5 end).
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


class PieceType(enum.IntEnum):
    """Type of a piece (ModelProto.SentencePiece.Type)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, kw_only=True)
class SentencePieceModel:
    """The parts of a SentencePiece model that matter here.

    Attributes:
        pieces: (text, type) by id.
        dummy_prefix: Whether a space is set before every text.
        trims: Whether runs of spaces become one and those at both ends disappear.
        plain: Whether characters are left as they are (identity normalisation, and no trimming).
        suffix: Whether spaces belong to the word before them.
    """

    pieces: tuple[tuple[str, PieceType], ...]
    dummy_prefix: bool
    trims: bool
    plain: bool
    suffix: bool


def read_model(data: bytes) -> SentencePieceModel:
    """Reads a serialised ModelProto that `sentencepiece` accepts.

    Raises:
        ValueError: A piece is no text, or the message has parts that cannot be skipped.
    """
    pieces: list[tuple[str, PieceType]] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in fields(data):
        if type(value) is not bytes:
            continue
        if number == 1:
            piece = _message(value, {1: bytes, 3: int})
            pieces.append((piece.get(1, b"").decode("utf-8"), _piece_type(piece.get(3, 1))))
        elif number == 2:
            trainer.update(_message(value, {24: int}))
        elif number == 3:
            normalizer.update(_message(value, {2: bytes, 3: int, 4: int, 5: int, 6: bytes}))
    trims = bool(normalizer.get(4, 1))
    return SentencePieceModel(
        pieces=tuple(pieces),
        dummy_prefix=bool(normalizer.get(3, 1)),
        trims=trims,
        plain=not normalizer.get(2) and not normalizer.get(6) and not trims and bool(normalizer.get(5, 1)),
        suffix=bool(trainer.get(24, 0)),
    )


def _message(data: bytes, types: Mapping[int, type]) -> dict[int, Any]:
    """Returns fields of a message by number. A field of another type is unknown to the library, and left out here."""
    return {number: value for number, value in fields(data) if type(value) is types.get(number)}


def _piece_type(number: int) -> PieceType:
    """Returns the type of a piece; the library takes an unknown one for the default."""
    return PieceType(number) if number in PieceType._value2member_map_ else PieceType.NORMAL


def with_dummy_prefix(data: bytes, present: bool) -> bytes:
    """Returns the model with another ``add_dummy_prefix``: repeated messages are merged, and the later value wins."""
    return data + b"\x1a\x02\x18" + bytes([present])


def as_control(data: bytes, contents: Collection[str]) -> bytes:
    """Returns the model with these pieces as control symbols, which text never matches."""
    out = bytearray()
    for number, value in fields(data):
        if isinstance(value, int):
            out += _varint(number << 3) + _varint(value)
            continue
        if type(value) is Fixed:
            out += _varint(number << 3 | _WIRE_OF_FIXED[len(value)]) + value
            continue
        if number == 1 and _message(value, {1: bytes}).get(1, b"").decode("utf-8") in contents:
            value += bytes([3 << 3, PieceType.CONTROL])
        out += _varint(number << 3 | 2) + _varint(len(value)) + value
    return bytes(out)


def read_offsets(data: bytes) -> tuple[list[int], list[int], list[int]]:
    """Returns (ids, begins, ends) of a serialised SentencePieceText; offsets are bytes of the text."""
    pieces = [dict(fields(value)) for number, value in fields(data) if number == 2]
    ids, begins, ends = ([piece.get(key, 0) for piece in pieces] for key in (2, 4, 5))
    return ids, begins, ends


_GROUPS = (3, 4)  # wire types
_FIXED = {1: 8, 5: 4}  # wire type -> bytes of a value
_WIRE_OF_FIXED = {8: 1, 4: 5}


class Fixed(bytes):
    """A number of fixed size."""


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yields the fields of a valid message: (number, value); an int, `Fixed`, or bytes for texts and messages."""
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        wire = key & 7
        if wire in _GROUPS:
            raise ValueError("it holds a group, which no model has")
        if wire == 0:
            value, at = _read_varint(data, at)
            yield key >> 3, value
            continue
        if wire in _FIXED:
            yield key >> 3, Fixed(data[at : at + _FIXED[wire]])
            at += _FIXED[wire]
            continue
        length, at = _read_varint(data, at)
        yield key >> 3, data[at : at + length]
        at += length


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while data[at] >= 0x80:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | data[at] << shift, at + 1


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
