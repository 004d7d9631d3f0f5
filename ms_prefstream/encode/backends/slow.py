"""Tokenizers that exist only as Python objects without `tokenizers` inside: slow, but usable."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.encode.backends.added import AddedToken, AddedTokens
from ms_prefstream.encode.backends.limits import check_size, check_unicode
from ms_prefstream.encode.backends.nfc import nfc
from ms_prefstream.encode.backends.self_check import corpus
from ms_prefstream.encode.backends.spelling import Spelling, from_byte_alphabet
from ms_prefstream.encode.backends.starts import spelled_starts, starts_by_parts
from ms_prefstream.encode.text import Place
from ms_prefstream.errors import TokenizerError

MAX_SLOW_CHARS = 2**17  # merging in Python takes quadratic time on long words

Ids = NDArray[np.int32]


class SlowEncoder:
    """Text to ids by an object's own ``tokenize``, for byte-level tokenizers without a dummy prefix.

    Args:
        obj: The tokenizer object.
        tokens: Its added tokens.
        name: What errors call it.

    Raises:
        TokenizerError: The object does something that cannot be followed (a prefix, a normalisation other than NFC).
    """

    backend = "object"

    def __init__(self, obj: Any, tokens: Sequence[AddedToken], name: str) -> None:
        self._obj = obj
        self._control = {token.content: token.id for token in tokens if token.special}
        self._normalizes = False
        self._added = AddedTokens(tokens)
        self._breaks: re.Pattern[str] | None = None
        self._spelling = _spelling(obj, tokens)
        self._break_leaks()
        self._check(name)

    def encode(self, texts: Sequence[str], place: Place = Place.AFTER_SPECIAL) -> list[Ids]:
        """Ids of each text; see `TextEncoder`. The place of a text makes no difference here."""
        check_size(texts, MAX_SLOW_CHARS)
        check_unicode(texts)
        return [self._one(text) for text in texts]

    def starts(self, text: str, place: Place = Place.AFTER_SPECIAL) -> NDArray[np.int64]:
        """Where each token begins; see `TextEncoder`."""
        check_size((text,), MAX_SLOW_CHARS)
        check_unicode((text,))
        return starts_by_parts(text, place, self._added, self._plain_starts)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, control tokens included."""
        return self._spelling.decode(ids)

    def _one(self, text: str) -> Ids:
        if not self._added.may_occur(text):
            return self._plain(text)
        arrays = [
            self._plain(part.text) if part.id is None else np.array([part.id], dtype=np.int32)
            for part in self._added.split(text)
        ]
        return np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int32)

    def _plain(self, text: str) -> Ids:
        """Ids of a text without added tokens; what the object would take for control is handed over in two parts."""
        cuts = [match.start() + 1 for match in self._breaks.finditer(text)] if self._breaks else []
        pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        ids = [id_ for piece in pieces if piece for id_ in self._own(piece)]
        return np.array(ids, dtype=np.int32)

    def _own(self, text: str) -> list[int]:
        found: list[int] = self._obj.convert_tokens_to_ids(self._obj.tokenize(text, split_special_tokens=True))
        return found

    def _plain_starts(self, text: str, place: Place) -> NDArray[np.int64]:
        starts = spelled_starts(text, place, self._plain(text), self._spelling, self._normalizes)
        if starts is None:
            raise TokenizerError(
                f"the tokens of {type(self._obj).__name__} do not spell the text {text[:40]!r}. "
                "Pass a directory with tokenizer.json instead of the object."
            )
        return starts

    def _break_leaks(self) -> None:
        """Find the control strings that the object recognises in spite of everything."""
        ids = set(self._control.values())
        leaked = [content for content in self._control if len(content) > 1 and ids & set(self._own(content))]
        if leaked:
            self._breaks = re.compile("|".join(map(re.escape, sorted(leaked, key=len, reverse=True))))

    def _check(self, name: str) -> None:
        accent = "e\u0301"
        self._normalizes = self.decode(self._plain(accent).tolist()) == nfc(accent)
        for text in corpus(self._control):
            ids = self._one(text).tolist()
            wanted = nfc(text) if self._normalizes else text
            if self.decode(ids) != wanted or set(ids) & set(self._control.values()):
                raise TokenizerError(
                    f"the tokenizer object {name} changes the text {text[:24]!r} or turns it into control tokens, so "
                    "the border of a response cannot be found in its ids. Pass a directory with tokenizer.json, a "
                    ".model file or a fast tokenizer."
                )


def _spelling(obj: Any, tokens: Sequence[AddedToken]) -> Spelling:
    """What the ids write: tokens are bytes, or strings in the byte-level alphabet."""
    known = {token.id: token.content.encode("utf-8") for token in tokens}
    size = 1 + max([*map(int, obj.get_vocab().values()), *known])
    shown: list[bytes] = []
    lengths = np.full(size, -1, dtype=np.int64)
    for id_ in range(size):
        if id_ in known:
            shown.append(known[id_])
            continue
        token = _token(obj, id_)
        written = token if isinstance(token, bytes) else from_byte_alphabet(token)
        shown.append(written or b"")
        lengths[id_] = -1 if written is None else len(written)
    return Spelling(shown=shown, lengths=lengths)


def _token(obj: Any, id_: int) -> str | bytes:
    try:
        token = obj.convert_ids_to_tokens(id_)
    except (KeyError, IndexError, ValueError):  # a gap in the numbering
        return ""
    return token if isinstance(token, (str, bytes)) else ""
