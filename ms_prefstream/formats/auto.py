"""format="auto": which preset reads a row, decided per row from the names and types of its fields.

1. A preset fits when every field of one of its patterns is there, not null, and of a fitting type.
2. A pattern with more fields goes before one whose fields it includes; with the same fields, the one that allows fewer
   types does. (`score_chosen` beside prompt, chosen and rejected: `ultrafeedback`, not `messages`.) A field of the
   wrong type that keeps a row from the pattern with more fields is a bad_type error, never ignored.
3. If patterns of two presets remain, they would read the row differently: ambiguous_format, naming them.
4. Patterns for rows without anything to compare (a prompt or a conversation alone) come last, and only when the row
   has no further field of any preset, such as a `chosen` without `rejected`; a few harmless names are excepted.
5. Rows for `strings` whose prompt or response begins with a role marker of hh-rlhf are ambiguous_format too: the only
   look at contents.

Neither the order of a row's fields nor the rows before it have any influence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats.base import check_row
from ms_prefstream.formats.fields import missing, names, nearest, wrong_type
from ms_prefstream.formats.record import Record

TEXT = frozenset({"a string"})
LIST = frozenset({"a list"})
NUMBER = frozenset({"a number"})
TURNS = frozenset({"a string", "a list", "an object"})

_MAX_SHAPES = 1024  # rows whose fields never repeat must not fill the memory
_MAX_VERDICTS = 256


@dataclass(frozen=True, slots=True)
class Pattern:
    """Fields by which a preset is recognised.

    Args:
        fields: Name -> the kinds of value that fit.
        lone: Whether the pattern is for rows with nothing to compare (rule 4).
    """

    fields: Mapping[str, frozenset[str]]
    lone: bool = False

    def fits(self, kinds: Mapping[str, str]) -> bool:
        """Whether a row with fields of these kinds matches."""
        return all(kinds.get(name) in allowed for name, allowed in self.fields.items())

    def unfit(self, kinds: Mapping[str, str]) -> list[str]:
        """The fields whose kind does not fit."""
        return [name for name, allowed in self.fields.items() if kinds[name] not in allowed]

    def goes_before(self, other: Pattern) -> bool:
        """Whether this pattern is the more specific one (rule 2)."""
        mine, theirs = self.fields.keys(), other.fields.keys()
        if mine == theirs:
            return self.fields != other.fields and all(self.fields[name] <= other.fields[name] for name in mine)
        return mine > theirs


def needs(**fields: frozenset[str]) -> Pattern:
    """A pattern: ``needs(prompt=TEXT, answers=LIST)``."""
    return Pattern(fields)


def alone(**fields: frozenset[str]) -> Pattern:
    """A pattern for rows with nothing to compare: ``alone(messages=LIST)``."""
    return Pattern(fields, lone=True)


@dataclass(frozen=True, slots=True)
class Entry:
    """A preset as `Auto` sees it: its name, one of its patterns, and what reads the row."""

    preset: str
    pattern: Pattern
    read: Callable[[Any], Record]


def kind_of(found: type) -> str:
    """What patterns call a value of this type."""
    if issubclass(found, str):
        return "a string"
    if issubclass(found, (list, tuple, np.ndarray)):
        return "a list"
    if issubclass(found, Mapping):
        return "an object"
    if issubclass(found, (int, float, np.number)) and not issubclass(found, bool):
        return "a number"
    return "null" if found is type(None) else "another type"


class _Shape:
    """Rows with the same field names: the fields that decide, and the decisions for the types met so far."""

    __slots__ = ("decisive", "verdicts")

    def __init__(self, decisive: tuple[str, ...]) -> None:
        self.decisive = decisive
        self.verdicts: dict[tuple[type, ...], Callable[[Any], Record]] = {}


class Auto:
    """The format that finds the preset of each row.

    Args:
        entries: The patterns of all presets.
        harmless: Fields that may stand beside a prompt or conversation alone (rule 4).
    """

    name = "auto"

    def __init__(self, entries: Sequence[Entry], harmless: Iterable[str]) -> None:
        self._entries = tuple(entries)
        self._harmless = frozenset(harmless)
        self._decisive = frozenset(name for entry in entries for name in entry.pattern.fields)
        self._shapes: dict[tuple[str, ...], _Shape] = {}

    def __call__(self, row: Any) -> Record:
        """The record of `row`, read by the preset that fits.

        Raises:
            RowError: ambiguous_format, missing_field or bad_type when no single preset fits.
        """
        if type(row) is not dict:
            check_row(row)
        fields = tuple(row)
        shape = self._shapes.get(fields)
        if shape is None:
            shape = self._learn(fields)
        types = tuple([type(row[name]) for name in shape.decisive])
        read = shape.verdicts.get(types)
        if read is None:
            read = self.decide(row).read
            if len(shape.verdicts) >= _MAX_VERDICTS:
                shape.verdicts.clear()
            shape.verdicts[types] = read
        return read(row)

    def decide(self, row: Mapping[str, Any]) -> Entry:
        """The preset that reads a row, by the rules of this module."""
        kinds = {name: kind_of(type(row[name])) for name in self._decisive & row.keys() if row[name] is not None}
        fitting = [e for e in self._entries if not e.pattern.lone and e.pattern.fits(kinds)]
        if not fitting:
            telling = kinds.keys() - self._harmless
            lone = [e for e in self._entries if e.pattern.lone and telling <= e.pattern.fields.keys()]
            fitting = [e for e in lone if e.pattern.fits(kinds)]
        best = [e for e in fitting if not any(other.pattern.goes_before(e.pattern) for other in fitting)]
        presets = sorted({entry.preset for entry in best})
        if len(presets) > 1:
            raise RowError(
                Reason.AMBIGUOUS_FORMAT,
                f"the fields {names(row)} fit several formats, which would read them differently: {', '.join(presets)}",
                f"Name the one that is meant, for example format={presets[0]!r}",
            )
        if not best:
            raise self._refusal(row, kinds)
        self._check_neighbours(best[0].pattern, row, kinds)
        return best[0]

    def _learn(self, fields: tuple[str, ...]) -> _Shape:
        if len(self._shapes) >= _MAX_SHAPES:
            self._shapes.clear()
        return self._shapes.setdefault(fields, _Shape(tuple([name for name in fields if name in self._decisive])))

    def _check_neighbours(self, chosen: Pattern, row: Mapping[str, Any], kinds: Mapping[str, str]) -> None:
        """Refuse a row that a more specific pattern would have fitted but for the type of a field that it adds."""
        for entry in self._entries:
            if chosen.fields.keys() < entry.pattern.fields.keys() <= kinds.keys():
                unfit = entry.pattern.unfit(kinds)
                if unfit and not chosen.fields.keys() & unfit:
                    raise _of_wrong_type(entry, unfit[0], row)

    def _refusal(self, row: Mapping[str, Any], kinds: Mapping[str, str]) -> RowError:
        """What keeps the row from the format that it is nearest to."""
        complete = [e for e in self._entries if e.pattern.fields.keys() <= kinds.keys()]
        if complete:
            entry = max(complete, key=lambda e: (len(e.pattern.fields), sum(map(len, e.pattern.fields.values()))))
            unfit = entry.pattern.unfit(kinds)
            if unfit:
                return _of_wrong_type(entry, unfit[0], row)
        entry = min((e for e in self._entries if not e.pattern.lone), key=lambda e: _distance(e.pattern, kinds))
        if not kinds:
            return missing(row, "prompt")
        lacking = [name for name in entry.pattern.fields if name not in kinds]
        nulls = [name for name in lacking if name in row]
        guesses = [(name, nearest(name, row.keys() - kinds.keys())) for name in lacking if name not in row]
        hints = [f"did you mean {guess!r} for {name!r}?" for name, guess in guesses if guess]
        return RowError(
            Reason.MISSING_FIELD,
            f"no format fits the fields {names(row)}; nearest is {entry.preset!r}, which also needs {names(lacking)}"
            + (f" (null: {names(nulls)})" if nulls else "")
            + (f"; {' '.join(hints)}" if hints else ""),
            "Rename the fields, or give format= a function row -> row with {prompt, chosen, rejected}",
        )

    def __repr__(self) -> str:
        return "auto()"

    def __reduce__(self) -> tuple[Any, ...]:
        return Auto, (self._entries, self._harmless)  # decisions are made again in the other process


def _distance(pattern: Pattern, kinds: Mapping[str, str]) -> tuple[int, int]:
    """How far a row is from a pattern: fields in common count most, then fields that lack."""
    common = len(pattern.fields.keys() & kinds.keys())
    return -common, len(pattern.fields) - common


def _of_wrong_type(entry: Entry, name: str, row: Mapping[str, Any]) -> RowError:
    expected = " or ".join(sorted(entry.pattern.fields[name]))
    return wrong_type(name, row[name], f"{expected}, as format {entry.preset!r} has it")
