"""Control tokens in text: cuts rendered text at them, and hides those in contents from a template."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ms_prefstream.encode.backends.added import AddedToken, Cut, alternation, cut_at

_FIRST_SIGN, _SIGNS = 0xF0000, 0x10FFFE - 0xF0000  # the two planes for private use
_FEW = 4  # characters that are sooner looked for one by one than by a pattern
_NAMES = 0x110000  # no character has this number, or a larger one


class ControlTokens:
    """The special tokens of a tokenizer as strings: found in text, hidden, or refused.

    Args:
        special: Control string -> id.
        flagged: Those to which their surroundings matter.

    Attributes:
        strips: Id -> whether it takes the white space before it, and after it, of those that do.
        in_words: Whether some of them are text inside a word.
        in_json: Whether all of them are the same text inside of JSON text that is not restricted to ASCII.
    """

    def __init__(self, special: Mapping[str, int], flagged: Mapping[str, AddedToken] = MappingProxyType({})) -> None:
        self.strips = {
            token.id: (token.lstrip, token.rstrip) for token in flagged.values() if token.lstrip or token.rstrip
        }
        self.in_words = any(token.single_word for token in flagged.values())
        # White space that a token takes may lie in a content, so the units of a layout leave it out.
        self._flagged = {
            name: dataclasses.replace(token, lstrip=False, rstrip=False)
            for name, token in flagged.items()
            if token.single_word
        }
        self.ids = {name: id_ for name, id_ in special.items() if name}
        self.in_json = all(json.dumps(name, ensure_ascii=False)[1:-1] == name for name in self.ids)
        self._names = sorted(self.ids, key=lambda name: (-len(name), name))
        self._pattern = alternation(self._names)
        self._firsts = sorted({name[0] for name in self._names})
        self._first = self._firsts[0] if len(self._firsts) == 1 else None
        # Each character of each name has a private-use character of its own. So hidden contents keep their lengths,
        # and a part of a hidden name is revealed as the same part of the name.
        self._signs: dict[str, str] = {}
        self._shown = "".join(self._names)[:_SIGNS]
        begin = 0
        for name in self._names:
            if begin + len(name) <= _SIGNS:
                self._signs[name] = "".join(map(chr, range(_FIRST_SIGN + begin, _FIRST_SIGN + begin + len(name))))
            begin += len(name)
        # Characters of a content that have a meaning in hidden text are written as a number, and so are names for which
        # no signs are left.
        signs = f"[{chr(_FIRST_SIGN)}-{chr(_FIRST_SIGN + max(1, len(self._shown)) - 1)}]"
        self._hidden = re.compile("|".join([*map(re.escape, self._names), "\ue002", signs]))
        self._signed = re.compile(f"\ue002([0-9]+)\ue003|{signs}")

    def find(self, text: str) -> str | None:
        """Returns the first control string in a text, or None."""
        if self._first is not None:
            if self._first not in text:
                return None
        elif len(self._firsts) <= _FEW and not any([first in text for first in self._firsts]):
            return None
        match = self._pattern.search(text)
        return match.group() if match else None

    def holders(self, texts: Sequence[str]) -> list[int]:
        """Returns which texts hold a control string."""
        doubtful: Iterable[int] = range(len(texts))
        if len(self._firsts) <= _FEW:
            doubtful = sorted({at for first in self._firsts for at, text in enumerate(texts) if first in text})
        return [at for at in doubtful if self.find(texts[at]) is not None]

    def find_in(self, value: Any) -> str | None:
        """Returns the first control string in a structure of strings, or None."""
        if isinstance(value, str):
            return self.find(value)
        if isinstance(value, Mapping):
            value = [*value, *value.values()]
        if isinstance(value, (list, tuple)):
            return next((found for item in value if (found := self.find_in(item)) is not None), None)
        return None

    def hide(self, value: Any) -> Any:
        """Returns the value (a string, or a structure of them) with each control string as private-use characters."""
        if isinstance(value, str):
            return self._hidden.sub(self._sign, value)
        if isinstance(value, Mapping):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.hide(item) for item in value]
        return value

    def reveal(self, text: str) -> str:
        """Returns a text as it was before `hide`; also a part of a text."""
        return self._signed.sub(self._meant, text)

    def _sign(self, match: re.Match[str]) -> str:
        found = match.group()
        if found in self._signs:
            return self._signs[found]
        number = ord(found) if found not in self.ids else _NAMES + self._names.index(found)
        return f"\ue002{number}\ue003"

    def _meant(self, match: re.Match[str]) -> str:
        if match.group(1) is None:
            return self._shown[ord(match.group()) - _FIRST_SIGN] if self._shown else match.group()
        number = int(match.group(1))
        return chr(number) if number < _NAMES else self._names[number - _NAMES]

    def cut(self, text: str, begin: int = 0, end: int | None = None) -> Iterator[Cut]:
        """Returns the control tokens between two offsets, and the stretches of text between them."""
        return cut_at(self._pattern, self.ids, text, begin, end, self._flagged)

    def first(self, text: str, begin: int, end: int) -> Cut | None:
        """Returns the first control token between two offsets."""
        return next((cut for cut in self.cut(text, begin, end) if cut.id >= 0), None)

    def last(self, text: str, begin: int, end: int) -> Cut | None:
        """Returns the last control token between two offsets, if only white space follows it."""
        controls = [cut for cut in self.cut(text, begin, end) if cut.id >= 0]
        return controls[-1] if controls and not text[controls[-1].end : end].strip() else None
