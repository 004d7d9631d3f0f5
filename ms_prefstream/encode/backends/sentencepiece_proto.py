"""SentencePiece's protocol buffers: the few fields that are needed, read and changed without a schema.

Field numbers are those of sentencepiece_model.proto (ModelProto: 1 pieces, 2 trainer_spec, 3 normalizer_spec) and
sentencepiece.proto (SentencePieceText: 2 pieces, with 2 id, 4 begin, 5 end).
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator
from dataclasses import dataclass


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
    """Read a serialised ModelProto.

    Raises:
        ValueError: The data is not such a message.
    """
    pieces: list[tuple[str, PieceType]] = []
    normalizer: dict[int, int | bytes] = {}
    trainer: dict[int, int | bytes] = {}
    for number, value in fields(data):
        if number == 1 and isinstance(value, bytes):
            piece = dict(fields(value))
            pieces.append((_text(piece), PieceType(_int(piece.get(3, 1)))))
        elif number == 2 and isinstance(value, bytes):
            trainer.update(fields(value))
        elif number == 3 and isinstance(value, bytes):
            normalizer.update(fields(value))
    if not pieces:
        raise ValueError("no pieces")
    trims = bool(normalizer.get(4, 1))
    return SentencePieceModel(
        pieces=tuple(pieces),
        dummy_prefix=bool(normalizer.get(3, 1)),
        trims=trims,
        plain=not normalizer.get(2) and not normalizer.get(6) and not trims and bool(normalizer.get(5, 1)),
        suffix=bool(trainer.get(24, 0)),
    )


def with_dummy_prefix(data: bytes, present: bool) -> bytes:
    """Returns the model with another ``add_dummy_prefix``: repeated messages are merged, and the later value wins."""
    return data + b"\x1a\x02\x18" + bytes([present])


def as_control(data: bytes, contents: Collection[str]) -> bytes:
    """Returns the model with these pieces as control symbols, which text never matches."""
    out = bytearray()
    for number, value in fields(data):
        if number == 1 and isinstance(value, bytes) and _text(dict(fields(value))) in contents:
            value += bytes([3 << 3, PieceType.CONTROL])
        if isinstance(value, bytes):
            out += _varint(number << 3 | 2) + _varint(len(value)) + value
        else:
            out += _varint(number << 3) + _varint(value)
    return bytes(out)


def read_offsets(data: bytes) -> tuple[list[int], list[int], list[int]]:
    """Returns (ids, begins, ends) of a serialised SentencePieceText; offsets are bytes of the text."""
    pieces = [dict(fields(value)) for number, value in fields(data) if number == 2 and isinstance(value, bytes)]
    ids, begins, ends = ([_int(piece.get(key, 0)) for piece in pieces] for key in (2, 4, 5))
    return ids, begins, ends


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yields the fields of a message: (number, value); numbers for varints, bytes for everything else.

    Raises:
        ValueError: The data ends inside a field or has a wire type that does not exist.
    """
    at, size = 0, len(data)
    while at < size:
        key, at = _read_varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _read_varint(data, at)
            yield number, value
            continue
        if wire == 2:
            length, at = _read_varint(data, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + length > size or number == 0:
            raise ValueError("truncated")
        yield number, data[at : at + length]
        at += length


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("truncated")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _int(value: int | bytes) -> int:
    return value if isinstance(value, int) else 0


def _text(piece: dict[int, int | bytes]) -> str:
    """Returns the text of a piece."""
    value = piece.get(1, b"")
    return value.decode("utf-8") if isinstance(value, bytes) else ""
