"""The bytes that each id of a tokenizer stands for: decoding, and where tokens begin in a text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.encode.backends.base import Place

META = "\u2581"  # the lower one eighth block that SentencePiece writes for a space


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """The space that some tokenizers set before a text.

    Attributes:
        mark: The character, a space or SentencePiece's mark for it.
        places: Where a text gets it.
        unless_present: Not set before a text that begins with a space.
    """

    mark: str
    places: frozenset[Place]
    unless_present: bool = False

    def before(self, text: str, place: Place) -> str:
        """Returns what is set before the text: the mark, or nothing."""
        if place not in self.places or not text or (self.unless_present and text[0] in (" ", self.mark)):
            return ""
        return self.mark


@dataclass(frozen=True, kw_only=True)
class Spelling:
    """The bytes that each id stands for.

    Attributes:
        shown: Bytes by id, as a reader sees them; b"" for ids that write nothing.
        lengths: (vocab_size,) UTF-8 bytes that an id takes of the normalised text; -1 where that is not known. A small
            dtype: they are looked up for every id of a stream.
        space: The character for a space in the normalised text.
        prefix: The space set before texts, if any.
        borders: Ids after which a text counts as `Place.AFTER_SPECIAL`.
    """

    shown: Sequence[bytes]
    lengths: NDArray[np.signedinteger[Any]]
    space: str = " "
    prefix: Prefix | None = None
    borders: frozenset[int] = field(default_factory=frozenset)

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of the ids, without the space that the tokenizer set before a text."""
        size = len(self.shown)
        written = [self.shown[i] if 0 <= i < size else b"" for i in ids]
        if self.prefix is not None:
            place = Place.START
            for at, id_ in enumerate(ids):
                if place in self.prefix.places and written[at].startswith(b" ") and id_ not in self.borders:
                    written[at] = written[at][1:]
                place = Place.AFTER_SPECIAL if id_ in self.borders else Place.CONTINUATION
        return b"".join(written).decode("utf-8", errors="replace")

    def size(self, texts: Sequence[str], place: Place) -> int:
        """Returns how many bytes the ids of these texts stand for together, if no text is normalised."""
        whole = "".join(texts)
        size = len(whole) if whole.isascii() else len(whole.encode("utf-8"))
        if self.space != " ":
            size += whole.count(" ") * (len(self.space.encode("utf-8")) - 1)
        if self.prefix is not None:
            size += sum(len(self.prefix.before(text, place).encode("utf-8")) for text in texts)
        return size

    def starts(self, ids: NDArray[np.int32], text: str, place: Place) -> NDArray[np.int64] | None:
        """Returns where each token begins in an already normalised text.

        `ids`, (n,), are those of the text at `place`; the text is normalised but has its spaces and no prefix.

        Returns:
            (n + 1,) character offsets, -1 inside a character; None if the ids do not spell the text.
        """
        lead = self.prefix.before(text, place) if self.prefix else ""
        whole = lead + (text if self.space == " " else text.replace(" ", self.space))
        lengths = self.lengths[ids]
        starts = np.zeros(len(ids) + 1, dtype=np.int64)  # bytes first, then characters
        lengths.cumsum(out=starts[1:])
        raw = np.frombuffer(whole.encode("utf-8"), dtype=np.int8)
        if starts[-1] != len(raw) or (len(ids) and lengths.min() < 0):
            return None
        if len(raw) != len(whole):
            heads = raw >= -0x40  # (bytes,) True where a character begins
            inside = starts[:-1]
            starts[:-1] = np.where(heads[inside], heads.cumsum()[inside] - 1, -1)
            starts[-1] = len(whole)
        return np.where(starts > 0, np.maximum(starts - len(lead), 0), starts) if lead else starts


# Byte-level tokens write each byte as one character (the mapping of the GPT-2 release): these bytes as their own, the
# others as 256, 257 ... All other characters become one that latin-1 refuses.
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_TO_LATIN = {byte: byte if byte in _PRINTABLE else 0xFFFF for byte in range(256)} | dict(enumerate(_OTHERS, 256))


def from_byte_alphabet(token: str) -> bytes | None:
    """Returns the bytes of a byte-level token; None if it is not written in that alphabet."""
    try:
        return token.translate(_TO_LATIN).encode("latin-1")
    except UnicodeEncodeError:
        return None


_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")


def build_spelling(
    ids: Iterable[int],
    written: Iterable[tuple[bytes, int]],
    added: Mapping[str, int],
    prefix: Prefix | None = None,
    borders: frozenset[int] = frozenset(),
    space: str = " ",
) -> Spelling:
    """Returns the spelling of a vocabulary; the last three arguments are those of `Spelling`.

    `written` gives for each id the bytes that a reader sees, and how many bytes it takes of the normalised text.
    """
    ids = list(ids)
    size = 1 + max([*ids, *added.values()])
    shown = [b""] * size
    lengths = np.full(size, -1, dtype=np.int64)
    for id_, (seen, length) in zip(ids, written, strict=True):
        shown[id_] = seen
        lengths[id_] = length
    for content, id_ in added.items():
        shown[id_] = content.encode("utf-8")
    lengths = lengths.astype(np.min_scalar_type(-1 - max(0, int(lengths.max()))))
    return Spelling(shown=shown, lengths=lengths, space=space, prefix=prefix, borders=borders)


def metaspace_spelling(
    vocab: Mapping[str, int], added: Mapping[str, int], prefix: Prefix | None, borders: frozenset[int]
) -> Spelling:
    """Returns the spelling of a SentencePiece-like tokenizer: ``▁`` for spaces, ``<0x0A>`` for single bytes.

    The unknown token belongs to `added`: it takes bytes of any number.
    """
    written = (
        (bytes([int(piece[3:5], 16)]), 1)
        if _BYTE.fullmatch(piece)
        else (piece.replace(META, " ").encode("utf-8"), len(piece.encode("utf-8")))
        for piece in vocab
    )
    return build_spelling(vocab.values(), written, added, prefix, borders, META)
