"""Conversations by column: the first contents of many conversations with the same roles, then the second ones, …

What a template and an encoder do with every row of a window costs most as calls of Python functions. For conversations
whose layout is known it is done for a whole column instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.encode.layout import Layout
from ms_prefstream.formats.record import Completion, Messages, Pair
from ms_prefstream.sample import Note

ENOUGH = 16  # conversations that are worth the array operations


class Columns(NamedTuple):
    """Conversations with the same roles.

    Attributes:
        roles: The role of each message.
        prompt_messages: How many of these are the prompt.
        records: (n,) int64, the record of each conversation.
        sides: (n,) int64, which conversation of its record it is.
        contents: For each message the n contents.
    """

    roles: tuple[str, ...]
    prompt_messages: int
    records: NDArray[np.int64]
    sides: NDArray[np.int64]
    contents: Sequence[Sequence[str]]

    def conversations(self) -> Iterator[tuple[str, ...]]:
        """Returns the contents of each conversation."""
        return zip(*self.contents, strict=True)

    def take(self, which: NDArray[np.int64]) -> Columns:
        """Returns some of the conversations."""
        if len(which) == len(self.records):
            return self
        some = which.tolist()
        contents = [[column[at] for at in some] for column in self.contents]
        return self._replace(records=self.records[which], sides=self.sides[which], contents=contents)


class Alike(NamedTuple):
    """Conversations with the same layout.

    Attributes:
        layout: It.
        columns: n conversations, with contents as the template writes them.
        rewritten: (n,) bool, whether the template changed a content.
        notes: What a report counts about all of them.
    """

    layout: Layout
    columns: Columns
    rewritten: NDArray[np.bool_]
    notes: Note

    def take(self, which: NDArray[np.int64]) -> Alike:
        """Returns some of the conversations."""
        return self._replace(columns=self.columns.take(which), rewritten=self.rewritten[which])


class Window:
    """The messages of many records, one after the other.

    Args:
        records: Text records.

    Attributes:
        contents: The content of every message.
        odd: (messages,) bool, whether a message keeps its record from being taken by column; set by the caller too.
        sides: (records,) int64, how many conversations a record has.
    """

    def __init__(self, records: Sequence[Pair | Completion]) -> None:
        self._records = records
        self._parts = [_parts(record) for record in records]
        messages = [message for parts in self._parts for part in parts for message in part]
        columns: Any = zip(*messages, strict=True) if messages else ((), (), ())
        self._roles, self.contents, extras = columns
        self.sides = np.fromiter(map(len, self._parts), np.int64, len(records)) - 1
        self.odd = np.fromiter(map(bool, extras), np.bool_, len(messages))

    def columns(self) -> Iterator[Columns]:
        """Yields the conversations of the records that have no odd message, no tools, and an answer on every side."""
        contents = np.array([*self.contents, ""], object)  # never empty, so that it stays an array of strings
        says = np.array([bool(content) and not content.isspace() for content in self.contents], np.bool_)
        found: dict[tuple[tuple[str, ...], int], list[tuple[NDArray[np.int64], ...]]] = {}
        for (sizes, roles), (rows, begins) in self._by_roles().items():
            at = np.array(begins)[:, None] + np.arange(len(roles))
            is_usual = ~self.odd[at].any(axis=1)
            ends = np.cumsum(sizes).tolist()
            sides = [at[:, first:last] for first, last in pairwise(ends)]
            answers = np.array([role == "assistant" for role in roles], np.bool_)
            for side, (first, last) in zip(sides, pairwise(ends), strict=True):
                if first < last:
                    is_usual &= (says[side] & answers[first:last]).any(axis=1)
            if len(sides) == 2 and sizes[1] == sizes[2] and roles[ends[0] : ends[1]] == roles[ends[1] :]:
                is_usual &= (contents[sides[0]] != contents[sides[1]]).any(axis=1)
            for number, (side, (first, last)) in enumerate(zip(sides, pairwise(ends), strict=True)):
                messages = np.concatenate([at[:, : sizes[0]], side], axis=1)[is_usual]
                group = found.setdefault((roles[: sizes[0]] + roles[first:last], sizes[0]), [])
                group.append((np.array(rows)[is_usual], np.full(len(messages), number), messages))
        for (roles, prompt), groups in found.items():
            records, numbers, messages = map(np.concatenate, zip(*groups, strict=True))
            if len(records) >= ENOUGH:
                yield Columns(roles, prompt, records, numbers, contents[messages.T].tolist())

    def _by_roles(self) -> dict[tuple[tuple[int, ...], tuple[str, ...]], tuple[list[int], list[int]]]:
        """Returns the records with the same roles: their numbers, and where their messages begin."""
        groups: dict[Any, tuple[list[int], list[int]]] = {}
        end = 0
        for row, (record, parts) in enumerate(zip(self._records, self._parts, strict=True)):
            sizes = tuple(map(len, parts))
            begin, end = end, end + sum(sizes)
            if record.tools is None and not record.variables:
                rows, begins = groups.setdefault((sizes, self._roles[begin:end]), ([], []))
                rows.append(row)
                begins.append(begin)
        return groups


def _parts(record: Pair | Completion) -> tuple[Messages, ...]:
    """Returns the prompt of a record and what follows it in each of its conversations."""
    if isinstance(record, Pair):
        return record.prompt, record.chosen, record.rejected
    return (record.prompt, (), record.response) if record.response else (record.prompt, ())
