"""What a format is: a callable from a raw row to canonical records, and the two classes that presets are made with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias, runtime_checkable

from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats.fields import short
from ms_prefstream.formats.messages import lead_with_system, tools_of
from ms_prefstream.formats.record import Completion, Pair, Record

Row: TypeAlias = Mapping[str, Any]


@runtime_checkable
class Format(Protocol):
    """Turns one raw row into its record, or raises `RowError` (without origin: the caller knows where rows come from).

    A format with a further method ``count(row) -> int`` gives 0 (the row is filtered out), 1 or several records for
    a row, and returns them as a tuple of that length. Without ``count`` every row gives exactly one record.
    """

    @property
    def name(self) -> str:
        """What reports call it."""

    def __call__(self, row: Any) -> Record | tuple[Record, ...]:
        """The record of a row; a tuple of records when the format has ``count``."""


def check_row(row: Any) -> None:
    """Refuse a row that has no fields.

    Raises:
        RowError: bad_type.
    """
    if not isinstance(row, Mapping):
        raise RowError(
            Reason.BAD_TYPE,
            f"the row is {short(row)}; expected an object with named fields",
            "Write every row as a JSON object, or give format= a function that makes a dict of it",
        )


def with_system_and_tools(row: Row, record: Record, keep_empty_system: bool = False) -> Record:
    """The record with what may stand beside any row of texts: `system` leads the prompt, `tools` go to the template.

    Args:
        row: The raw row.
        record: What a preset made of its own fields.
        keep_empty_system: Whether ``system: ""`` is a system message.

    Raises:
        RowError: bad_type, or ambiguous_format when the conversation has another system message of its own.
    """
    if not isinstance(record, (Pair, Completion)):
        return record
    prompt, tools = lead_with_system(row, record.prompt, keep_empty_system), tools_of(row)
    if prompt is record.prompt and tools is None:
        return record
    return replace(record, prompt=prompt, tools=tools)


def _describe(name: str, options: Mapping[str, Any]) -> str:
    shown = [f"{key}={getattr(value, '__name__', None) or repr(value)}" for key, value in options.items()]
    return f"{name}({', '.join(shown)})"


@dataclass(frozen=True, slots=True, repr=False)
class OneRecord:
    """A format that gives exactly one record for every row. The text of `repr` names it with its options.

    Args:
        name: The preset's name.
        read: ``(row, **options) -> Record``, a function of a module, so that worker processes can receive it.
        options: Keyword arguments of `read`.
    """

    name: str
    read: Callable[..., Record]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, row: Any) -> Record:
        """The record of `row`."""
        if type(row) is not dict:
            check_row(row)
        record = self.read(row, **self.options)
        if "system" not in row and "tools" not in row:
            return record
        return with_system_and_tools(row, record, self.options.get("keep_empty_system", False))

    def __repr__(self) -> str:
        return _describe(self.name, self.options)


@dataclass(frozen=True, slots=True, repr=False)
class ManyRecords:
    """A format that gives any number of records for a row, none included.

    Args:
        name: The preset's name.
        read: ``(row, **options) -> tuple of records``.
        counted: ``(row, **options) -> int``, the length of that tuple, found as cheaply as can be.
        options: Keyword arguments of both.
    """

    name: str
    read: Callable[..., tuple[Record, ...]]
    counted: Callable[..., int]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, row: Any) -> tuple[Record, ...]:
        """The records of `row`."""
        if type(row) is not dict:
            check_row(row)
        records = self.read(row, **self.options)
        if "system" not in row and "tools" not in row:
            return records
        return tuple([with_system_and_tools(row, record) for record in records])

    def count(self, row: Any) -> int:
        """How many records `row` gives; 0 when it is filtered out."""
        if type(row) is not dict:
            check_row(row)
        return self.counted(row, **self.options)

    def __repr__(self) -> str:
        return _describe(self.name, self.options)
