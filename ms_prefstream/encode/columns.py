"""Conversations by column: the first contents of many conversations with the same roles, then the second ones, …

What a template and an encoder do with every row of a window costs most as calls of Python functions. For conversations
whose layout is known it is done for a whole column instead. Where they have calls, schemas or further keys, the records
are divided until all of a group have the same shape (see `shape.py`), and these values are columns too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.encode.layout import Layout
from ms_prefstream.encode.shape import Schema, Shapes, groups_of, shape_key
from ms_prefstream.encode.tracked_text import by_object
from ms_prefstream.formats.record import Completion, Messages, Pair
from ms_prefstream.sample import Note

ENOUGH = 16  # conversations that are worth the array operations


class Columns(NamedTuple):
    """Conversations with the same roles, and with the same shape if they have more than contents.

    Attributes:
        key: The roles or the shape.
        roles: The role of each message.
        prompt_messages: How many of these are the prompt.
        records: (n,) int64, the record of each conversation.
        sides: (n,) int64, which conversation of its record it is.
        contents: For each message the n contents.
        values: For each further value of the shape the n values.
    """

    key: tuple[Any, ...]
    roles: tuple[str, ...]
    prompt_messages: int
    records: NDArray[np.int64]
    sides: NDArray[np.int64]
    contents: Sequence[Sequence[str]]
    values: Sequence[Sequence[Any]] = ()

    def conversations(self) -> Iterator[tuple[str, ...]]:
        """Returns the contents of each conversation."""
        return zip(*self.contents, strict=True)

    def holding(self, find: Callable[[Any], Any]) -> NDArray[np.bool_]:
        """Returns (n,) bool, for which conversations `find` finds something in a further value."""
        found = np.zeros(len(self.records), np.bool_)
        for column in self.values:
            plain = [value.value if isinstance(value, Schema) else value for value in column]
            found |= np.array(by_object(plain, lambda values: [find(value) is not None for value in values]), np.bool_)
        return found

    def take(self, which: NDArray[np.int64]) -> Columns:
        """Returns some of the conversations."""
        if len(which) == len(self.records):
            return self
        some = which.tolist()
        contents, values = (
            [[column[at] for at in some] for column in columns] for columns in (self.contents, self.values)
        )
        return self._replace(records=self.records[which], sides=self.sides[which], contents=contents, values=values)


class Alike(NamedTuple):
    """Conversations with the same layout.

    Attributes:
        layout: The layout.
        columns: n conversations, with contents as the template writes them.
        rewritten: (n,) bool, whether the template changed a content.
        notes: What a report counts about all of them.
        unread: See `LaidOut`.
    """

    layout: Layout
    columns: Columns
    rewritten: NDArray[np.bool_]
    notes: Note
    unread: tuple[str, ...] = ()

    def take(self, which: NDArray[np.int64]) -> Alike:
        """Returns some of the conversations."""
        return self._replace(columns=self.columns.take(which), rewritten=self.rewritten[which])


class _Side(NamedTuple):
    """One side of records with the same roles and the same shape; see `Columns`."""

    records: NDArray[np.int64]
    side: int
    messages: NDArray[np.int64]  # (records, messages)
    values: Sequence[Sequence[Any]]


class Window:
    """The messages of many records, one after the other.

    Args:
        records: Text records.
        shapes: Finds the shapes of those with more than contents.

    Attributes:
        contents: The content of every message.
        odd: (messages,) bool, whether a message keeps its record from being taken by column; set by the caller.
        sides: (records,) int64, how many conversations a record has.
    """

    def __init__(self, records: Sequence[Pair | Completion], shapes: Shapes) -> None:
        self._records, self._shapes = records, shapes
        self._parts = [_parts(record) for record in records]
        messages = [message for parts in self._parts for part in parts for message in part]
        columns: Any = zip(*messages, strict=True) if messages else ((), (), ())
        self._roles, self.contents, self._extras = columns
        self.sides = np.fromiter(map(len, self._parts), np.int64, len(records)) - 1
        self.odd = np.zeros(len(messages), np.bool_)

    def columns(self) -> Iterator[Columns]:
        """Yields the conversations of the records that have no odd message, and an answer on every side."""
        contents = np.array([*self.contents, ""], object)  # never empty, so that it stays an array of strings
        says = np.array([bool(content) and not content.isspace() for content in self.contents], np.bool_)
        for message, extra in enumerate(self._extras if any(self._extras) else ()):
            says[message] = says[message] or bool(extra and extra.get("tool_calls"))
        found: dict[tuple[tuple[Any, ...], tuple[str, ...], int], list[_Side]] = {}
        for (sizes, roles, is_shaped), (rows, begins) in self._by_roles().items():
            at = np.array(begins)[:, None] + np.arange(len(roles))
            is_usual = ~self.odd[at].any(axis=1)
            ends = np.cumsum(sizes).tolist()
            sides = [at[:, first:last] for first, last in pairwise(ends)]
            answers = np.array([role == "assistant" for role in roles], np.bool_)
            for side, (first, last) in zip(sides, pairwise(ends), strict=True):
                if first < last:
                    is_usual &= (says[side] & answers[first:last]).any(axis=1)
            if len(sides) == 2 and sizes[1] == sizes[2] and roles[ends[0] : ends[1]] == roles[ends[1] :]:
                differs = (contents[sides[0]] != contents[sides[1]]).any(axis=1)
                for row in np.flatnonzero(is_usual & ~differs).tolist() if is_shaped else ():
                    differs[row] = _differ(self._records[rows[row]])
                is_usual &= differs
            rows_of, at = np.array(rows)[is_usual], at[is_usual]
            for which, keys, values in self._alike(rows_of, at, sizes) if is_shaped else [(slice(None), (), ())]:
                for number, (first, last) in enumerate(pairwise(ends)):
                    messages = np.concatenate([at[which, : sizes[0]], at[which, first:last]], axis=1)
                    its = roles[: sizes[0]] + roles[first:last]
                    group = found.setdefault((keys[number] if keys else its, its, sizes[0]), [])
                    group.append(_Side(rows_of[which], number, messages, values[number] if keys else ()))
        for (key, roles, prompt), groups in found.items():
            records = np.concatenate([group.records for group in groups])
            if len(records) >= ENOUGH:
                numbers = np.concatenate([np.full(len(group.records), group.side) for group in groups])
                messages = np.concatenate([group.messages for group in groups])
                values = [list(chain(*columns)) for columns in zip(*[group.values for group in groups], strict=True)]
                yield Columns(key, roles, prompt, records, numbers, contents[messages.T].tolist(), values)

    def _by_roles(self) -> dict[tuple[tuple[int, ...], tuple[str, ...], bool], tuple[list[int], list[int]]]:
        """Returns the records with the same roles: their numbers, and where their messages begin.

        Those with more than contents come apart from the others.
        """
        groups: dict[Any, tuple[list[int], list[int]]] = {}
        end, extras = 0, self._extras if any(self._extras) else ()
        for row, (record, parts) in enumerate(zip(self._records, self._parts, strict=True)):
            sizes = tuple(map(len, parts))
            begin, end = end, end + sum(sizes)
            if not record.variables:
                is_shaped = record.tools is not None or any(extras[begin:end])
                rows, begins = groups.setdefault((sizes, self._roles[begin:end], is_shaped), ([], []))
                rows.append(row)
                begins.append(begin)
        return groups

    def _alike(
        self, rows: NDArray[np.int64], at: NDArray[np.int64], sizes: tuple[int, ...]
    ) -> Iterator[tuple[NDArray[np.int64], list[tuple[Any, ...]], list[list[Sequence[Any]]]]]:
        """Yields the records of one shape among n records with the same roles.

        Args:
            rows: (n,) the records.
            at: (n, messages) their messages.
            sizes: How many messages each part of them has.

        Returns:
            Which of the n they are, the shape of each side, and for each side the columns of its further values.
        """
        schemas = [self._shapes.schemas_of(self._records[row].tools) for row in rows.tolist()]
        by_tools: dict[tuple[bool, int], list[int]] = {}
        for number, found in enumerate(schemas):
            if found is not None and not any(schema.hidden for schema in found):
                has_tools = self._records[rows[number]].tools is not None
                by_tools.setdefault((has_tools, len(found)), []).append(number)
        for (has_tools, count), which in by_tools.items():
            messages = at[which].T.tolist()
            contents = [[self.contents[message] for message in column] for column in messages]
            extras = [[self._extras[message] for message in column] for column in messages]
            for group in groups_of(contents, extras, ENOUGH // 2):
                of = [which[row] for row in group.rows]
                lists = [schemas[number] or [] for number in of]
                listed = [[schemas[place] for schemas in lists] for place in range(count)]
                prompt, *sides = self._parts[rows[of[0]]]
                keys = [_key(prompt + side, has_tools, count) for side in sides]
                values = [
                    [
                        *[column for message, column in group.values if message < sizes[0] or first <= message < end],
                        *listed,
                    ]
                    for first, end in pairwise(np.cumsum(sizes).tolist())
                ]
                yield np.array(of), keys, values


def _key(messages: Messages, has_tools: bool, schemas: int) -> tuple[Any, ...]:
    """Returns the roles of messages, or their shape if they have more than contents; see `Columns.key`."""
    if has_tools or any(message.extra for message in messages):
        return shape_key(messages, schemas)
    return tuple([message.role for message in messages])


def _differ(record: Pair | Completion) -> bool:
    """Returns whether both sides of a pair differ; False if they cannot be compared."""
    try:
        return isinstance(record, Pair) and record.chosen != record.rejected
    except (RecursionError, ValueError):
        return False


def _parts(record: Pair | Completion) -> tuple[Messages, ...]:
    """Returns the prompt of a record and what follows it in each of its conversations."""
    if isinstance(record, Pair):
        return record.prompt, record.chosen, record.rejected
    return (record.prompt, (), record.response) if record.response else (record.prompt, ())
