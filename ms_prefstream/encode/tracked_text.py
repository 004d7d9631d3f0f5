"""Strings that record which characters came from which message while a chat template writes them.

A template gets contents as `Tracked` strings. Joining, formatting and stripping keep the record, so the rendered text
itself shows where every content stands, without a search. `ContentReads` records how the template read the contents. If
it only wrote them, the text that it wrote around them holds for all contents. If it also asked a `Question`, such as
whether a word is in a content, the text holds for all contents with the same answer.

    render([{"role": "user", "content": Hi}])  ->  "<|im_start|>user\\nHi<|im_end|>\\n", Run(begin=17, end=19, owner=0)
"""

from __future__ import annotations

import bisect
import functools
import itertools
import operator
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, SupportsIndex, TypeAlias

Edits: TypeAlias = tuple[tuple[str, "str | None"], ...]
"""Strips in the order in which they were made: (``strip``, ``lstrip`` or ``rstrip``, characters or None)."""


def edited(content: str, edits: Edits) -> str:
    """Returns the content after these strips."""
    for name, characters in edits:
        content = getattr(str, name)(content, characters)
    return content


def edited_all(contents: Sequence[str], edits: Edits) -> Sequence[str]:
    """Returns each content after these strips; where both sides of a pair share an object, they share the new one."""

    def changed(texts: Iterable[str]) -> Iterable[str]:
        for name, characters in edits:
            texts = map(operator.methodcaller(name, characters), texts)
        return texts

    return by_object(contents, changed) if edits else contents


