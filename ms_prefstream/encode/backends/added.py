"""Added tokens: strings that a tokenizer cuts out of a text before its own rules apply."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple


@dataclass(frozen=True, kw_only=True)
class AddedToken:
    """One added token as a tokenizer file describes it.

    Attributes:
        content: Its text.
        id: Its id.
        special: A control token: never recognised in user text.
        normalized: Searched for after normalisation rather than before it.
        lstrip: Takes the white space before it with it.
        rstrip: Takes the white space after it with it.
        single_word: Stands only between characters that do not belong to words.
    """

    content: str
    id: int
    special: bool
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False

    @property
    def stretches(self) -> bool:
        """True if its surroundings matter to it."""
        return self.lstrip or self.rstrip or self.single_word


FLAGS = ("lstrip", "rstrip", "single_word")
BLANKS = "\t\n\x0b\x0c\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
"""White space as the `tokenizers` package has it: the property White_Space of Unicode, other than `str.isspace`."""
_IN_WORDS = ("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "Pc")


class Cut(NamedTuple):
    """A stretch of text: a token with its id, or the text between two of them (id -1)."""

    begin: int
    end: int
    id: int


def alternation(contents: Collection[str]) -> re.Pattern[str]:
    """Returns the pattern of these strings, which prefers longer ones; without any it matches nothing."""
    return re.compile("|".join(map(re.escape, sorted(contents, key=len, reverse=True))) or "(?!)")


def stretching(tokens: Iterable[AddedToken]) -> dict[str, AddedToken]:
    """Returns the tokens to which their surroundings matter, by content."""
    return {token.content: token for token in tokens if token.stretches}


def cut_at(
    pattern: re.Pattern[str],
    ids: Mapping[str, int],
    text: str,
    begin: int = 0,
    end: int | None = None,
    flagged: Mapping[str, AddedToken] = MappingProxyType({}),
) -> Iterator[Cut]:
    """Yields the tokens between two offsets and the text between them; a match without an id is text.

    A token of `flagged` is cut out with the white space that it takes with it, and not at all inside a word.
    """
    end = len(text) if end is None else end
    position = begin
    for match in pattern.finditer(text, begin, end):
        id_ = ids.get(match.group())
        if id_ is None:
            continue
        first, last = match.span()
        token = flagged.get(match.group())
        if token is not None:
            if token.single_word and (_in_word(text[first - 1 : first]) or _in_word(text[last : last + 1])):
                continue
            if token.lstrip:
                first = max(position, len(text[position:first].rstrip(BLANKS)) + position)
            if token.rstrip:
                last = end - len(text[last:end].lstrip(BLANKS))
        if first > position:
            yield Cut(position, first, -1)
        yield Cut(first, last, id_)
        position = last
    if position < end:
        yield Cut(position, end, -1)


def _in_word(character: str) -> bool:
    """Returns whether a character, or none, belongs to a word: ``\\w`` of the `tokenizers` package."""
    return character != "" and (unicodedata.category(character) in _IN_WORDS or character in "\u200c\u200d")


class Part(NamedTuple):
    """A stretch of text between or at added tokens; `id` is -1 where the tokenizer's own rules apply."""

    text: str
    id: int
    begin: int  # character offset in the text that was split; -1 where it is not known


class AddedTokens:
    """The added tokens that are recognised in plain text, found as the `tokenizers` package finds them.

    The package takes the leftmost, then the longest match among all added tokens, and skips the special ones
    afterwards: a special token hides what it overlaps. A second pass searches for tokens with ``normalized``, in the
    normalised text that the first pass leaves; `normalize` normalises it.
    """

    def __init__(self, tokens: Iterable[AddedToken], normalize: Callable[[str], str] | None = None) -> None:
        tokens = [token for token in tokens if token.content]
        self._normalize = normalize or str
        self._raw = _Pass([token for token in tokens if not token.normalized])
        self._normal = _Pass([token for token in tokens if token.normalized])
        self.any = bool(self._raw.ids or self._normal.ids)
        names = [*self._raw.ids, *self._normal.ids]
        self._quick, firsts = alternation(names), {name[0] for name in names}
        self._first = firsts.pop() if len(firsts) == 1 else ""  # in every text
        self._sure = normalize is None or not self._normal.ids
        self._contents = [token.content for token in tokens]
        self._simple = not self._normal.ids and not stretching(tokens)

    def may_occur(self, text: str) -> bool:
        """Returns whether `split` can find anything; False is certain."""
        if not self.any:
            return False
        if not (self._sure or text.isascii()):
            return True
        return self._first in text and self._quick.search(text) is not None

    def sure_part(self, text: str, begins: bool, ends: bool) -> tuple[int, int]:
        """Returns [first, last) from the first to the last token that `split` finds in a text, whatever surrounds it.

        The part reaches to the beginning of the text if nothing precedes it (`begins`), and to the end if nothing
        follows (`ends`). (0, 0) if there is none.
        """
        found = self.split(text) if self._simple else []
        tokens = [part for part in found if part.id >= 0]
        if not tokens:
            return 0, 0
        first, last = tokens[0].begin, tokens[-1].begin + len(tokens[-1].text)
        cuts = [(content, at) for content in self._contents for at in range(1, len(content))]
        if not begins and any(_agree(content[at:], text) for content, at in cuts):
            return 0, 0  # what precedes might be the beginning of a token
        if not ends and text[:last].endswith(tuple([content[:at] for content, at in cuts])):
            return 0, 0  # what follows might complete another token
        return 0 if begins else first, len(text) if ends else last

    def split(self, text: str) -> list[Part]:
        """Returns the text in parts: plain ones (normalised where the second pass found a token) and recognised tokens.

        Offsets count characters of the text as given. After a second-pass token, in a part that the normaliser
        changed, they are not known (-1).
        """
        parts: list[Part] = []
        for part in self._raw.split(text, 0):
            if part.id >= 0 or not self._normal.ids:
                parts.append(part)
                continue
            normal = self._normalize(part.text)
            found = self._normal.split(normal, part.begin)
            if normal == part.text:
                parts.extend(found)
            elif len(found) == 1 and found[0].id < 0:
                parts.append(part)
            else:
                parts.extend(Part(piece.text, piece.id, -1 if i else part.begin) for i, piece in enumerate(found))
        return parts


def _agree(one: str, other: str) -> bool:
    """Returns whether one of two texts begins with the other."""
    return one.startswith(other) or other.startswith(one)


class _Pass:
    """One search for added tokens; `ids` are those of the tokens that it recognises."""

    def __init__(self, tokens: list[AddedToken]) -> None:
        self.ids = {token.content: token.id for token in tokens if not token.special}
        self._pattern = alternation([token.content for token in tokens] if self.ids else [])
        self._flagged = stretching(tokens)

    def split(self, text: str, begin: int) -> list[Part]:
        cuts = cut_at(self._pattern, self.ids, text, flagged=self._flagged)
        return [Part(text[cut.begin : cut.end], cut.id, begin + cut.begin) for cut in cuts]
