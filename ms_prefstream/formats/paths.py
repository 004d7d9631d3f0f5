"""Dotted paths into a row: the value that one leads to, and what lies beside the values that are taken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np

from ms_prefstream.formats.fields import short
from ms_prefstream.formats.spelling import parsed_json
from ms_prefstream.formats.unread import is_harmless

Path: TypeAlias = tuple[str, ...]

_ROLES = (".role", ".from")  # of a turn whose text a path takes


def path_of(text: str) -> Path:
    """Returns the steps of a dotted path: ``a.0.t`` -> ``("a", "0", "t")``."""
    return tuple(text.split("."))


def is_path(text: Any) -> bool:
    """Returns whether a value is the name of a field or a dotted path."""
    return isinstance(text, str) and all(text.split("."))


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


class Taken:
    """The paths whose values are taken from rows.

    Args:
        paths: The paths.

    Attributes:
        names: Names and dotted paths of these values.
        fields: The fields of a row that hold them.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        taken = set(paths)
        self.names = frozenset(".".join(path) for path in taken)
        self.fields = self.names | {path[0] for path in taken}
        self._inside: dict[str, set[Path]] = {}  # field -> the paths into it, of fields that are not taken as a whole
        for first, *rest in taken:
            if rest and (first,) not in taken:
                self._inside.setdefault(first, set()).add(tuple(rest))

    def beside(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the values beside a path.

        ``{"q": {"text": "Hi", "note": "x"}}`` with ``q.text`` -> ``{"q.note": "x"}``
        """
        found: dict[str, Any] = {}
        for name, paths in self._inside.items():
            if name in row:
                found |= _beside(parsed_json(row[name]), paths, name)
        return found

    def without(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the values, by name, of which none is taken; of an object that a path leads into, those beside it."""
        left = {name: value for name, value in values.items() if name not in self.names and name not in self._inside}
        return left | self.beside(values)


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
