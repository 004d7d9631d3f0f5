"""Selection of a preset for each row from the names and types of its fields: ``format="auto"``.

1. A preset fits when every field of one of its patterns exists, is not null, and has a fitting type.
2. A pattern with more fields goes before one whose fields it includes; with the same fields, the one that allows fewer
   types does. (`score_chosen` beside prompt, chosen and rejected: `ultrafeedback`, not `messages`.) A field of the
   wrong type that keeps a row from the pattern with more fields is a bad_type error, never ignored.
3. If patterns of two presets remain, they would read the row differently: ambiguous_format, naming them. Patterns that
   yield leave the row to the others.
4. Patterns for rows without anything to compare (a prompt or a conversation alone) come last, and only when the row
   has no further field of any preset, such as a `chosen` without `rejected`; a few harmless names are excepted.
5. Rows for `strings` whose prompt or response begins with a role marker of hh-rlhf are ambiguous_format too. No other
   rule reads the contents of a field.

Neither the order of a row's fields nor earlier rows have any influence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats.base import Row, check_row
from ms_prefstream.formats.fields import missing, names, nearest, wrong_type
from ms_prefstream.formats.record import Record
from ms_prefstream.formats.suggest import ready_line

TEXT = frozenset({"a string"})
LIST = frozenset({"a list"})
NUMBER = frozenset({"a number"})
TURNS = frozenset({"a string", "a list", "an object"})

PAIR_OF_TEXTS = {"chosen": TEXT, "rejected": TEXT}
PAIR_OF_LISTS = {"chosen": LIST, "rejected": LIST}
PAIR_OF_TURNS = {"chosen": TURNS, "rejected": TURNS}

_MAX_DECISIONS = 1024  # bounds the memory for rows whose fields never repeat


@dataclass(frozen=True, slots=True)
class Pattern:
    """Fields by which a preset is recognised.

    Args:
        fields: Name -> the kinds of value that fit.
        lone: Whether the pattern is for rows with nothing to compare (rule 4).
        yields: Whether it leaves a row to patterns of other presets (rule 3).
    """

    fields: Mapping[str, frozenset[str]]
    lone: bool = False
    yields: bool = False

    def fits(self, kinds: Mapping[str, str]) -> bool:
        """Returns whether a row with fields of these kinds matches."""
        return all(kinds.get(name) in allowed for name, allowed in self.fields.items())

    def unfit(self, kinds: Mapping[str, str]) -> list[str]:
        """Returns the fields whose kind does not fit."""
        return [name for name, allowed in self.fields.items() if kinds[name] not in allowed]

    def goes_before(self, other: Pattern) -> bool:
        """Returns whether this pattern is the more specific one (rule 2)."""
        mine, theirs = self.fields.keys(), other.fields.keys()
        if mine == theirs:
            return self.fields != other.fields and all(self.fields[name] <= other.fields[name] for name in mine)
        return mine > theirs


def needs(**fields: frozenset[str]) -> Pattern:
    """Returns a pattern: ``needs(prompt=TEXT, answers=LIST)``."""
    return Pattern(fields)


def alone(**fields: frozenset[str]) -> Pattern:
    """Returns a pattern for rows with nothing to compare: ``alone(messages=LIST)``."""
    return Pattern(fields, lone=True)


def unless(**fields: frozenset[str]) -> Pattern:
    """Returns a pattern that yields: ``unless(prompt=TEXT, completion=TEXT)`` fits unless another preset does."""
    return Pattern(fields, yields=True)


@dataclass(frozen=True, slots=True)
class Entry:
    """A preset as `Auto` uses it: its name, one of its patterns, and the format that reads the row."""

    preset: str
    pattern: Pattern
    read: Callable[[Any], Record]


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
        self._known = frozenset(name for entry in entries for name in entry.pattern.fields)
        # Names and types of a row's fields -> the format that reads such rows.
        self._decisions: dict[tuple[tuple[str, ...], tuple[type, ...]], Callable[[Any], Record]] = {}

    def __call__(self, row: Any) -> Record:
        """Returns the record of `row`, read by the preset that fits.

        Raises:
            RowError: ambiguous_format, missing_field or bad_type when no single preset fits.
        """
        if type(row) is not dict:
            check_row(row)
        shape = tuple(row), tuple(map(type, row.values()))
        read = self._decisions.get(shape)
        if read is None:
            read = self.decide(row).read
            if len(self._decisions) >= _MAX_DECISIONS:
                self._decisions.clear()
            self._decisions[shape] = read
        return read(row)

    def decide(self, row: Row) -> Entry:
        """Returns the preset that reads a row, by the rules of this module."""
        kinds = {name: _kind_of(type(row[name])) for name in self._known & row.keys() if row[name] is not None}
        fitting = [e for e in self._entries if not e.pattern.lone and e.pattern.fits(kinds)]
        if not fitting:
            telling = kinds.keys() - self._harmless
            lone = [e for e in self._entries if e.pattern.lone and telling <= e.pattern.fields.keys()]
            fitting = [e for e in lone if e.pattern.fits(kinds)]
        best = [e for e in fitting if not any(other.pattern.goes_before(e.pattern) for other in fitting)]
        best = [e for e in best if not e.pattern.yields] or best
        presets = sorted({entry.preset for entry in best})
        if len(presets) > 1:
            raise RowError(
                Reason.AMBIGUOUS_FORMAT,
                f"the fields {names(row)} fit several formats, which would read them differently: {', '.join(presets)}",
                f"Name the one that is meant, for example format={presets[0]!r}",
            )
        if not best:
            raise self._nothing_fits(row, kinds)
        self._check_neighbours(best[0].pattern, row, kinds)
        return best[0]

    def _check_neighbours(self, chosen: Pattern, row: Row, kinds: Mapping[str, str]) -> None:
        """Checks that no more specific pattern fails only because of the type of a field that it adds."""
        for entry in self._entries:
            if chosen.fields.keys() < entry.pattern.fields.keys() <= kinds.keys():
                unfit = entry.pattern.unfit(kinds)
                if unfit and not chosen.fields.keys() & unfit:
                    raise _of_wrong_type(entry, unfit[0], row)

    def _nothing_fits(self, row: Row, kinds: Mapping[str, str]) -> RowError:
        """Returns the error that says what keeps the row from the nearest format."""
        complete = [e for e in self._entries if e.pattern.fields.keys() <= kinds.keys()]
        line = ready_line(row)
        if complete and not (line or "").startswith('fields={"prompt"'):
            entry = max(complete, key=lambda e: (len(e.pattern.fields), _generality(e.pattern)))
            unfit = entry.pattern.unfit(kinds)
            if unfit:
                return _of_wrong_type(entry, unfit[0], row)
        entry = min((e for e in self._entries if not e.pattern.lone), key=lambda e: _distance(e.pattern, kinds))
        if line is not None:
            return RowError(Reason.MISSING_FIELD, f"no format fits the fields {names(row)}", f"Pass {line}")
        if not kinds:
            return missing(row, "prompt")
        lacking = [name for name in entry.pattern.fields if name not in kinds]
        nulls = [name for name in lacking if name in row]
        guesses = {name: nearest(name, row.keys() - kinds.keys()) for name in lacking if name not in row}
        misspelt = {name: guess for name, guess in guesses.items() if guess}
        return RowError(
            Reason.MISSING_FIELD,
            f"no format fits the fields {names(row)}; nearest is {entry.preset!r}, which also needs {names(lacking)}"
            + (f" (null: {names(nulls)})" if nulls else "")
            + "".join(f"; did you mean {name!r} instead of {guess!r}?" for name, guess in misspelt.items()),
            "Pass fields=" + repr(misspelt).replace("'", '"')
            if misspelt
            else "Rename the fields, or give format= a function row -> row with {prompt, chosen, rejected}",
        )

    def __repr__(self) -> str:
        return "auto()"

    def __reduce__(self) -> tuple[Any, ...]:
        return Auto, (self._entries, self._harmless)  # the other process makes its own decisions


def _kind_of(found: type) -> str:
    """Returns how patterns call a value of this type."""
    if issubclass(found, str):
        return "a string"
    if issubclass(found, (list, tuple, np.ndarray)):
        return "a list"
    if issubclass(found, Mapping):
        return "an object"
    if issubclass(found, (int, float, np.number)) and not issubclass(found, bool):
        return "a number"
    return "another type"


def _distance(pattern: Pattern, kinds: Mapping[str, str]) -> tuple[int, int, int]:
    """Returns how far a row is from a pattern: common fields count most, then missing ones, then the allowed types."""
    common = len(pattern.fields.keys() & kinds.keys())
    return -common, len(pattern.fields) - common, -_generality(pattern)


def _generality(pattern: Pattern) -> int:
    return sum(map(len, pattern.fields.values()))


def _of_wrong_type(entry: Entry, name: str, row: Row) -> RowError:
    expected = " or ".join(sorted(entry.pattern.fields[name]))
    return wrong_type(name, row[name], f"{expected}, as format {entry.preset!r} has it")
