"""Added tokens: strings that a tokenizer cuts out of a text before its own rules apply."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, kw_only=True)
class AddedToken:
    """One added token as a tokenizer file describes it.

    Attributes:
        content: Its text.
        id: Its id.
        special: A control token: never recognised in user text.
        normalized: Searched for after normalisation rather than before it.
        stretches: Takes neighbouring spaces with it (lstrip, rstrip) or stands only between words (single_word).
    """

    content: str
    id: int
    special: bool
    normalized: bool = False
    stretches: bool = False


class Part(NamedTuple):
    """A stretch of text between or at added tokens; `id` is None where the tokenizer's own rules apply."""

    text: str
    id: int | None
    begin: int  # character offset in the text that was split; -1 where it is not known


class AddedTokens:
    """The added tokens that are recognised in plain text, found as the `tokenizers` package finds them.

    The package takes the leftmost, then the longest match among all added tokens, and skips the special ones
    afterwards: a special token hides what it overlaps. A second pass searches for tokens with ``normalized``, in the
    normalised text that the first pass leaves.

    Args:
        tokens: All added tokens, special ones included.
        normalize: Normalises the text between the two passes.
    """

    def __init__(self, tokens: Iterable[AddedToken], normalize: Callable[[str], str] | None = None) -> None:
        tokens = [token for token in tokens if token.content]
        self._normalize = normalize
        self._raw = _Pass([token for token in tokens if not token.normalized])
        self._normal = _Pass([token for token in tokens if token.normalized])
        self.any = self._raw.recognises or self._normal.recognises
        self._quick = _alternation([token.content for token in tokens if not token.special]) if self.any else None
        self._sure = normalize is None or not self._normal.recognises

    def may_occur(self, text: str) -> bool:
        """Returns whether `split` can find anything; False is certain."""
        if self._quick is None:
            return False
        return not (self._sure or text.isascii()) or self._quick.search(text) is not None

    def split(self, text: str) -> list[Part]:
        """Returns the text in parts: plain ones (normalised where the second pass found a token) and recognised tokens.

        Offsets count characters of the text as given. After a second-pass token, in a part that the normaliser
        changed, they are not known (-1).
        """
        parts: list[Part] = []
        for part in self._raw.split(text, 0):
            if part.id is not None or not self._normal.recognises:
                parts.append(part)
                continue
            normal = part.text if self._normalize is None else self._normalize(part.text)
            found = self._normal.split(normal, part.begin)
            if normal == part.text:
                parts.extend(found)
            elif len(found) == 1 and found[0].id is None:
                parts.append(part)
            else:
                parts.extend(Part(piece.text, piece.id, -1 if i else part.begin) for i, piece in enumerate(found))
        return parts


class _Pass:
    """One search for added tokens."""

    def __init__(self, tokens: list[AddedToken]) -> None:
        self._ids = {token.content: token.id for token in tokens if not token.special}
        self.recognises = bool(self._ids)
        self._pattern = _alternation([token.content for token in tokens]) if self.recognises else None

    def split(self, text: str, begin: int) -> list[Part]:
        parts: list[Part] = []
        done = 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            id_ = self._ids.get(match.group())
            if id_ is None:
                continue
            if match.start() > done:
                parts.append(Part(text[done : match.start()], None, begin + done))
            parts.append(Part(match.group(), id_, begin + match.start()))
            done = match.end()
        if done < len(text):
            parts.append(Part(text[done:], None, begin + done))
        return parts


def _alternation(contents: list[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(contents, key=len, reverse=True))))
