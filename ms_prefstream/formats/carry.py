"""The option `carry`: fields of a row that travel with its sample, as further columns of a batch."""

from __future__ import annotations

import datetime
import enum
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np

from ms_prefstream.errors import OptionError, Reason, RowError
from ms_prefstream.formats.base import check_row
from ms_prefstream.formats.fields import names, nearest, short
from ms_prefstream.formats.paths import Path, Taken, is_path, path_of, value_at
from ms_prefstream.formats.spelling import is_missing
from ms_prefstream.sample import LARGEST, TEXT

_EXAMPLE = 'such as ["answer", "id"], {"weight": "float32"} or {"weight": ["float32", 1.0]} with a default'


class _Required(enum.Enum):
    """Stands for no default; pickled, it stays the same object."""

    REQUIRED = 0


_REQUIRED = _Required.REQUIRED
_NUMBERS = (int, float, np.number, np.bool_, Decimal)


@dataclass(frozen=True)
class CarriedField:
    """A field that is carried.

    Attributes:
        path: Its name, or the dotted path to a value inside of a field. The last part is the name of the column.
        dtype: ``int64``, ``float32`` or ``text``; None until `Carry.guessed` has chosen one.
        default: The value of rows without one, already of the dtype.
        guessed: Whether the dtype comes from the first rows.
    """

    path: str
    dtype: str | None = None
    default: Any = _REQUIRED
    guessed: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        if self.dtype is not None and not (isinstance(self.dtype, str) and self.dtype in _DTYPES):
            raise OptionError(
                f"carry has {self.path!r}: {self.dtype!r}; expected one of {', '.join(map(repr, _DTYPES))}, or a dtype "
                'and a default, as ["float32", 1.0].'
            )

    @property
    def name(self) -> str:
        """The name of the column."""
        return self.path.rpartition(".")[2]

    @property
    def spec(self) -> Any:
        """The value of the option: the dtype, or dtype and default."""
        return self.dtype if self.default is _REQUIRED else [self.dtype, self.default]


class Carry:
    """The fields that are carried, in order.

    ========================================  ==================================  ===============================
    carry                                     row                                 columns of a batch
    ========================================  ==================================  ===============================
    {"w": "float32", "extra.index": "int64"}  {…, "w": 1, "extra": {"index": 7}}  w float32 [1.], index int64 [7]
    ========================================  ==================================  ===============================

    Args:
        fields: The fields.

    Attributes:
        taken: Where their values lie in a row.

    Raises:
        OptionError: Two have the same column.
    """

    def __init__(self, fields: Iterable[CarriedField]) -> None:
        self.fields = tuple(fields)
        self._paths = [(one, path_of(one.path)) for one in self.fields]
        self.taken = Taken(path for _, path in self._paths)
        found: dict[str, str] = {}
        for one in self.fields:
            if one.name in found:
                both = one.path if found[one.name] == one.path else f"{found[one.name]} and {one.path}"
                raise OptionError(f"carry makes two columns {one.name!r} of {both}. Leave one of them out.")
            found[one.name] = one.path

    @property
    def complete(self) -> bool:
        """True if all dtypes are known."""
        return all(one.dtype is not None for one in self.fields)

    @property
    def columns(self) -> dict[str, str]:
        """The columns: name -> dtype."""
        return {one.name: str(one.dtype) for one in self.fields}

    def guessed(self, rows: Iterable[Any], known: Mapping[str, str]) -> Carry:
        """Returns the same fields, each with a dtype.

        Whole numbers are ``int64``, numbers ``float32``, and anything else ``text``.

        Args:
            rows: Some raw rows, the same ones on every rank.
            known: Dtypes by column that are known, as caches have them.
        """
        rows = [row for row in rows if isinstance(row, Mapping)]
        chosen = []
        for one in self.fields:
            if one.dtype is None:
                dtype = known.get(one.name) or _dtype_of([_found(row, path_of(one.path)) for row in rows])
                one = replace(one, dtype=dtype, guessed=one.name not in known)
            chosen.append(one)
        return Carry(chosen)

    def on(self, made: Any, row: Any) -> Any:
        """Returns records with the values of their row.

        Raises:
            RowError: missing_field or bad_type.
        """
        if made == ():
            return made
        check_row(row)
        values = tuple([_value(one, path, row) for one, path in self._paths])
        if isinstance(made, tuple):
            return tuple([replace(record, carried=values) for record in made])
        return replace(made, carried=values)

    def text(self) -> str:
        """Returns everything that decides about values, for states, indexes and caches; the order does not."""
        return json.dumps({one.path: one.spec for one in self.fields}, sort_keys=True, ensure_ascii=False)


