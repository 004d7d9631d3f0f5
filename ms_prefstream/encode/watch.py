"""A string that notices when a chat template looks into it instead of only writing it down.

Rendering with watched contents proves that the text around them does not depend on them: what the template writes
around a content for one conversation then holds for every conversation with the same roles.
"""

from __future__ import annotations

from typing import Any


class Watched(str):
    """A content that records, in a list it shares with everything concatenated from it, what was done to it.

    Concatenation and printing pass unrecorded. ``strip()`` of the content itself is recorded as ``"strip"``; every
    other look (length, truth, comparison, search, slicing, case, ``strip`` of a concatenation) as ``"look"``.
    """

    events: list[str]
    whole: bool

    def __new__(cls, text: str, events: list[str], whole: bool = True) -> Watched:
        self = super().__new__(cls, text)
        self.events = events
        self.whole = whole
        return self

    def __add__(self, other: str) -> Watched:
        return Watched(str.__add__(self, other), self.events, whole=False)

    def __radd__(self, other: str) -> Watched:
        return Watched(str.__add__(other, self), self.events, whole=False)

    def strip(self, chars: str | None = None, /) -> Watched:
        self.events.append("strip" if chars is None and self.whole else "look")
        return Watched(str.strip(self, chars), self.events, self.whole)


def _recorded(name: str) -> Any:
    original = getattr(str, name)

    def method(self: Watched, *args: Any, **kwargs: Any) -> Any:
        self.events.append("look")
        return original(self, *args, **kwargs)

    return method


_HARMLESS = {"__add__", "__radd__", "__str__", "__hash__", "__new__", "__init__", "__class__", "__getattribute__",
             "__setattr__", "__delattr__", "__dir__", "__doc__", "__init_subclass__", "__subclasshook__", "__reduce__",
             "__reduce_ex__", "__sizeof__", "__repr__", "__getnewargs__", "__getstate__", "strip"}  # fmt: skip
for _name in dir(str):
    if _name not in _HARMLESS and callable(getattr(str, _name)):
        setattr(Watched, _name, _recorded(_name))
