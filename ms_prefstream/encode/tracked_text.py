"""Strings that record which characters came from which message while a chat template writes them.

A template gets contents as `Tracked` strings. Joining, formatting and stripping keep the record, so the rendered text
itself shows where every content stands, without a search. `ContentReads` records whether the template read a content.
If it only wrote them, the text that it wrote around them holds for all contents.

    render([{"role": "user", "content": Hi}])  ->  "<|im_start|>user\\nHi<|im_end|>\\n", Run(begin=17, end=19, owner=0)
"""

from __future__ import annotations

import bisect
import functools
import itertools
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, SupportsIndex, TypeAlias

Edits: TypeAlias = tuple[tuple[str, "str | None"], ...]
"""Strips in the order in which they were made: (``strip``, ``lstrip`` or ``rstrip``, characters or None)."""


def edited(content: str, edits: Edits) -> str:
    """Returns the content after these strips."""
    for name, characters in edits:
        content = getattr(str, name)(content, characters)
    return content


class Run(NamedTuple):
    """Characters of one content inside a longer text.

    Attributes:
        begin: Where they begin.
        end: Where they end.
        owner: The message with that content; a negative number stands for another value of the row, see
            `ms_prefstream.encode.tracked_values`.
        edits: The strips that were applied to the content.
        whole: Whether the run is the complete result of these strips.
        at: Where they begin in the content.
        held: How many characters of the content, from `at` on, the run stands for, if it is not these characters
            themselves: they are written as JSON (all of them), or in other words (0). -1 if it is.
    """

    begin: int
    end: int
    owner: int
    edits: Edits = ()
    whole: bool = True
    at: int = 0
    held: int = -1

    @property
    def source(self) -> tuple[int, int]:
        """The characters of the content that the run stands for, [begin, end)."""
        return self.at, self.at + (self.end - self.begin if self.held < 0 else self.held)

    def clipped(self, begin: int, end: int, text: str) -> Run:
        """Returns the part of the run between two offsets of its text, in the text that begins at `begin`.

        A value as JSON is still held without its outer brackets: some templates add a key before the last one.
        """
        first, last = max(self.begin, begin), min(self.end, end)
        if (first, last) == (self.begin, self.end):
            return self._replace(begin=first - begin, end=last - begin)
        at, held = (self.at + first - self.begin, -1) if self.held < 0 else (self.at, 0)
        if self.held > 0 and self.owner < 0 and first < last:
            cut = str.__getitem__(text, slice(self.begin, first)) + str.__getitem__(text, slice(last, self.end))
            held = 0 if cut.strip("[]{} \n") else self.held
        return Run(first - begin, last - begin, self.owner, self.edits, False, at, held)


@dataclass
class ContentReads:
    """Record of the ways in which a template read the contents of one rendering.

    Attributes:
        was_read: Whether it compared, searched, measured or cut one: its text may depend on the contents.
        needed: (owner, edits) of contents that it only tested for being non-empty.
    """

    was_read: bool = False
    needed: set[tuple[int, Edits]] = field(default_factory=set)


class Leaf:
    """A value of a row that is no text: a number, a list or a mapping. ``str`` of it is `Tracked`."""

    def __format__(self, form: str, /) -> str:
        return format(str(self), form)