def carry_of(option: Any) -> Carry | None:
    """Returns the option `carry` of a stream, checked; None for none.

    Raises:
        OptionError: It names no fields, an unknown dtype, or a default that does not fit its dtype.
    """
    if option is None:
        return None
    if isinstance(option, Mapping):
        items = list(option.items())
    elif isinstance(option, Sequence) and not isinstance(option, str):
        items = [(name, None) for name in option]
    else:
        items = []
    if not items or not all(is_path(path) for path, _ in items):
        raise OptionError(f"carry is {option!r}; expected the names of fields, {_EXAMPLE}.")
    return Carry([_field(path, spec) for path, spec in items])


def _field(path: str, spec: Any) -> CarriedField:
    if not isinstance(spec, (list, tuple)):
        return CarriedField(path, spec)
    if len(spec) != 2:
        raise OptionError(f'carry has {path!r}: {spec!r}; expected a dtype and a default, as ["float32", 1.0].')
    found = CarriedField(path, spec[0])
    kind = _DTYPES.get(found.dtype or "")
    try:
        if kind is not None and not is_missing(spec[1]):
            return replace(found, default=kind.convert(spec[1]))
    except (ValueError, TypeError, OverflowError):
        pass
    expected = "a dtype before it" if kind is None else kind.expected
    raise OptionError(f"carry has {path!r}: {spec!r}, whose default is {short(spec[1])}; expected {expected}.")


def _found(row: Mapping[str, Any], path: Path) -> Any:
    """Returns the value of a row at a path; None for none."""
    try:
        value = value_at(row, path)
    except LookupError:
        return None
    return None if is_missing(value) else value


def _value(of: CarriedField, path: Path, row: Mapping[str, Any]) -> Any:
    """Returns the value of a row for a field, of the field's dtype."""
    kind, why = _DTYPES[str(of.dtype)], "it is empty"
    try:
        value = value_at(row, path)
    except LookupError as error:
        value, why = None, str(error.args[0])
    is_blank = isinstance(value, str) and not value.strip() and of.dtype != TEXT
    if is_blank or is_missing(value):
        if of.default is not _REQUIRED:
            return of.default
        guess = None if why == "it is empty" else nearest(of.path, row)
        raise RowError(
            Reason.MISSING_FIELD,
            f"field {of.path!r} is to be carried, but {why}; found fields: {names(row)}",
            (f"Did you mean {guess!r}? " if guess else "")
            + f'Give rows without it a default, as carry={{"{of.path}": ["{of.dtype}", {kind.example}]}}, '
            "or correct the row",
        )
    try:
        return kind.convert(value)
    except (ValueError, TypeError, OverflowError):
        origin = ", as the first rows have it" if of.guessed else ""
        other = _dtype_of([value])
        is_other = other != of.dtype and _fits(value, other)
        raise RowError(
            Reason.BAD_TYPE,
            f"field {of.path!r}, which is carried as {of.dtype}{origin}, is {short(value)}; expected {kind.expected}",
            f'Pass carry={{"{of.path}": "{other}"}}, or correct the row' if is_other else "Correct the row",
        ) from None


def _whole(value: Any) -> int:
    """Returns a whole number, which may be written as a float: pandas has no other numbers beside missing ones."""
    number = int(value) if isinstance(value, _NUMBERS) else None
    if number is None or number != value:
        raise ValueError
    return int(np.int64(number))


def _number(value: Any) -> float:
    number = float(value) if isinstance(value, _NUMBERS) else np.inf
    if not abs(number) <= LARGEST:
        raise ValueError
    return number


def _text(value: Any) -> str:
    """Returns a string as it is, and the JSON text of any other value."""
    if not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False, default=_plain)
    value.encode()  # no lone surrogates
    if "\0" in value:
        raise ValueError
    return str(value)


def _plain(value: Any) -> Any:
    """Returns what JSON has in the place of a value."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    raise TypeError


def _dtype_of(values: Iterable[Any]) -> str:
    """Returns the dtype that holds all values; ``text`` without any."""
    found = [value for value in values if value is not None]
    for name in ("int64", "float32"):
        is_float = name == "int64" and any(isinstance(value, (float, np.floating, Decimal)) for value in found)
        if found and not is_float and all(_fits(value, name) for value in found):
            return name
    return TEXT


def _fits(value: Any, dtype: str) -> bool:
    try:
        _DTYPES[dtype].convert(value)
    except (ValueError, TypeError, OverflowError):
        return False
    return True


class _Dtype(NamedTuple):
    """Conversion of a value to a dtype, and what errors say of the dtype."""

    convert: Callable[[Any], Any]
    expected: str
    example: str


_DTYPES = {
    "int64": _Dtype(_whole, "a whole number of 64 bits", "0"),
    "float32": _Dtype(_number, f"a finite number, up to {LARGEST:.1e}", "1.0"),
    TEXT: _Dtype(_text, "text, or a value that JSON has, without NUL characters or half characters", '""'),
}
