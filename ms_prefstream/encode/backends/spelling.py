"""What each id writes: the ground for decoding, and for finding where tokens begin."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.encode.backends.added import AddedTokens
from ms_prefstream.encode.backends.base import Place
from ms_prefstream.encode.backends.unicode import nfc, origins

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
        """What is set before the text: the mark, or nothing."""
        if place not in self.places or not text or (self.unless_present and text[0] in (" ", self.mark)):
            return ""
        return self.mark


@dataclass(frozen=True, kw_only=True)
class Spelling:
    """The bytes that each id stands for.

    Attributes:
        shown: Bytes by id, as a reader sees them; b"" for ids that write nothing.
        lengths: (vocab_size,) UTF-8 bytes that an id takes of the normalised text; -1 where that is not known.
        space: What a space is in the normalised text.
        prefix: The space set before texts, if any.
        borders: Ids behind which a text counts as `Place.AFTER_SPECIAL`.
    """

    shown: Sequence[bytes]
    lengths: NDArray[np.int64]
    space: str = " "
    prefix: Prefix | None = None
    borders: frozenset[int] = field(default_factory=frozenset)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids; the space that the tokenizer set before a text is taken off again."""
        size = len(self.shown)
        written = [self.shown[i] if 0 <= i < size else b"" for i in ids]
        if self.prefix is not None:
            place = Place.START
            for at, id_ in enumerate(ids):
                if place in self.prefix.places and written[at].startswith(b" ") and id_ not in self.borders:
                    written[at] = written[at][1:]
                place = Place.AFTER_SPECIAL if id_ in self.borders else Place.CONTINUATION
        return b"".join(written).decode("utf-8", errors="replace")

    def starts(self, ids: NDArray[np.int32], text: str, place: Place) -> NDArray[np.int64] | None:
        """Where each token begins in an already normalised text.

        Args:
            ids: (n,) the ids of `text` at `place`.
            text: The text, normalised but with its spaces and without prefix.
            place: Where the text stands.

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


def byte_alphabet() -> dict[str, int]:
    """The characters that byte-level tokenizers write for the 256 bytes (the mapping of the GPT-2 release)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(rest)}


# Every byte's character to that byte; the other characters below 256 to one that latin-1 cannot write.
_TO_LATIN = dict.fromkeys(range(256), 0xFFFF) | {ord(c): byte for c, byte in byte_alphabet().items()}


def from_byte_alphabet(token: str) -> bytes | None:
    """The bytes of a byte-level token; None if it is not written in that alphabet."""
    try:
        return token.translate(_TO_LATIN).encode("latin-1")
    except UnicodeEncodeError:
        return None


def byte_level_tokens(tokens: Iterable[str]) -> list[bytes | None]:
    """The bytes of many byte-level tokens; None for those not written in that alphabet."""
    tokens = list(tokens)
    text = "".join(tokens).translate(_TO_LATIN)
    try:
        whole = text.encode("latin-1")
    except UnicodeEncodeError:
        return [from_byte_alphabet(token) for token in tokens]
    ends = list(itertools.accumulate(map(len, tokens)))
    return [whole[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def byte_level_spelling(
    vocab: Mapping[str, int], added: Mapping[str, int], prefix: Prefix | None, borders: frozenset[int]
) -> Spelling:
    """The spelling of a byte-level tokenizer."""
    size = 1 + max([*vocab.values(), *added.values()])
    shown = [b""] * size
    lengths = np.full(size, -1, dtype=np.int64)
    for id_, written in zip(vocab.values(), byte_level_tokens(vocab), strict=True):
        if written is not None:
            shown[id_] = written
            lengths[id_] = len(written)
    for content, id_ in added.items():
        shown[id_] = content.encode("utf-8")
    return Spelling(shown=shown, lengths=lengths, prefix=prefix, borders=borders)


def metaspace_spelling(
    vocab: Mapping[str, int],
    added: Mapping[str, int],
    prefix: Prefix | None,
    borders: frozenset[int],
    unknown: int | None,
) -> Spelling:
    """The spelling of a SentencePiece-like tokenizer: ``▁`` for spaces, ``<0x0A>`` for single bytes."""
    size = 1 + max([*vocab.values(), *added.values()])
    shown = [b""] * size
    lengths = np.full(size, -1, dtype=np.int64)
    for piece, id_ in vocab.items():
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            shown[id_] = bytes([int(piece[3:5], 16)])
            lengths[id_] = 1
        else:
            shown[id_] = piece.replace(META, " ").encode("utf-8")
            lengths[id_] = len(piece.encode("utf-8"))
    for content, id_ in added.items():
        shown[id_] = content.encode("utf-8")
    if unknown is not None:
        lengths[unknown] = -1
    return Spelling(shown=shown, lengths=lengths, space=META, prefix=prefix, borders=borders)


PlainStarts = Callable[[str, Place], NDArray[np.int64]]


def starts_by_parts(text: str, place: Place, added: AddedTokens, plain: PlainStarts) -> NDArray[np.int64]:
    """Starts in a text with recognised added tokens, each of which is one token.

    Args:
        text: The text.
        place: Where it stands; what follows an added token stands behind a special one.
        added: Finds the added tokens.
        plain: Starts, (n + 1,), in a text without added tokens.

    Returns:
        (n + 1,) offsets as `TextEncoder.starts` gives them.
    """
    if not added.may_occur(text):
        return plain(text, place)
    found: list[NDArray[np.int64]] = []
    for at, part in enumerate(added.split(text)):
        if part.id is not None:
            found.append(np.array([part.begin], dtype=np.int64))
            continue
        inside = plain(part.text, place if at == 0 else Place.AFTER_SPECIAL)[:-1]
        found.append(np.where((inside < 0) | (part.begin < 0), -1, inside + part.begin))
    return np.concatenate([*found, np.array([len(text)], dtype=np.int64)])


def spelled_starts(
    text: str, place: Place, ids: NDArray[np.int32], spelling: Spelling, normalizes: bool
) -> NDArray[np.int64] | None:
    """Starts in a text without added tokens, from what its ids spell; None where they do not spell it."""
    normal = nfc(text) if normalizes else text
    starts = spelling.starts(ids, normal, place)
    if starts is None or normal is text:
        return starts
    return np.where(starts < 0, -1, origins(text, normal)[starts])