class Tracked(str):
    """A string with the runs of contents in it, in order."""

    runs: tuple[Run, ...]
    reads: ContentReads

    def __new__(cls, text: str, runs: tuple[Run, ...], reads: ContentReads) -> Tracked:
        self = super().__new__(cls, text)
        self.runs = runs
        self.reads = reads
        return self

    def clip(self, begin: int, end: int) -> Tracked:
        """Returns the characters [begin, end) without marking them as read."""
        runs = [
            run.clipped(begin, end, self)
            for run in self.runs
            if (run.begin < end and begin < run.end) or (run.begin == run.end and begin <= run.begin <= end)
        ]
        return Tracked(str.__getitem__(self, slice(begin, end)), tuple(runs), self.reads)

    def changed(self, text: str) -> Tracked:
        """Returns a text that was made of this one.

        Where only white space differs the runs stay, else they stand for nothing of their contents.
        """
        here = [at for at, character in enumerate(plain(self)) if not character.isspace()]
        there = [at for at, character in enumerate(text) if not character.isspace()]
        owners = dict.fromkeys(run.owner for run in self.runs)
        if [str.__getitem__(self, at) for at in here] != [text[at] for at in there]:
            return Tracked(text, tuple(Run(0, len(text), owner, (), False, 0, 0) for owner in owners), self.reads)
        runs = []
        for run in self.runs:
            first, last = bisect.bisect_left(here, run.begin), bisect.bisect_left(here, run.end)
            if first < last:
                at, end = run.source
                runs.append(Run(there[first], there[last - 1] + 1, run.owner, (), False, at, end - at))
        return Tracked(text, tuple(runs), self.reads)

    @property
    def _alone(self) -> Run | None:
        """Returns the run, if the string is one whole content and nothing else."""
        if len(self.runs) != 1:
            return None
        run = self.runs[0]
        return run if run.whole and run.begin == 0 and run.end == str.__len__(self) else None

    def __str__(self) -> str:
        return self

    def __add__(self, other: str) -> str:
        return joined((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> str:
        return joined((other, self)) if isinstance(other, str) else NotImplemented

    def __bool__(self) -> bool:
        size, alone = str.__len__(self), self._alone
        if alone is not None:
            self.reads.needed.add((alone.owner, alone.edits))
        elif size == sum(run.end - run.begin for run in self.runs):
            self.reads.was_read = True  # otherwise some of it is template text, and it is true for all contents
        return size > 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, str):
            return False
        if not str.__len__(other) and self._alone is not None:
            return not self
        self.reads.was_read = True
        return str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        self.reads.was_read = True  # a look-up with the content as its key
        return str.__hash__(self)

    def _strip(self, name: str, characters: str | None = None, /) -> Tracked:
        text = getattr(str, name)(self, characters)
        begin = 0 if name == "rstrip" else str.__len__(self) - len(str.lstrip(self, characters))
        alone = self._alone
        if alone is None or alone.held >= 0:
            self.reads.was_read = True
            return self.clip(begin, begin + len(text))
        run = Run(0, len(text), alone.owner, (*alone.edits, (name, characters)), True, alone.at + begin)
        return Tracked(text, (run,), self.reads)

    strip = functools.partialmethod(_strip, "strip")
    lstrip = functools.partialmethod(_strip, "lstrip")
    rstrip = functools.partialmethod(_strip, "rstrip")

    def __getitem__(self, key: SupportsIndex | slice, /) -> str:
        self.reads.was_read = True
        if isinstance(key, slice):
            begin, end, step = key.indices(str.__len__(self))
            return self.clip(begin, max(begin, end)) if step == 1 else str.__getitem__(self, key)
        begin = range(str.__len__(self))[key]
        return self.clip(begin, begin + 1)

    def __iter__(self) -> Iterator[str]:
        self.reads.was_read = True
        return (self.clip(at, at + 1) for at in range(str.__len__(self)))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._pieces(str.split(self, sep, maxsplit), len(sep) if sep else None)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._pieces(str.rsplit(self, sep, maxsplit), len(sep) if sep else None)

    def splitlines(self, keepends: bool = False) -> list[str]:
        return self._pieces(str.splitlines(self, keepends))

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        return tuple(self._pieces(str.partition(self, sep)))  # type: ignore[return-value]

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        return tuple(self._pieces(str.rpartition(self, sep)))  # type: ignore[return-value]

    def removeprefix(self, prefix: str, /) -> str:
        self.reads.was_read = True
        return self.clip(len(prefix) if str.startswith(self, prefix) else 0, str.__len__(self))

    def removesuffix(self, suffix: str, /) -> str:
        self.reads.was_read = True
        return self.clip(0, len(str.removesuffix(self, suffix)))

    def _pieces(self, parts: Sequence[str], gap: int | None = None) -> list[str]:
        """Returns parts of the text, in order, as clips of it; `gap` is the known distance between them, if any."""
        self.reads.was_read = True
        found: list[str] = []
        position = 0
        for part in parts:
            position = str.find(self, part, position) if gap is None else position
            found.append(self.clip(position, position + len(part)))
            position += len(part) + (gap or 0)
        return found

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        self.reads.was_read = True
        if not old:
            return str.replace(self, old, new, count)
        return joined(
            part for at, piece in enumerate(self.split(old, count)) for part in ((new, piece) if at else (piece,))
        )


def joined(parts: Iterable[str]) -> str:
    """Returns ``"".join(parts)`` with the runs of contents."""
    texts = list(parts)
    reads = next((text.reads for text in texts if isinstance(text, Tracked)), None)
    if reads is None:
        return "".join(texts)
    runs: list[Run] = []
    position = 0
    for text in texts:
        if isinstance(text, Tracked):
            runs += [run._replace(begin=run.begin + position, end=run.end + position) for run in text.runs]
        position += str.__len__(text)
    return Tracked("".join(texts), tuple(runs), reads)


def plain(text: str) -> str:
    """Returns the text as an ordinary string."""
    return str.__getitem__(text, slice(None))


def mark_read(value: Any) -> Any:
    """Returns the value, with the contents in it marked as read, at any depth."""
    if isinstance(value, Tracked):
        value.reads.was_read = True
    elif isinstance(value, Leaf):
        return value
    elif isinstance(value, dict):
        for item in value.values():
            mark_read(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            mark_read(item)
    return value


def _reading(name: str) -> Any:
    original = getattr(str, name)

    def method(self: Tracked, *args: Any, **options: Any) -> Any:
        self.reads.was_read = True
        found = original(self, *args, **options)
        return self.changed(found) if isinstance(found, str) else found

    return method


# Every other method of a string reads it. A text that it returns is tracked as far as only white space is different.
_READING = {"__lt__", "__le__", "__gt__", "__ge__", "__repr__", "__format__"}
for _name in (set(dir(str)) - set(dir(object)) | _READING) - set(vars(Tracked)):
    if callable(getattr(str, _name)) and _name not in ("__getnewargs__", "maketrans"):
        setattr(Tracked, _name, _reading(_name))


def percent(text: str, values: Any) -> str | None:
    """Returns ``text % values`` where every conversion is a plain ``%s``, else None; `text` is the template's own."""
    given = list(values) if isinstance(values, tuple) else [values]
    kinds = re.findall("(?s)%(.?)", text)
    if (
        set(kinds) - {"s", "%"}
        or kinds.count("s") != len(given)
        or not any(isinstance(value, (Tracked, Leaf)) for value in given)
    ):
        return None
    parts = re.split("(%[s%])", text)
    return joined("%" if part == "%%" else str(given.pop(0)) if part == "%s" else part for part in parts)


def braces(text: str, values: Sequence[Any], named: Mapping[str, Any]) -> str | None:
    """Returns ``text.format(*values, **named)`` where every field is plain (``{}``, ``{0}``, ``{name}``), else None."""
    given = {**{str(at): value for at, value in enumerate(values)}, **named}
    if not any(isinstance(value, (Tracked, Leaf)) for value in given.values()):
        return None
    parts: list[str] = []
    try:
        fields = list(string.Formatter().parse(text))
    except ValueError:
        return None  # Jinja reports the error
    numbers = map(str, itertools.count())
    for before, name, form, conversion in fields:
        parts.append(before)
        if name is None:
            continue
        found = given.get(name or next(numbers))
        if form or conversion or found is None:
            return None
        parts.append(str(found))
    return joined(parts)
