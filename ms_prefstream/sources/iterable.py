"""Rows of any other iterable: a generator function, a re-iterable object, or an iterator that can be used once."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator
from typing import Any

from ms_prefstream.errors import SourceError, StateError
from ms_prefstream.fingerprint import hash_of
from ms_prefstream.sources.base import RawPass, RawRow, skip_items, start_pass

_ONCE = (
    "Pass what can be read again: a list, the path of a file, or a function without arguments that returns a new "
    "iterator (the generator function itself, not its call)."
)


class IterableRows:
    """Passes over an iterable, or over what a function without arguments returns.

    Whether two passes give the same rows in the same order depends on the iterable.
    """

    start = start_pass

    def __init__(self, rows: Any) -> None:
        self.name = _name(rows)
        self._rows = rows
        self.fills_nulls = getattr(rows, "fills_nulls", False)
        self._last: Iterator[RawRow] | None = None  # an iterator that was used cannot be used again
        self._first = 0  # number of the first row of the next pass
        self._given = 0  # number of the next row

    @property
    def once(self) -> bool:
        """True for an iterator, which allows only one pass."""
        return isinstance(self._rows, Iterator)

    def begin(self, skip: int) -> tuple[int, RawPass]:
        """Skips up to `skip` rows. Returns how many rows were skipped, and the pass over the rest."""
        rows = self._iterator()
        try:
            skipped = skip_items(rows, skip)
        except Exception as error:
            raise _failed(f"a skipped row of {self.name}", error) from error
        first, self._first = self._first + skipped, 0
        return skipped, self._pass(rows, first)

    def fingerprint(self) -> str:
        """Returns a hash of the iterable's type, because its rows are not known yet."""
        return hash_of([self.name.encode()])

    def _iterator(self) -> Iterator[RawRow]:
        made = self._rows if isinstance(self._rows, Iterable) else self._rows()
        if not isinstance(made, Iterable):
            raise SourceError(
                f"{self.name}: the function returned {type(made).__name__}, expected an iterator of rows."
            )
        try:
            rows = iter(made)
        except Exception as error:
            raise _failed(f"the beginning of {self.name}", error) from error
        if rows is self._last:
            raise SourceError(f"{self.name}: this iterator was used before and cannot be read again. {_ONCE}")
        self._last = rows if rows is made else None
        return rows

    def _pass(self, rows: Iterator[RawRow], first: int) -> RawPass:
        row = first - 1
        try:
            for row, found in enumerate(rows, first):
                self._given = row + 1
                yield f"row {row} of {self.name}", found
        except Exception as error:
            raise _failed(f"row {row + 1} of {self.name}", error) from error


class StatefulRows(IterableRows):
    """Iterable that restores its own position with `load_state_dict`, so that no rows are skipped to resume."""

    def __init__(self, rows: Any, name: str = "") -> None:
        super().__init__(rows)
        self.name = name or self.name

    def __copy__(self) -> StatefulRows:
        return StatefulRows(copy.copy(self._rows), self.name)

    def state_dict(self) -> dict[str, Any]:
        """Returns the position after the last row: its number, and the iterable's own state."""
        return {"row": self._given, "state": self._rows.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Makes the next pass begin where `state_dict` was called; call `start` with ``skip=0`` then."""
        try:
            self._rows.load_state_dict(state["state"])
        except Exception as error:
            raise StateError(
                f"{self.name}: the iterable refused its saved state: {type(error).__name__}: {error}. The state was "
                "changed, or is one of another iterable: take another state, or start a new run."
            ) from error
        self._given = self._first = state["row"]
        self._last = None


def iterable_rows(rows: Any) -> IterableRows:
    """Returns the source for an iterable or a function, with the position of the iterable where it has one."""
    if isinstance(rows, Iterable):
        has_state = all(callable(getattr(rows, name, None)) for name in ("state_dict", "load_state_dict"))
        return StatefulRows(rows) if has_state else IterableRows(rows)
    try:
        inspect.signature(rows).bind()
    except ValueError:
        pass  # some built-in functions have no signature
    except TypeError as error:
        raise SourceError(
            f"{_name(rows)}: found a function that needs arguments ({error}), expected one without. "
            "Wrap it: lambda: function(...), or functools.partial."
        ) from error
    return IterableRows(rows)


def _name(rows: Any) -> str:
    if isinstance(rows, Iterable):
        return type(rows).__name__
    return f"{getattr(rows, '__qualname__', type(rows).__name__)}()"


def _failed(where: str, error: Exception) -> SourceError:
    return SourceError(f"{where}: the iterable raised {type(error).__name__}: {error}. Correct what produces the rows.")
