"""What the hash of a whole source sees, and when there is none."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from ms_prefstream.errors import SourceError
from ms_prefstream.sources.base import sources_in
from ms_prefstream.sources.content_hash import whole_hash
from ms_prefstream.sources.open import open_source
from tests.helpers import json_lines

ROWS = [{"n": n, "text": "x" * (n % 9)} for n in range(700)]


def changed(row: int) -> list[Any]:
    return [*ROWS[:row], {**ROWS[row], "text": "y"}, *ROWS[row + 1 :]]


def hash_of(source: Any) -> str | None:
    return whole_hash(open_source(source))


@pytest.mark.parametrize("row", [0, 1, 511, 512, 699])
def test_every_row_counts(row: int) -> None:
    assert hash_of(changed(row)) != hash_of(ROWS)
    assert hash_of([ROWS, changed(row)]) != hash_of([ROWS, ROWS])
    assert hash_of(tuple(ROWS)) == hash_of(ROWS)


def test_where_rows_end_counts() -> None:
    assert hash_of([{"a": 1}, {}]) != hash_of([{}, {"a": 1}])
    assert hash_of(ROWS[:-1]) != hash_of(ROWS)


def test_fingerprints_that_are_exact_are_not_repeated(tmp_path: pathlib.Path) -> None:
    path, array = str(json_lines(tmp_path / "rows.jsonl", ROWS)), str(tmp_path / "rows.json")
    pathlib.Path(array).write_text('[{"n": 1}]')
    assert hash_of(path) is None
    assert hash_of(array) is None
    assert hash_of([path, array]) is None
    assert hash_of([path, ROWS]) not in (None, hash_of([path, changed(3)]))


def test_what_comes_once_has_none() -> None:
    assert hash_of(iter(ROWS)) is None
    assert hash_of([iter(ROWS), iter(ROWS)]) is None


def test_a_file_that_is_gone(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(b"x")
    source = open_source(path)
    path.unlink()
    with pytest.raises(SourceError, match="no such file"):
        whole_hash(source)


class WithParts:
    """A source of the user whose attribute `parts` has nothing to do with sources."""

    name = "mine"

    def __init__(self, rows: list[Any]) -> None:
        self.rows, self.parts = rows, ("a", "b")

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, rows: Any) -> list[Any]:
        return [self.rows[row] for row in rows]

    def origin(self, row: int) -> str:
        return str(row)

    def fingerprint(self) -> str:
        return "f"


def test_a_source_of_the_user_is_hashed_by_its_rows() -> None:
    assert hash_of(WithParts(ROWS)) not in (None, hash_of(WithParts(changed(3))))
    assert [one.name for one in sources_in(open_source(WithParts(ROWS)))] == ["mine"]
