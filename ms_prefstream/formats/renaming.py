"""The option `fields`: the names that formats expect, and where in a row of other names their values are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from ms_prefstream.errors import OptionError, Reason, RowError
from ms_prefstream.formats.fields import names, nearest, short
from ms_prefstream.formats.ledger import is_harmless
from ms_prefstream.formats.registry import standard_names
from ms_prefstream.formats.spelling import parsed_json

Path: TypeAlias = tuple[str, ...]

_OPTIONAL = frozenset({"system", "tools", "history", "input", "margin", "chat_template_kwargs"})
_EXAMPLE = 'such as {"prompt": "question", "chosen": "good.text", "rejected": "bad.text"}'
_ROLES = (".role", ".from")  # of a turn whose text a path takes


class Renaming:
    """The option `fields` of a stream, checked.

    ===================================  ======================================  =============================
    fields                               row                                     what the format reads
    ===================================  ======================================  =============================
    {"prompt": "q", "chosen": "a.0.t"}   {"q": "Hi", "a": [{"t": "Hello"}]}      {"prompt": "Hi", "chosen": "Hello"}
    ===================================  ======================================  =============================

    Args:
        fields: Standard name -> name of the row's field, or the dotted path to a value inside of it.
        checked: Whether the standard names must be ones that a preset reads.

    Attributes:
        sources: The fields of a row that the option names; they count as read.

    Raises:
        OptionError: It is no mapping of names to names, is empty, or has a name that no preset reads.
    """

    def __init__(self, fields: Any, checked: bool) -> None:
        if not isinstance(fields, Mapping) or not fields:
            raise OptionError(f"fields is {fields!r}; expected a mapping of standard names to the row's, {_EXAMPLE}.")
        for name, path in fields.items():
            for text in (name, path):
                if not isinstance(text, str) or not all(text.split(".")):
                    raise OptionError(f"fields has {name!r}: {path!r}; expected the names of two fields, {_EXAMPLE}.")
            if checked and name != path and name not in standard_names():
                guess = nearest(name, standard_names())
                raise OptionError(
                    f"fields has {name!r}: {path!r}, but no format reads a field {name!r}. "
                    + (f"Did you mean {guess!r}? " if guess else "")
                    + f"Known names: {', '.join(sorted(standard_names()))}."
                )
        self.fields: dict[str, str] = dict(fields)
        self._paths = {name: tuple(path.split(".")) for name, path in fields.items()}
        taken = set(self._paths.values())
        self._inside: dict[str, set[Path]] = {}  # field -> the paths into it, of fields that are not taken as a whole
        for first, *rest in taken:
            if rest and (first,) not in taken:
                self._inside.setdefault(first, set()).add(tuple(rest))
        self.sources = frozenset({one for path in self._paths.values() for one in (path[0], ".".join(path))})

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the row that the format reads: with the standard names, without the fields they were taken from.

        Raises:
            RowError: missing_field when a path leads nowhere; an optional field may be missing.
        """
        found = {name: value for name, value in row.items() if name not in self.sources and name not in self.fields}
        for name, path in self._paths.items():
            try:
                found[name] = value_at(row, path)
            except LookupError as error:
                if name not in _OPTIONAL:
                    raise self._nowhere(row, name, str(error.args[0])) from None
        return found

    def left(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what the format does not get of a row: fields whose names others have, and values beside a path.

        ``{"q": {"text": "Hi", "note": "x"}}`` with ``{"prompt": "q.text"}`` -> ``{"q.note": "x"}``
        """
        found = {name: row[name] for name in self.fields if name in row and name not in self.sources}
        for name, paths in self._inside.items():
            if name in row:
                found |= _beside(parsed_json(row[name]), paths, name)
        return found

    def _nowhere(self, row: Mapping[str, Any], name: str, why: str) -> RowError:
        path = self.fields[name]
        guess = nearest(path, row)
        return RowError(
            Reason.MISSING_FIELD,
            f"fields= takes {name!r} from {path!r}, but {why}; found fields: {names(row)}",
            f"Did you mean {guess!r}?" if guess else "Correct the path in fields=, or the row",
        )

    def __repr__(self) -> str:
        return repr(dict(sorted(self.fields.items())))


def _beside(value: Any, paths: set[Path], place: str) -> dict[str, Any]:
    """Returns the values in an object or list that no path takes or leads into, by their dotted paths."""
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    else:
        items = (
            [(str(at), item) for at, item in enumerate(value)] if isinstance(value, (list, tuple, np.ndarray)) else []
        )
    found = {}
    for key, item in items:
        further = {path[1:] for path in paths if path[0] == key}
        if not further:
            found[f"{place}.{key}"] = item
        elif () not in further:
            found |= _beside(parsed_json(item), further, f"{place}.{key}")
    return {name: item for name, item in found.items() if not is_harmless(name) and not name.endswith(_ROLES)}


def value_at(row: Mapping[str, Any], path: Path) -> Any:
    """Returns the value that a path leads to; null as soon as it meets one.

    Raises:
        LookupError: There is none, with the reason in words.
    """
    whole = ".".join(path)
    if whole in row:  # a name with a dot in it
        return row[whole]
    value: Any = row
    for depth, step in enumerate(path):
        value = parsed_json(value)
        if value is None:
            return None
        if isinstance(value, Mapping):
            if step not in value:
                raise LookupError(f"there is no {'.'.join(path[: depth + 1])!r}")
            value = value[step]
        elif isinstance(value, (list, tuple, np.ndarray)) and step.isdecimal():
            if int(step) >= len(value):
                raise LookupError(f"{'.'.join(path[:depth])!r} has {len(value)} items")
            value = value[int(step)]
        else:
            raise LookupError(f"{'.'.join(path[:depth])!r} is {short(value)}")
    return value
