"""Iterables, generator functions, iterators that can be used once, and those that know their position."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from ms_prefstream.errors import SourceError
from ms_prefstream.sources.base import OnePass
from ms_prefstream.sources.iterable import IterableRows, StatefulRows
from ms_prefstream.sources.open import open_source


def numbers(count: int = 5) -> Iterator[dict[str, int]]:
    return ({"n": n} for n in range(count))


class Again:
    def __iter__(self) -> Iterator[dict[str, int]]:
        return numbers()


def rows_of(source: Any, skip: int = 0) -> list[int]:
    return [row["n"] for _, row in source.start(skip)]


@pytest.mark.parametrize("rows", [numbers, Again(), Again, lambda: [{"n": n} for n in range(5)]])
def test_what_can_be_read_again(rows: Any) -> None:
    source = open_source(rows)
    assert isinstance(source, IterableRows)
    assert isinstance(source, OnePass)
    assert not hasattr(source, "state_dict")
    for skip in (0, 0, 3, 5, 0):
        assert rows_of(source, skip) == list(range(skip, 5))


def test_origins_count_from_the_first_row() -> None:
    assert list(open_source(Again()).start(3)) == [("row 3 of Again", {"n": 3}), ("row 4 of Again", {"n": 4})]
    assert next(open_source(numbers).start(2))[0] == "row 2 of numbers()"


def test_an_iterator_is_used_once() -> None:
    source = open_source(numbers())
    assert rows_of(source, 2) == [2, 3, 4]
    with pytest.raises(
        SourceError, match=r"generator: this iterator was used before.*Pass what can be read again: a list"
    ):
        source.start()


def test_an_iterator_that_was_begun_is_spent_too() -> None:
    source = open_source(numbers())
    next(source.start())
    with pytest.raises(SourceError, match="was used before"):
        source.start()


def test_a_function_that_returns_the_same_iterator_again() -> None:
    rows = numbers()
    source = open_source(lambda: rows)
    assert rows_of(source) == [0, 1, 2, 3, 4]
    with pytest.raises(SourceError, match="was used before"):
        source.start()


def test_an_endless_iterable_is_skipped_and_read_lazily() -> None:
    source = open_source(lambda: ({"n": n} for n in itertools.count()))
    assert next(source.start(100_000))[1] == {"n": 100_000}


def test_too_few_and_no_rows() -> None:
    with pytest.raises(SourceError, match="6 rows were to be skipped, but there are only 5"):
        open_source(Again()).start(6)
    with pytest.raises(SourceError, match="found no rows"):
        list(open_source(lambda: iter(())).start())


@pytest.mark.parametrize("skip", [0, 4])
def test_an_error_of_the_iterable_names_the_row(skip: int) -> None:
    def rows() -> Iterator[dict[str, int]]:
        yield from numbers(3)
        raise KeyError("lost")

    with pytest.raises(SourceError, match=r"row (.* )?of .*rows\(\): the iterable raised KeyError: 'lost'") as caught:
        list(open_source(rows).start(skip))
    assert isinstance(caught.value.__cause__, KeyError)


def test_functions_that_do_not_fit() -> None:
    with pytest.raises(SourceError, match=r"needs arguments.*functools\.partial"):
        open_source(lambda path: numbers())
    with pytest.raises(SourceError, match="returned int, expected an iterator"):
        open_source(lambda: 3).start()


class Stateful:
    def __init__(self) -> None:
        self.at = self.begin = 0

    def __iter__(self) -> Iterator[dict[str, int]]:
        self.at, self.begin = self.begin, 0
        while self.at < 5:
            self.at += 1
            yield {"n": self.at - 1}

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.begin = state["at"]


def test_resume_asks_the_iterable_at_every_row() -> None:
    whole = list(open_source(Stateful()).start())
    for done in range(5):
        source = open_source(Stateful())
        assert isinstance(source, StatefulRows)
        list(itertools.islice(source.start(), done))
        state = source.state_dict()
        assert state["row"] == done
        other = open_source(Stateful())
        other.load_state_dict(state)
        assert other.state_dict()["row"] == done
        assert list(other.start()) == whole[done:]
        assert other.state_dict()["row"] == 5
        assert list(other.start()) == whole