def by_object(column: Sequence[Any], convert: Callable[[Iterable[Any]], Iterable[Any]]) -> list[Any]:
    """Returns what each value of a column becomes, where `convert` is called with every object in it once."""
    distinct = dict(zip(map(id, column), column, strict=True))
    new = dict(zip(distinct, convert(distinct.values()), strict=True))
    return [new[id(value)] for value in column]


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
        form: How the complete value is written as JSON, see `ms_prefstream.encode.tracked_values`; else None.
    """

    begin: int
    end: int
    owner: int
    edits: Edits = ()
    whole: bool = True
    at: int = 0
    held: int = -1
    form: Any = None

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


class Question(NamedTuple):
    """A question about one content, whose answer is everything that the asker sees of it.

    Attributes:
        owner: The message with that content.
        edits: The strips that were applied before.
        name: The method of a string that answers it; ``__len__`` asks whether there is any text.
        given: Its arguments, constants.
    """

    owner: int
    edits: Edits
    name: str
    given: tuple[Any, ...] = ()

    def answer(self, contents: Sequence[str]) -> bool:
        """Returns the answer for the contents of a conversation."""
        return self.answers([contents[self.owner]])[0]

    def answers(self, column: Sequence[str]) -> list[bool]:
        """Returns the answer for each of many contents."""
        _, edits, name, given = self
        column = edited_all(column, edits)
        if name == "__contains__":
            (word,) = given
            return [word in content for content in column]
        ask = operator.methodcaller(name, *given)
        return [bool(ask(content)) for content in column]


@dataclass
class ContentReads:
    """Record of the ways in which a template read the contents of one rendering.

    Attributes:
        looked: Whether it measured, cut or compared one: its text may depend on everything in the contents.
        asked: Its questions before the first such look, in order, with their answers.
        answering: The contents that answer the questions; None for the contents that are rendered. With them a text
            that is written as JSON is not read, because its run keeps the form.
    """

    looked: bool = False
    asked: dict[Question, bool] = field(default_factory=dict)
    answering: Sequence[str] | None = None

    def ask(self, question: Question, text: str) -> bool:
        """Returns the answer to a question about a content, which is rendered as `text`."""
        found = bool(getattr(str, question.name)(text, *question.given))
        if question.owner < 0 and self.answering is not None:  # a value, of which only that it is not blank is known
            blank = all(characters is None or not characters.strip() for _, characters in question.edits)
            self.looked = self.looked or question.name != "__len__" or not blank
            return found
        answer = found if self.answering is None else question.answer(self.answering)
        if not self.looked:
            self.asked[question] = answer
        if question.name == "__len__" and answer is not found:
            self.looked = True  # an empty content has no place in the text
        return answer


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
    def alone(self) -> Run | None:
        """The run, if the string is one whole content and nothing else."""
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
        size, alone = str.__len__(self), self.alone
        if alone is not None:
            return self.reads.ask(Question(alone.owner, alone.edits, "__len__"), self)
        if size == sum(run.end - run.begin for run in self.runs):
            self.reads.looked = True  # otherwise some of it is template text, and it is true for all contents
        return size > 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, str):
            return False
        if not str.__len__(other) and self.alone is not None:
            return not self
        return self._ask("__eq__", other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def _ask(self, name: str, /, *given: Any) -> bool:
        """Returns what the method of strings returns; a question if it is about one whole content and constants."""
        alone = self.alone
        if alone is None or alone.held >= 0 or not all(map(_is_constant, given)):
            self.reads.looked = True
            return bool(getattr(str, name)(self, *given))
        return self.reads.ask(Question(alone.owner, alone.edits, name, given), self)

    startswith: Any = functools.partialmethod(_ask, "startswith")
    endswith: Any = functools.partialmethod(_ask, "endswith")
    __contains__: Any = functools.partialmethod(_ask, "__contains__")

    def __hash__(self) -> int:
        self.reads.looked = True  # a look-up with the content as its key
        return str.__hash__(self)

    def _strip(self, name: str, characters: str | None = None, /) -> Tracked:
        text = getattr(str, name)(self, characters)
        begin = 0 if name == "rstrip" else str.__len__(self) - len(str.lstrip(self, characters))
        alone = self.alone
        if alone is None or alone.held >= 0:
            self.reads.looked = True
            return self.clip(begin, begin + len(text))
        run = Run(0, len(text), alone.owner, (*alone.edits, (name, characters)), True, alone.at + begin)
        return Tracked(text, (run,), self.reads)

    strip = functools.partialmethod(_strip, "strip")
    lstrip = functools.partialmethod(_strip, "lstrip")
    rstrip = functools.partialmethod(_strip, "rstrip")

    def __getitem__(self, key: SupportsIndex | slice, /) -> str:
        self.reads.looked = True
        if isinstance(key, slice):
            begin, end, step = key.indices(str.__len__(self))
            return self.clip(begin, max(begin, end)) if step == 1 else str.__getitem__(self, key)
        begin = range(str.__len__(self))[key]
        return self.clip(begin, begin + 1)

    def __iter__(self) -> Iterator[str]:
        self.reads.looked = True
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
        self.reads.looked = True
        return self.clip(len(prefix) if str.startswith(self, prefix) else 0, str.__len__(self))

    def removesuffix(self, suffix: str, /) -> str:
        self.reads.looked = True
        return self.clip(0, len(str.removesuffix(self, suffix)))

    def _pieces(self, parts: Sequence[str], gap: int | None = None) -> list[str]:
        """Returns parts of the text, in order, as clips of it; `gap` is the known distance between them, if any."""
        self.reads.looked = True
        found: list[str] = []
        position = 0
        for part in parts:
            position = str.find(self, part, position) if gap is None else position
            found.append(self.clip(position, position + len(part)))
            position += len(part) + (gap or 0)
        return found

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        self.reads.looked = True
        if not old:
            return str.replace(self, old, new, count)
        return joined(
            part for at, piece in enumerate(self.split(old, count)) for part in ((new, piece) if at else (piece,))
        )


def _is_constant(value: Any) -> bool:
    """Returns whether an argument of a method is text of the template, or a tuple of such texts."""
    return type(value) is str or (type(value) is tuple and all(type(item) is str for item in value))


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
        value.reads.looked = True
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
        self.reads.looked = True
        found = original(self, *args, **options)
        return self.changed(found) if isinstance(found, str) else found

    method.__name__ = name
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
