"""The contract of a format (a raw row to canonical records), and the two classes that presets return."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats.fields import margin_of, short, text, wrong_type
from ms_prefstream.formats.messages import lead_with_system, tools_of
from ms_prefstream.formats.record import Completion, Message, Messages, Pair, Record, TokenCompletion

Row: TypeAlias = Mapping[str, Any]

_MARKS = ("label", "kto_tag")
_GENERAL = frozenset({"system", "tools", "chat_template_kwargs", *_MARKS})


@runtime_checkable
class Format(Protocol):
    """A callable that turns one raw row into its record, or raises `RowError` (without origin: the caller adds it).

    A format with a further method ``count(row) -> int`` gives 0 (the row is filtered out), 1 or several records for
    a row, and returns them as a tuple of that length. Without ``count`` every row gives exactly one record.
    """

    @property
    def name(self) -> str:
        """The name in reports."""

    def __call__(self, row: Any) -> Record | tuple[Record, ...]:
        """Returns the record of a row; a tuple of records when the format has ``count``."""


@dataclass(frozen=True, slots=True, repr=False)
class OneRecord:
    """A format that gives exactly one record for every row. Its `repr` shows the name and the options.

    Args:
        name: The preset's name.
        read: ``(row, **options) -> Record``, a function of a module, so that it can be pickled for workers.
        options: Keyword arguments of `read`.
    """

    name: str
    read: Callable[..., Record]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, row: Any) -> Record:
        """Returns the record of `row`."""
        if type(row) is not dict:
            check_row(row)
        record = self.read(row, **self.options)
        if _GENERAL.isdisjoint(row):
            return record
        return _with_general_fields(row, record, self.options.get("keep_empty_system", False))

    def __repr__(self) -> str:
        return _describe(self.name, self.options)


@dataclass(frozen=True, slots=True, repr=False)
class ManyRecords:
    """A format that gives any number of records for a row, including none.

    Args:
        name: The preset's name.
        read: ``(row, **options) -> tuple of records``.
        counted: ``(row, **options) -> int``, the length of that tuple, computed as cheaply as possible.
        options: Keyword arguments of both.
        kind: ``(row) -> str``, what the filter decides by, for an error when no row passes it; None if it has none.
    """

    name: str
    read: Callable[..., tuple[Record, ...]]
    counted: Callable[..., int]
    options: Mapping[str, Any] = field(default_factory=dict)
    kind: Callable[[Row], str] | None = None

    def __call__(self, row: Any) -> tuple[Record, ...]:
        """Returns the records of `row`."""
        if type(row) is not dict:
            check_row(row)
        records = self.read(row, **self.options)
        if _GENERAL.isdisjoint(row):
            return records
        return tuple([_with_general_fields(row, record) for record in records])

    def count(self, row: Any) -> int:
        """Returns how many records `row` gives; 0 when it is filtered out."""
        if type(row) is not dict:
            check_row(row)
        return self.counted(row, **self.options)

    def __repr__(self) -> str:
        return _describe(self.name, self.options)


def check_row(row: Any) -> None:
    """Checks that a row has fields."""
    if not isinstance(row, Mapping):
        raise RowError(
            Reason.BAD_TYPE,
            f"the row is {short(row)}; expected an object with named fields",
            "Write every row as a JSON object, or give format= a function that makes a dict of it"
            + (". Save one big array as .json" if isinstance(row, list) else ""),
        )


def pair_of(row: Row, prompt: str | Messages, better: str, worse: str, margin: float | None = None) -> Pair:
    """Returns the pair of the fields `better` and `worse`, which hold the texts of the responses.

    `prompt` is the field with the text of the user's turn, or the turns themselves; `margin` is for rows without that
    field.
    """
    if isinstance(prompt, str):
        prompt = (Message("user", text(row, prompt)),)
    chosen, rejected = Message("assistant", text(row, better)), Message("assistant", text(row, worse))
    return Pair(prompt, (chosen,), (rejected,), margin_of(row, margin))


def _with_general_fields(row: Row, record: Record, keep_empty_system: bool = False) -> Record:
    """Adds fields that may stand in any row of texts.

    `system` leads the prompt; `tools` and the variables in `chat_template_kwargs` go to the template; `label` or
    `kto_tag`, where it is true or false, says whether a single response is a good one.
    """
    if isinstance(record, (Completion, TokenCompletion)) and _has_response(record):
        marks = {name: row[name] for name in _MARKS if row.get(name) is not None}
        said = {bool(value) for value in marks.values() if isinstance(value, (bool, np.bool_))}
        if marks:
            record = replace(record, desirable=said.pop() if len(said) == 1 else marks)
    if not isinstance(record, (Pair, Completion)):
        return record
    prompt, tools = lead_with_system(row, record.prompt, keep_empty_system), tools_of(row)
    variables = row.get("chat_template_kwargs")
    if variables is not None and not isinstance(variables, Mapping):
        raise wrong_type("chat_template_kwargs", variables, "an object: the template's variables by name")
    if prompt is record.prompt and tools is None and not variables:
        return record
    record.prompt, record.tools, record.variables = prompt, tools, variables or None  # a new one, made of this row
    return record


def _has_response(record: Completion | TokenCompletion) -> bool:
    return bool(record.response if isinstance(record, Completion) else record.response_ids)


def _describe(name: str, options: Mapping[str, Any]) -> str:
    shown = [f"{key}={getattr(value, '__name__', None) or repr(value)}" for key, value in options.items()]
    return f"{name}({', '.join(shown)})"
