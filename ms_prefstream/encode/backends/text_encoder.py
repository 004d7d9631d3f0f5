"""The part of a backend that all share: added tokens inside a text, token starts, decoding."""

from __future__ import annotations

import abc
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.encode.backends.added import AddedTokens
from ms_prefstream.encode.backends.base import Place
from ms_prefstream.encode.backends.spelling import Spelling
from ms_prefstream.encode.backends.unicode import MAX_CHARS, check_size, nfc, origins
from ms_prefstream.sample import Ids

_AROUND = ("", "x", " x", "x ", "\n", "\n\nx", "1", "你", ">", "<")  # texts with which `sure_part` proves itself


class PlainTextEncoder(abc.ABC):
    """A `TextEncoder` that cuts texts at added tokens and leaves the text between them to its backend.

    A backend says how it encodes text without added tokens, and where the tokens of such a text begin if its
    spelling does not show that.

    Attributes:
        added: Finds the added tokens that are recognised in text; each is one token.
        spelling: The bytes that the ids stand for; None where that is not known, and then the backend decodes.
        nfc: Whether texts are normalised to NFC first.
        max_chars: The longest text that is encoded.
    """

    added: AddedTokens
    spelling: Spelling | None
    nfc: bool = False
    max_chars: int = MAX_CHARS

    @abc.abstractmethod
    def plain_ids(self, text: str, place: Place) -> Ids:
        """Returns the ids of a text without added tokens."""

    @abc.abstractmethod
    def offset_starts(self, text: str, place: Place) -> NDArray[np.int64]:
        """Returns the starts of the tokens of a text without added tokens that its ids do not spell."""

    def encode(self, texts: Sequence[str], place: Place = Place.AFTER_SPECIAL) -> Sequence[Ids]:
        """Returns the ids of each text; see `TextEncoder`."""
        check_size(texts, self.max_chars)
        one = self.ids_by_parts if self.added.any else self.plain_ids
        return [one(text, place) for text in texts]

    def starts(self, text: str, place: Place = Place.AFTER_SPECIAL, dropped_after: bool = False) -> NDArray[np.int64]:
        """Returns where each token begins; see `TextEncoder`."""
        check_size((text,), self.max_chars)
        if not self.added.may_occur(text):
            return self.plain_starts(text, place)
        found: list[NDArray[np.int64]] = []
        for at, part in enumerate(self.added.split(text)):
            if part.id >= 0:
                found.append(np.array([part.begin], dtype=np.int64))
                continue
            inside = self.plain_starts(part.text, Place.AFTER_SPECIAL if at else place)[:-1]
            found.append(np.where((inside < 0) | (part.begin < 0), -1, inside + part.begin))
        return np.concatenate([*found, np.array([len(text)], dtype=np.int64)])

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of the ids, control tokens included."""
        assert self.spelling is not None  # a backend without one decodes on its own
        return self.spelling.decode(ids)

    def sure_part(self, text: str, place: Place, *, begins: bool, ends: bool) -> tuple[int, int]:
        """Returns the longest part of a text that can be encoded alone, whatever surrounds the text.

        See `TextEncoder`.
        """
        first, last = self.added.sure_part(text, begins, ends)
        if first == last:
            return 0, 0
        around = [
            ("" if begins else before, "" if ends else after)
            for before, after in zip(_AROUND, reversed(_AROUND), strict=True)
        ]
        wholes = self.encode([before + text + after for before, after in around], place)
        lefts = self.encode([before + text[:first] for before, _ in around], place)
        rights = self.encode([text[last:] + after for _, after in around])
        core = self.encode([text[first:last]], place if begins and not first else Place.AFTER_SPECIAL)[0]
        for whole, left, right in zip(wholes, lefts, rights, strict=True):
            if not np.array_equal(whole, np.concatenate([left, core, right])):
                return 0, 0
        return first, last

    @abc.abstractmethod
    def piece_id(self, piece: str) -> int | None:
        """Returns the id of a piece by its name; see `TextEncoder`."""

    def ids_by_parts(self, text: str, place: Place) -> Ids:
        """Returns the ids of a text that may hold added tokens; what follows one stands after a special token."""
        if not self.added.may_occur(text):
            return self.plain_ids(text, place)
        arrays = [
            self.plain_ids(part.text, Place.AFTER_SPECIAL if at else place)
            if part.id < 0
            else np.array([part.id], dtype=np.int32)
            for at, part in enumerate(self.added.split(text))
        ]
        return np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int32)

    def plain_starts(self, text: str, place: Place) -> NDArray[np.int64]:
        """Returns the starts in a text without added tokens: from what its ids spell, else `offset_starts`."""
        if self.spelling is not None:
            ids = self.plain_ids(text, place)  # first: it refuses texts that are not Unicode
            normal = nfc(text) if self.nfc else text
            starts = self.spelling.starts(ids, normal, place)
            if starts is not None:
                return starts if normal is text else np.where(starts < 0, -1, origins(text, normal)[starts])
        return self.offset_starts(text, place)
