"""Checked access to the fields of a raw row: every fault is a `RowError` with a full sentence."""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from ms_prefstream.errors import Reason, RowError

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 60
_REPR.maxdict = _REPR.maxlist = _REPR.maxtuple = 3
_REPR.maxlevel = 2
_MAX_NAMES = 20


def short(value: Any) -> str:
    """Returns type and shortened value, for sentences: ``int 5``, ``null``, ``str 'once upon a ... ever after'``."""
    return "null" if value is None else f"{type(value).__name__} {_REPR.repr(value)}"


def names(fields: Iterable[Any]) -> str:
    """Returns field names for a sentence, sorted, so that the order of a row's keys never changes it."""
    found = sorted(map(str, fields))
    more = f" and {len(found) - _MAX_NAMES} more" if len(found) > _MAX_NAMES else ""
    return (", ".join(found[:_MAX_NAMES]) + more) or "none"


def nearest(name: str, known: Iterable[Any]) -> str | None:
    """Returns the known name most similar to `name`, or None if no name is similar."""
    close = difflib.get_close_matches(name, sorted(map(str, known)), n=1, cutoff=0.6)
    return close[0] if close else None


def missing(row: Mapping[str, Any], name: str, where: str = "") -> RowError:
    """Returns the error for a missing field: names it, the fields found and the most similar one."""
    guess = nearest(name, (key for key in row if key != name))
    return RowError(
        Reason.MISSING_FIELD,
        f"{where}{': ' if where else ''}field {name!r} is missing; found fields: {names(row)}",
        (f"Did you mean {name!r} instead of {guess!r}? " if guess else "")
        + (f'Pass fields={{"{name}": "{guess}"}}, rename' if guess and not where else "Rename")
        + " the field, choose another format, or give format= a function row -> row",
    )


def wrong_type(where: str, value: Any, expected: str, remedy: str = "") -> RowError:
    """Returns the error for a value of the wrong type; `where` is a field name or a phrase such as "item 2 of …"."""
    place = where if " " in where else f"field {where!r}"
    return RowError(Reason.BAD_TYPE, f"{place} is {short(value)}; expected {expected}", remedy)


def present(row: Mapping[str, Any], name: str) -> Any:
    """Returns the value of a field that must exist and not be null."""
    value = row.get(name)
    if value is None:
        raise wrong_type(name, None, "a value") if name in row else missing(row, name)
    return value


def text(row: Mapping[str, Any], name: str) -> str:
    """Returns the string in a required field."""
    value = row.get(name)
    if type(value) is str:
        return value
    if isinstance(value, str):
        return str(value)
    if value is None and name not in row:
        raise missing(row, name)
    raise wrong_type(name, value, "a string")


def two_strings(value: Any, where: str, expected: str) -> tuple[str, str]:
    """Returns `value` as two strings; it must be a list of them."""
    if isinstance(value, (list, tuple, np.ndarray)) and len(value) == 2 and all(isinstance(v, str) for v in value):
        return str(value[0]), str(value[1])
    raise wrong_type(where, value, expected)


def as_number(value: Any, where: str) -> float:
    """Returns `value` as a finite float; booleans and strings are not numbers."""
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise wrong_type(where, value, "a finite number")


def number(row: Mapping[str, Any], name: str) -> float:
    """Returns the finite number in a required field."""
    value = row.get(name)
    if value is None and name not in row:
        raise missing(row, name)
    return as_number(value, name)


def one_of(row: Mapping[str, Any], name: str, allowed: Collection[int]) -> int:
    """Returns the whole number in a required field; it must be one of `allowed`."""
    value = number(row, name)
    if value not in allowed:
        raise wrong_type(name, row[name], f"one of {', '.join(map(str, allowed))}")
    return int(value)


def margin_of(row: Mapping[str, Any], default: float | None = None) -> float | None:
    """Returns the number in the field `margin`, which any row of a pair may have; `default` when there is none."""
    value = row.get("margin")
    return default if value is None or value == "" else as_number(value, "margin")


def response_field(row: Mapping[str, Any]) -> str | None:
    """Returns the field that holds the one response of a row: `response`, else `completion`; None if there is none."""
    return next((name for name in ("response", "completion") if row.get(name) is not None), None)


def scored_margin(row: Mapping[str, Any], better: str, worse: str) -> float:
    """Returns the difference of the scores of the two sides, checked against the side that the row prefers.

    Raises:
        RowError: tie when they are equal, bad_type when the scores contradict the preference.
    """
    difference = number(row, better) - number(row, worse)
    if difference == 0:
        raise RowError(Reason.TIE, f"{better!r} and {worse!r} are equal ({row[better]}): the row states no preference")
    if difference < 0:
        raise RowError(
            Reason.BAD_TYPE,
            f"{better!r} is {row[better]} and {worse!r} is {row[worse]}: the scores contradict the preferred side; "
            f"expected {better!r} to be higher",
            "Check the polarity of the data set, or leave the scores out",
        )
    return difference
