"""The user's own function before a format: ``format=function``."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast, get_args

from ms_prefstream.errors import Reason, RowError
from ms_prefstream.fingerprint import code_hash
from ms_prefstream.formats.fields import short
from ms_prefstream.formats.record import Record

_RECORDS = get_args(Record)


@dataclass(frozen=True, slots=True, repr=False)
class Mapped:
    """A function ``row -> row`` or ``row -> record`` of the user.

    The format `then` reads the rows that it returns; records that it returns are used as they are.
    """

    function: Any
    then: Callable[[Any], Record]

    @property
    def name(self) -> str:
        """The callable's name."""
        return name_of(self.function)

    def __call__(self, row: Any) -> Record | tuple[Record, ...]:
        """Returns the record of `row`."""
        return self.read(row, self.then)

    def read(self, row: Any, then: Callable[[Any], Any]) -> Record | tuple[Record, ...]:
        """Returns the record of `row`, with another function in the place of `then`."""
        return self._record(guarded(self.function, row), then)

    def _record(self, result: Any, then: Callable[[Any], Any]) -> Record:
        if isinstance(result, _RECORDS):
            return cast(Record, result)
        if isinstance(result, Mapping):
            return cast(Record, then(result))
        raise RowError(
            Reason.BAD_TYPE,
            f"the format function {self.name} returned {short(result)}; expected a row (a dict) or a record",
            "Return one row for each row; to filter rows or to make several of one, give the function a method count",
        )

    def __repr__(self) -> str:
        return f"mapped({self.name} {code_hash(self.function)})"


class MappedMany(Mapped):
    """A callable ``row -> list or tuple of rows or records`` with a method ``count(row) -> int``."""

    __slots__ = ()

    def read(self, row: Any, then: Callable[[Any], Any]) -> tuple[Record, ...]:
        """Returns the records of `row`, with another function in the place of `then`."""
        results = guarded(self.function, row)
        if not isinstance(results, (list, tuple)):
            raise RowError(
                Reason.BAD_TYPE,
                f"the format function {self.name} returned {short(results)}; expected a list, as it has a method count",
            )
        return tuple([self._record(result, then) for result in results])

    def count(self, row: Any) -> int:
        """Returns the result of the callable's own `count`."""
        number = guarded(self.function.count, row)
        if isinstance(number, int) and number >= 0:
            return int(number)
        raise RowError(
            Reason.BAD_TYPE,
            f"count of the format function {self.name} returned {short(number)}; expected a whole number from 0 on",
        )


def name_of(function: Any) -> str:
    """Returns a name for sentences and fingerprints, without addresses."""
    inner = getattr(function, "func", function)  # functools.partial
    return str(getattr(inner, "__qualname__", type(inner).__qualname__))


def guarded(function: Callable[[Any], Any], row: Any) -> Any:
    """Returns ``function(row)`` and turns its exceptions into errors of this row."""
    try:
        return function(row)
    except RowError:
        raise
    except Exception as error:
        fields = f" on a row with the fields {', '.join(sorted(map(str, row)))}" if isinstance(row, Mapping) else ""
        found = RowError(
            Reason.BAD_TYPE,
            f"the format function {name_of(function)} raised {type(error).__name__}: {error}{fields}",
            "Correct the function, or have it raise ms_prefstream.errors.RowError for rows that cannot be used",
        )
        found.trace = "".join(traceback.format_exception(error)).rstrip()
        raise found from error
