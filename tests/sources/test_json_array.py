"""One JSON array in a file."""

from __future__ import annotations

import json
import os
import pathlib
import pickle

import pytest

from ms_prefstream.errors import Reason, RowError, SourceError
from ms_prefstream.sources import json_array
from ms_prefstream.sources.base import RandomAccess
from ms_prefstream.sources.json_array import JsonArray, holds_array
from ms_prefstream.sources.jsonl import JsonLines
from ms_prefstream.sources.open import open_source

ROWS = [{"n": 0, "文": "日本語"}, {"n": 1}, None, {"n": [1.5, {"x": None}]}]


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(ROWS, indent=2, ensure_ascii=False), "utf-8")
    return str(file)


def test_rows_in_the_asked_order(path: str) -> None:
    source = open_source(path)
    assert isinstance(source, JsonArray)
    assert isinstance(source, RandomAccess)
    assert len(source) == 4
    assert source.read([3, 0, 2, 1, 0]) == [ROWS[k] for k in (3, 0, 2, 1, 0)]
    assert source.origin(3) == f"{path}[3]"
    assert pickle.loads(pickle.dumps(source)).read([1]) == [ROWS[1]]


def test_changing_a_row_does_not_change_the_next_read(path: str) -> None:
    source = JsonArray(path)
    source.read([3])[0]["n"].clear()
    assert source.read([3]) == [ROWS[3]]


def test_fingerprint_follows_the_contents(path: str) -> None:
    before = JsonArray(path).fingerprint()
    os.utime(path, (1, 1))
    assert JsonArray(path).fingerprint() == before
    pathlib.Path(path).write_text('[{"n": 1}]')
    assert JsonArray(path).fingerprint() != before


@pytest.mark.parametrize(
    ("content", "array"),
    [
        (b"[]", True),
        (b"\xef\xbb\xbf \n [1]", True),
        (b" " * 70_000 + b"[1]", True),
        (b'{"a": 1}\n', False),
        (b"", False),
    ],
)
def test_an_array_is_told_from_lines(tmp_path: pathlib.Path, content: bytes, array: bool) -> None:
    (tmp_path / "x.json").write_bytes(content)
    assert holds_array(str(tmp_path / "x.json")) is array


def test_lines_in_a_json_file(tmp_path: pathlib.Path) -> None:
    (tmp_path / "x.json").write_text('\n{"n": 1}\n{"n": 2}\n')
    source = open_source(tmp_path / "x.json")
    assert isinstance(source, JsonLines)
    assert source.read([1]) == [{"n": 2}]
    assert source.origin(1).endswith("x.json:3")


def test_a_mark_at_the_start(tmp_path: pathlib.Path) -> None:
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf[{"n": 1}]')
    assert open_source(tmp_path / "x.json").read([0]) == [{"n": 1}]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[]", "found no rows"),
        (b'[{"a": 1},\n{"b": tru}]', r"x\.json:2: the JSON array is not valid: .* at column 7"),
        (b'[\n\n{"b": "\xff"}]', r"x\.json:3: byte 11 of the file \(0xff\) is not valid UTF-8"),
        (b'[{"a": 1}', r"x\.json:1: the JSON array is not valid"),
    ],
)
def test_a_bad_array(tmp_path: pathlib.Path, content: bytes, said: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(SourceError, match=said):
        len(open_source(tmp_path / "x.json"))


def test_the_documented_size(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    size = os.path.getsize(path)
    monkeypatch.setattr(json_array, "MAX_ARRAY_BYTES", size)
    assert len(JsonArray(path)) == 4
    monkeypatch.setattr(json_array, "MAX_ARRAY_BYTES", size - 1)
    with pytest.raises(SourceError, match="Convert it to JSON Lines"):
        len(JsonArray(path))


def test_a_row_above_the_limit(path: str) -> None:
    large, small = JsonArray(path, max_row_bytes=15).read([0, 1])
    assert isinstance(large, RowError)
    assert large.reason is Reason.ROW_TOO_LARGE
    assert large.origin == f"{path}[0]"
    assert small == {"n": 1}


def test_real_rows(shared: pathlib.Path) -> None:
    path = shared / "data" / "dpo_zh_demo.json"
    rows = json.loads(path.read_text("utf-8"))
    assert open_source(path).read(range(300)) == rows
