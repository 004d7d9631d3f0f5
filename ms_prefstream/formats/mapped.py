"""The user's own function in front of a format."""

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
    """``row -> row`` of the user, then a format on its result. A record that the function returns is taken as it is.

    Args:
        function: The user's function.
        then: What reads the rows it returns.
    """

    function: Callable[[Any], Any]
    then: Callable[[Any], Record]

    @property
    def name(self) -> str:
        """The function's name."""
        return name_of(self.function)

    def __call__(self, row: Any) -> Record:
        """The record of `row`.

        Raises:
            RowError: bad_type, naming the exception, when the function fails.
        """
        return self._record(guarded(self.function, row))

    def _record(self, result: Any) -> Record:
        if isinstance(result, _RECORDS):
            return cast(Record, result)
        if isinstance(result, Mapping):
            return self.then(result)
        raise RowError(
            Reason.BAD_TYPE,
            f"the format function {self.name} returned {short(result)}; expected a row (a dict) or a record",
            "Return one row for each row; to filter rows or to make several of one, give the function a method count",
        )

    def __repr__(self) -> str:
        return f"mapped({self.name} {code_hash(self.function)})"


@dataclass(frozen=True, slots=True, repr=False)
class MappedMany:
    """The same for a callable of the user with a method ``count(row) -> int``, which returns a list or tuple of rows.

    Args:
        function: The user's callable.
        then: What reads the rows it returns.
    """

    function: Any
    then: Callable[[Any], Record]

    @property
    def name(self) -> str:
        """The callable's name."""
        return name_of(self.function)

    def __call__(self, row: Any) -> tuple[Record, ...]:
        """The records of `row`."""
        results = guarded(self.function, row)
        if not isinstance(results, (list, tuple)):
            raise RowError(
                Reason.BAD_TYPE,
                f"the format function {self.name} returned {short(results)}; expected a list, as it has a method count",
            )
        one = Mapped(self.function, self.then)
        return tuple([one._record(result) for result in results])

    def count(self, row: Any) -> int:
        """What the callable's own `count` says."""
        number = guarded(self.function.count, row)
        if isinstance(number, int) and number >= 0:
            return int(number)
        raise RowError(
            Reason.BAD_TYPE,
            f"count of the format function {self.name} returned {short(number)}; expected a whole number from 0 on",
        )

    def __repr__(self) -> str:
        return f"mapped({self.name} {code_hash(self.function)})"


def name_of(function: Any) -> str:
    """A name for sentences and fingerprints, without addresses."""
    inner = getattr(function, "func", function)  # functools.partial
    return str(getattr(inner, "__qualname__", type(inner).__qualname__))


def guarded(function: Callable[[Any], Any], row: Any) -> Any:
    """``function(row)``, whose exceptions become errors of this row.

    Raises:
        RowError: What the function raised itself, or bad_type that names the exception.
    """
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
