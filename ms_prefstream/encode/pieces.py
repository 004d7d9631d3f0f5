"""Cuts rendered text at control tokens, and hides control tokens in content from a template being rendered."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ms_prefstream.encode.layout import Kind, Piece

SLOT = re.compile("\ue000(\\d+)\ue001")
_MASK = re.compile("\ue002(\\d+)\ue003")


def slot(index: int) -> str:
    """The placeholder for the content of message `index`; private-use characters no template writes."""
    return f"\ue000{index}\ue001"


class ControlTokens:
    """The special tokens of a tokenizer, as text that must be found, hidden or refused.

    Args:
        special: Control string -> id.
    """

    def __init__(self, special: Mapping[str, int]) -> None:
        self.ids = dict(special)
        self._names = sorted(self.ids, key=lambda name: (-len(name), name))
        self._pattern = re.compile("|".join(map(re.escape, self._names)) or "(?!)")
        self._index = {name: index for index, name in enumerate(self._names)}
        first = {name[:1] for name in self._names}
        self._first = first.pop() if len(first) == 1 else None

    def find(self, text: str) -> str | None:
        """The first control string in a text, or None."""
        if self._first is not None and self._first not in text:
            return None
        match = self._pattern.search(text)
        return match.group() if match else None

    def hide(self, value: Any) -> Any:
        """The value (a string, or a structure of them) with each control string replaced by a private-use mask."""
        if isinstance(value, str):
            return self._pattern.sub(lambda match: f"\ue002{self._index[match.group()]}\ue003", value)
        if isinstance(value, Mapping):
            return {key: self.hide(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.hide(item) for item in value]
        return value

    def reveal(self, text: str) -> str:
        """The inverse of `hide` on text."""
        return _MASK.sub(lambda match: self._names[int(match.group(1))], text) if "\ue002" in text else text

    def cut(self, text: str, owner: int, kind: Kind) -> Iterator[tuple[Piece, int]]:
        """Pieces of template text: runs of text with control -1, control tokens with their id."""
        position = 0
        for match in self._pattern.finditer(text):
            if match.start() > position:
                yield Piece(owner, kind, self.reveal(text[position : match.start()])), -1
            yield Piece(owner, kind, match.group()), self.ids[match.group()]
            position = match.end()
        if position < len(text):
            yield Piece(owner, kind, self.reveal(text[position:])), -1

    def last(self, text: str) -> int:
        """Where the last control token of a text begins if only white space follows it, otherwise len(text)."""
        matches = list(self._pattern.finditer(text))
        return matches[-1].start() if matches and not text[matches[-1].end() :].strip() else len(text)
