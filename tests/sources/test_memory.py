"""Lists and other objects with a length and an index."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from ms_prefstream.errors import SourceError
from ms_prefstream.sources.base import RandomAccess
from ms_prefstream.sources.memory import MemoryRows
from ms_prefstream.sources.open import open_source


class MapStyle:
    def __init__(self, count: int) -> None:
        self.count = count
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> dict[str, Any]:
        self.asked.append(row)
        return {"n": 1 // (row - 13)}


def test_a_list() -> None:
    source = open_source([{"n": n} for n in range(20)])
    assert isinstance(source, MemoryRows)
    assert isinstance(source, RandomAccess)
    assert len(source) == 20
    assert source.read([17, 0, 17]) == [{"n": 17}, {"n": 0}, {"n": 17}]
    assert source.origin(17) == "row 17 of list"
    assert open_source(({"n": 1},)).origin(0) == "row 0 of tuple"


def test_changing_the_keys_of_a_row_does_not_change_the_data() -> None:
    source = open_source([{"n": 1}])
    source.read([0])[0].pop("n")
    assert source.read([0]) == [{"n": 1}]


def test_an_object_is_asked_for_what_is_needed_only() -> None:
    rows = MapStyle(1_000_000_000)
    source = open_source(rows)
    source.read([999_999_999, 5])
    assert rows.asked == [999_999_999, 5]
    source.fingerprint()
    assert len(rows.asked) <= 2 + 64


def test_an_error_of_the_object_names_the_row() -> None:
    with pytest.raises(SourceError, match="row 13 of MapStyle: reading it raised ZeroDivisionError") as caught:
        open_source(MapStyle(100)).read([12, 13])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("row", [-1, 3])
def test_a_row_that_does_not_exist(row: int) -> None:
    with pytest.raises(SourceError, match="there are 3 rows"):
        open_source([{}, {}, {}]).read([row])


def test_no_rows() -> None:
    with pytest.raises(SourceError, match="list: found no rows"):
        open_source([])


def test_rows_that_are_no_dicts_are_left_to_the_format() -> None:
    assert open_source([{"n": 1}, None, [2]]).read([0, 1, 2]) == [{"n": 1}, None, [2]]


def test_fingerprint() -> None:
    def fingerprint(rows: Any) -> str:
        return open_source(rows).fingerprint()

    rows = [{"n": n, "文": "语"} for n in range(50)]
    assert fingerprint(rows) == fingerprint([{"文": "语", "n": n} for n in range(50)])
    assert fingerprint(rows) != fingerprint(tuple(rows))
    assert fingerprint(rows) != fingerprint(rows[:-1])
    assert fingerprint(rows) != fingerprint([*rows[:-1], {"n": -1, "文": "语"}])
    assert fingerprint(rows) != fingerprint([*rows[:25], {"n": -1, "文": "语"}, *rows[26:]])


def test_fingerprint_is_the_same_in_every_process() -> None:
    """No addresses and no hash seeds in it."""
    code = (
        "from ms_prefstream.sources.memory import MemoryRows\n"
        "class Odd: pass\n"
        "print(MemoryRows([{'a': Odd(), 'b': '\\ud83d', 'x': (1, 2)}, {'c': b'x', (1, 2): Odd()}]).fingerprint())"
    )
    found = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)}
    assert len(found) == 1
    assert len(found.pop().strip()) == 16
