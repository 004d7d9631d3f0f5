"""Groups of conversations with the same shape: the walk of `shape.py` for many rows at once.

A column holds what each row has at one place. Where a column has different kinds of values, the rows are divided, until
all rows of a group have the same shape. Then every value that fills a slot is a column, too.

    {"name": "find", "arguments": {"key": 1}}  ->  ["find", "find", "add"] and [{"key": 1}, {"key": 2}, {"a": 0}]
    {"name": "find", "arguments": {"key": 2}}
    {"name": "add", "arguments": {"a": 0}}
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from ms_prefstream.encode.calls import CALL_KEYS, decoded

_MOST = 1024  # columns of a group; a value that holds itself has no end


class _Walk(enum.Enum):
    """The function of `shape.py` that walks the same value of one row."""

    CONTENT = enum.auto()
    EXTRA = enum.auto()
    VALUE = enum.auto()  # _key
    CALLS = enum.auto()
    ARGUMENTS = enum.auto()


class Group(NamedTuple):
    """Rows that have the same shape so far.

    Attributes:
        rows: Their numbers.
        todo: A stack of columns that are still to be walked: their message, how, and what the rows have there.
        values: The message of each value that fills a slot, apart from contents, and its column.
    """

    rows: list[int]
    todo: list[tuple[int, _Walk, Sequence[Any]]]
    values: list[tuple[int, Sequence[Any]]]

    def take(self, which: Sequence[int]) -> Group:
        """Returns some of the rows."""
        return Group(
            [self.rows[at] for at in which],
            [(message, walk, [column[at] for at in which]) for message, walk, column in self.todo],
            [(message, [column[at] for at in which]) for message, column in self.values],
        )

    def divided(self, tags: Collection[Any]) -> Iterator[Group]:
        """Yields the rows with the same tag, for each tag."""
        found: dict[Any, list[int]] = {}
        for at, tag in enumerate(tags):
            found.setdefault(tag, []).append(at)
        return map(self.take, found.values())


def groups_of(contents: Sequence[Sequence[str]], extras: Sequence[Sequence[Any]], least: int) -> Iterator[Group]:
    """Yields groups of conversations with the same shape, by their numbers.

    Conversations with other than plain values are left out, see `plain_value`.

    Args:
        contents: For each message the contents of all conversations; they have the same roles.
        extras: For each message the further keys.
        least: Groups of fewer rows are left out.
    """
    todo: list[tuple[int, _Walk, Sequence[Any]]] = []
    for message, columns in enumerate(zip(contents, extras, strict=True)):
        todo += [(message, walk, column) for walk, column in zip((_Walk.CONTENT, _Walk.EXTRA), columns, strict=True)]
    waiting = [Group(list(range(len(contents[0]))), todo[::-1], [])]
    while waiting:
        group, opened = waiting.pop(), 0
        while group.todo and opened < _MOST:
            tags = _tags(*group.todo[-1][1:])
            if len(set(tags)) != 1:
                waiting += [part for part in group.divided(tags) if len(part.rows) >= least]
                break
            _open(group, *group.todo.pop())
            opened += 1
        else:
            if not group.todo:
                yield group


def _tags(walk: _Walk, column: Sequence[Any]) -> Collection[Any]:
    """Returns a tag for each value, which is the same for values of the same shape; one tag if all have the same.

    There are none for values that are not plain.
    """
    kinds = set(map(type, column))
    if len(kinds) > 1:
        return list(map(type, column))
    (kind,) = kinds
    if kind is str:
        return (None,) if all(map(str.strip, column)) else [None if text.strip() else text for text in column]
    if kind is dict:
        if walk is _Walk.CALLS:
            return [(tuple(call), type(call.get("function"))) for call in column]
        return set(map(bool, column)) if walk is _Walk.ARGUMENTS and all(column) else list(map(tuple, column))
    if kind is list:
        return list(map(len, column))
    if kind in (bool, int, float):
        return list(map(repr, column))
    return (None,) if kind is type(None) else ()


def _open(group: Group, message: int, walk: _Walk, column: Sequence[Any]) -> None:
    """Adds what the values of a column hold, or the column itself, to the group; they have the same tag."""
    first = column[0]
    if isinstance(first, str):
        if walk is not _Walk.CONTENT and first.strip():
            group.values.append((message, column))
    elif walk is _Walk.ARGUMENTS and isinstance(first, dict) and first:
        group.values.append((message, column))
    elif isinstance(first, dict):
        inner = "function" if isinstance(first.get("function"), dict) else "arguments"
        for key in reversed(first):
            found, how = [value[key] for value in column], _Walk.VALUE
            if (walk is _Walk.EXTRA and key in CALL_KEYS) or (walk is _Walk.CALLS and key == inner == "function"):
                how = _Walk.CALLS
            elif walk is _Walk.CALLS and key == inner:
                found, how = list(map(decoded, found)), _Walk.ARGUMENTS
            group.todo.append((message, how, found))
    elif isinstance(first, list):
        how = _Walk.CALLS if walk is _Walk.CALLS else _Walk.VALUE
        group.todo.extend((message, how, [value[at] for value in column]) for at in reversed(range(len(first))))
