"""What the sources that are read from the front have in common: a start behind skipped rows, and its checks."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol, TypeVar, runtime_checkable

from ms_prefstream.errors import SourceError
from ms_prefstream.sources.base import RawRow

_T = TypeVar("_T")


@runtime_checkable
class Beginner(Protocol):
    """A one-pass source that can say how many rows it could skip: what a chain of sources needs to go on skipping."""

    def begin(self, skip: int) -> tuple[int, Iterator[tuple[str, RawRow]]]:
        """Skip up to `skip` rows; how many there were to skip, and the pass over the rest."""


def start_pass(source: Beginner, name: str, skip: int) -> Iterator[tuple[str, RawRow]]:
    """`begin`, with a sentence for a source that is too short or has no rows at all.

    Raises:
        SourceError: Fewer rows than `skip`; or, from the first `next`, no rows where none were skipped.
    """
    skipped, rows = source.begin(skip)
    if skipped < skip:
        raise SourceError(
            f"{name}: {skip} rows were to be skipped, but there are only {skipped}. The data got shorter since the "
            "position was saved: restore it, or start a new run."
        )
    return rows if skip else _some(rows, name, source)


def skip_items(items: Iterator[Any], count: int) -> int:
    """Throw away up to `count` items at the speed of C; how many there were."""
    counter = itertools.count()
    deque(zip(itertools.islice(items, count), counter), maxlen=0)  # noqa: B905 - the counter has no end
    return next(counter)


def no_rows(name: str, ended: str = "") -> SourceError:
    """The error for a source without a single row; `ended` says why its pass ended, in brackets."""
    return SourceError(
        f"{name}: found no rows{ended}, expected at least one. Check that the data was written to the end."
    )


def _some(rows: Iterator[_T], name: str, source: object) -> Iterator[_T]:
    count = 0
    for count, row in enumerate(rows, 1):  # noqa: B007
        yield row
    if count == 0:
        raise no_rows(name, getattr(source, "ended", ""))
