"""JSON Lines in any order: rows, origins, errors, and files that change."""

from __future__ import annotations

import gc
import json
import os
import pathlib
import pickle
import random
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ms_prefstream.errors import Reason, RowError, SourceError
from ms_prefstream.sources import files, jsonl
from ms_prefstream.sources.base import RandomAccess
from ms_prefstream.sources.jsonl import JsonLines, Offsets, dump_row
from tests.helpers import json_lines

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)
OBJECTS = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), VALUES, max_size=3)
BLANKS = st.lists(st.sampled_from([b"", b" ", b"\t \x0b", b" " * 70]), max_size=3)
ENDS = st.sampled_from([b"\n", b"\r\n"])


@pytest.fixture
def make(tmp_path: pathlib.Path) -> Callable[..., JsonLines]:
    def make(*contents: bytes, **options: Any) -> JsonLines:
        paths = []
        for number, content in enumerate(contents):
            paths.append(str(tmp_path / f"{number}.jsonl"))
            pathlib.Path(paths[-1]).write_bytes(content)
        return JsonLines(paths, **options)

    return make


def spell(rows: list[dict[str, Any]], blanks: list[list[bytes]], ends: list[bytes], last: bool, bom: bool) -> Any:
    """A file's bytes, and the physical line of each row."""
    text, lines, line = [b"\xef\xbb\xbf" if bom else b""], [], 0
    for row, before, end in zip(rows, blanks, ends, strict=True):
        for blank in before:
            text += [blank, end]
            line += 1
        line += 1
        lines.append(line)
        text += [orjson.dumps(row), end]
    return b"".join(text if last else text[:-1]), lines


@given(st.data())
def test_rows_come_back_exactly_and_origins_name_the_physical_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    paths, rows, origins = [], [], []
    for number in range(data.draw(st.integers(1, 3))):
        part = data.draw(st.lists(OBJECTS, min_size=1, max_size=6))
        size = len(part)
        blanks = data.draw(st.lists(BLANKS, min_size=size, max_size=size))
        ends = data.draw(st.lists(ENDS, min_size=size, max_size=size))
        text, lines = spell(part, blanks, ends, data.draw(st.booleans()), data.draw(st.booleans()))
        path = folder / f"{number}.jsonl"
        path.write_bytes(text)
        paths.append(str(path))
        rows += part
        origins += [f"{path}:{line}" for line in lines]
    source = JsonLines(paths)
    assert len(source) == len(rows)
    order = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=12))
    assert source.read(order) == [rows[row] for row in order]
    assert source.read(range(len(rows))) == rows
    assert [source.origin(row) for row in range(len(rows))] == origins


def test_it_is_random_access(make: Callable[..., JsonLines]) -> None:
    assert isinstance(make(b"{}"), RandomAccess)


def test_true_lines_across_many_blocks(make: Callable[..., JsonLines]) -> None:
    """Longer than a block (256 KiB) and a step of the line count (64 KiB), so positions inside later ones count."""
    draw = random.Random(3)
    text, rows, lines, line = [], [], [], 0
    while sum(map(len, text)) < 700_000:
        for _ in range(draw.choice([0, 0, 0, 1, 2])):
            text.append(draw.choice([b"\n", b"  \r\n"]))
            line += 1
        rows.append({"n": len(rows), "text": "字" * draw.randrange(200)})
        text.append(orjson.dumps(rows[-1]) + b"\n")
        line += 1
        lines.append(line)
    source = make(b"".join(text))
    order = random.Random(4).sample(range(len(rows)), len(rows))
    assert source.read(order) == [rows[row] for row in order]
    assert [int(source.origin(row).rsplit(":", 1)[1]) for row in order] == [lines[row] for row in order]


def test_a_line_that_is_longer_than_a_block(make: Callable[..., JsonLines]) -> None:
    rows = [{"a": 1}, {"text": "x" * 900_000}, {"b": 2}]
    source = make(b"\n\n".join(map(orjson.dumps, rows)))
    assert source.read([2, 1, 0]) == rows[::-1]
    assert source.origin(2).endswith(":5")


def test_index_takes_8_bytes_a_row(make: Callable[..., JsonLines]) -> None:
    source = make(b"{}\n\n" * 200_000)
    assert len(source) == 200_000
    assert len(pickle.dumps(source)) < 8.1 * 200_000


def test_neighbouring_rows_are_read_together(make: Callable[..., JsonLines], monkeypatch: pytest.MonkeyPatch) -> None:
    source = make(b"".join(b'{"n":%d}\n' % n for n in range(100)))
    len(source)
    reads: list[int] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *args: reads.append(args[1]) or pread(*args))
    assert [row["n"] for row in source.read([7, 50, 5, 8, 6, 51])] == [7, 50, 5, 8, 6, 51]
    assert len(reads) == 2


def test_rows_asked_twice_are_separate_objects(make: Callable[..., JsonLines]) -> None:
    first, second = make(b'{"a": [1]}').read([0, 0])
    assert first == second
    assert first["a"] is not second["a"]


@pytest.mark.parametrize("row", [-1, 2])
def test_a_row_that_does_not_exist(make: Callable[..., JsonLines], row: int) -> None:
    source = make(b"{}\n{}\n")
    with pytest.raises(SourceError, match=rf"row {row} was requested, but there are 2 rows"):
        source.read([0, row])
    with pytest.raises(SourceError, match="there are 2 rows"):
        source.origin(row)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"a": 1', "unexpected end of data at column 8"),
        (b'{"a": tru}', "column 7"),
        (b"['a']", "column 2"),
        (b'{"a": "\xff"}', "not valid UTF-8: byte 8 is 0xff"),
        (b'{"score": NaN}', "write null or a number"),
        (b'{"score": -Infinity}', "write null or a number"),
        (b"[", "save one big array as .json"),
        (b'{"a": 1} {"b": 2}', "column 10"),
        (b"\0\0\0\0", r"begins '\x00\x00"),
    ],
)
def test_a_bad_line_becomes_an_error_in_its_place(make: Callable[..., JsonLines], line: bytes, said: str) -> None:
    source = make(b'{"n": 0}\n\n' + line + b'\n\x0b\n{"n": 1}\n')
    before, bad, after = source.read(range(3))
    assert (before, after) == ({"n": 0}, {"n": 1})
    assert isinstance(bad, RowError)
    assert bad.reason is Reason.BAD_JSON
    assert bad.origin.endswith("0.jsonl:3")
    assert bad.remedy
    assert said in str(bad)
    assert f"the line begins {line.decode('utf-8', 'replace')!r}" in str(bad)


def test_a_long_bad_line_is_shown_by_its_start(make: Callable[..., JsonLines]) -> None:
    (bad,) = make(b'{"text": "' + "长".encode() * 5000).read([0])
    assert len(str(bad)) < 500
    assert "长长长" in str(bad)


def test_blank_lines_of_odd_spaces_and_marks_behind_a_row_do_no_harm(make: Callable[..., JsonLines]) -> None:
    source = make(b'{"a":1}\n\x0b\x0c\n\xef\xbb\xbf{"b":2}\n\x1e{"c":3}\nnull\n[1]')
    assert source.read(range(5)) == [{"a": 1}, {"b": 2}, {"c": 3}, None, [1]]


@pytest.mark.parametrize(
    "end", [b"", b"\n", b"\r\n", b"\n\n  \n", b'\n{"next": 1}', b"\r\n\n\n" + b" " * 500 + b"\n{}"]
)
def test_the_size_limit_is_that_of_the_row_alone(make: Callable[..., JsonLines], end: bytes) -> None:
    def row(size: int) -> bytes:
        return b'"' + b"x" * (size - 2) + b'"'

    assert make(row(100) + end, max_row_bytes=100).read([0]) == ["x" * 98]
    (large,) = make(b"\n" + row(101) + end, max_row_bytes=100).read([0])
    assert isinstance(large, RowError)
    assert large.reason is Reason.ROW_TOO_LARGE
    assert large.origin.endswith(":2")
    assert "at most 100 are allowed" in str(large)


def test_many_large_rows_that_are_neighbours(make: Callable[..., JsonLines]) -> None:
    source = make(b'"' + b'"\n"'.join(b"x" * n for n in range(200)) + b'"', max_row_bytes=100)
    found = source.read(range(200))
    assert [row for row in found if isinstance(row, str)] == ["x" * n for n in range(99)]


@pytest.mark.parametrize("content", [b"", b"\n \r\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n", b" " * 300_000])
def test_no_rows(make: Callable[..., JsonLines], content: bytes) -> None:
    with pytest.raises(SourceError, match=r"0\.jsonl: found no rows"):
        len(make(content))


def test_one_empty_file_among_others_is_no_fault(make: Callable[..., JsonLines]) -> None:
    source = make(b"", b'{"a":1}\n', b"\n", b'{"b":2}')
    assert source.read([1, 0]) == [{"b": 2}, {"a": 1}]
    assert source.origin(1).endswith("3.jsonl:1")
    assert source.name.endswith("0.jsonl and 3 more files")


@pytest.mark.parametrize(
    ("head", "said"),
    [(b"\x1f\x8b\x08\0", "gzip"), (b"\x28\xb5\x2f\xfd", "Zstandard"), (b"PAR1", "Parquet"), (b"\xff\xfe{\0", "UTF-16")],
)
def test_other_contents_are_named(make: Callable[..., JsonLines], head: bytes, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        len(make(head + b"\n"))


def change(path: str, content: bytes, *, later: bool = True) -> None:
    status = os.stat(path)
    with open(path, "r+b") as file:
        file.write(content)
        file.truncate()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + later * 1_000_000_000))


def test_a_file_that_was_cut_off(make: Callable[..., JsonLines]) -> None:
    source = make(b'{"n": 0}\n{"n": 1}\n')
    assert source.read([0]) == [{"n": 0}]
    change(source.paths[0], b'{"n": 0}\n', later=False)
    with pytest.raises(SourceError, match=r"0\.jsonl: the file changed under us: it ends at byte 9"):
        source.read([1])
    with pytest.raises(SourceError, match="it had 18 bytes when it was opened and has 9 now"):
        source.read([0])


def test_a_file_that_was_overwritten_with_the_same_size(make: Callable[..., JsonLines]) -> None:
    source = make(b'{"n": 0}\n')
    len(source)
    change(source.paths[0], b'{"n": 1}\n')
    with pytest.raises(SourceError, match="it was written to after it was opened"):
        source.read([0])


def test_a_file_that_is_gone_before_it_is_first_read(make: Callable[..., JsonLines]) -> None:
    source = make(b"{}\n")
    copy = pickle.loads(pickle.dumps(source))
    os.remove(source.paths[0])
    with pytest.raises(SourceError, match="no such file"):
        len(copy)


def test_pickle_takes_the_index_and_no_descriptor(make: Callable[..., JsonLines], monkeypatch: Any) -> None:
    source = make(b'{"n": 0}\n\n{"n": 1}\n')
    assert source.read([1]) == [{"n": 1}]
    copy = pickle.loads(pickle.dumps(source))
    monkeypatch.setattr(jsonl, "_scan", lambda *args: pytest.fail("indexed twice"))
    assert copy.read([1, 0]) == [{"n": 1}, {"n": 0}]
    assert copy.origin(1) == source.origin(1)
    assert copy.fingerprint() == source.fingerprint()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_parent_and_child_read_through_one_descriptor(make: Callable[..., JsonLines]) -> None:
    source = make(b"".join(b'{"n":%d}\n' % n for n in range(2000)))
    source.read([0])
    child = os.fork()
    good = all(source.read([n])[0]["n"] == n for n in range(2000))
    if child == 0:
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert good


def test_threads_read_many_files_with_few_descriptors(make: Callable[..., JsonLines], monkeypatch: Any) -> None:
    monkeypatch.setattr(files, "_OPEN_AT_MOST", 2)
    source = make(*(b'{"n":%d}\n' % n for n in range(12)))
    wrong: list[Any] = []

    def work(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(150):
            asked = [draw.randrange(12) for _ in range(3)]
            try:
                found: Any = [row["n"] for row in source.read(asked)]
            except Exception as error:  # a thread's error would be lost
                found = error
            if found != asked:
                wrong.append((asked, found))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    sys.setswitchinterval(interval)
    assert not wrong
    assert len(files._open) <= 2 + 4


def test_all_sources_together_keep_few_files_open(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.resource, "getrlimit", lambda which: (32, 32))
    files._open.clear()
    before = len(os.listdir("/proc/self/fd"))
    paths = [json_lines(tmp_path / f"{n}.jsonl", [{"n": n}]) for n in range(20)]
    sources = [JsonLines([str(path)]) for path in paths]
    for n in random.Random(0).choices(range(20), k=60):
        assert sources[n].read([0]) == [{"n": n}]
    assert 32 // 4 == len(files._open) >= len(os.listdir("/proc/self/fd")) - before
    sources.clear()
    gc.collect()
    assert not files._open


def test_fingerprint_is_of_the_contents_not_of_names_and_times(tmp_path: pathlib.Path) -> None:
    def fingerprint(name: str, content: bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content)
        return JsonLines([str(path)]).fingerprint()

    content = b"".join(b'{"n":"%07d"}\n' % n for n in range(40_000))  # 16 bytes a row, two blocks and a half
    here = fingerprint("here.jsonl", content)
    assert fingerprint("there.jsonl", content) == here
    for place in (6, 70_001, len(content) - 4):  # one byte, anywhere
        assert fingerprint("other.jsonl", content[:place] + b"x" + content[place + 1 :]) != here
    rows = content.splitlines(keepends=True)
    rows[100], rows[1000] = rows[1000], rows[100]
    assert fingerprint("swapped.jsonl", b"".join(rows)) != here
    assert fingerprint("longer.jsonl", content + b"\n") != here
    assert fingerprint("zero.jsonl", content + b"\0") != here


def test_fingerprint_knows_the_order_of_files(make: Callable[..., JsonLines]) -> None:
    source = make(b"{}\n", b"[]\n")
    assert JsonLines(source.paths[::-1]).fingerprint() != source.fingerprint()


def test_a_row_as_a_line_is_text_in_utf8() -> None:
    assert dump_row({"文": "日本\n語 🎉", "n": 1.5}) == '{"文":"日本\\n語 🎉","n":1.5}'.encode()


def test_every_row_can_be_a_line() -> None:
    loop: list[Any] = []
    loop.append(loop)
    odd = [{1: 2}, {"big": 2**70}, {"half": "\ud83d"}, {"set": {1}}, {(1, 2): 3}, loop, b"\xff"]
    lines = list(map(dump_row, odd))
    assert not any(b"\n" in line for line in lines)
    assert lines[0] == b'{"1":2}'
    assert b"1180591620717411303424" in lines[1]


def test_offsets_beyond_4_gib_are_exact_and_take_4_bytes() -> None:
    numbers = np.random.default_rng(0)
    steps = numbers.integers(1, 2**22, 5000)
    steps[[10, 2000, 4999]] = 2**32, 2**34 + 5, 2**33  # rows that are larger than 4 GiB
    right = np.cumsum([0, *steps])
    right[100:] += 2**32 - int(right[100])  # exactly at the border
    found = Offsets()
    for part in np.split(right, [0, 1, 100, 101, 3000]):
        found.append(part)
    found.close()
    assert len(found) == len(right)
    np.testing.assert_array_equal(found[np.arange(len(right))], right, strict=True)
    assert [int(found[place]) for place in (0, 99, 100, 5000)] == right[[0, 99, 100, 5000]].tolist()
    assert found._low.nbytes == 4 * len(right)


@pytest.mark.parametrize(
    "text",
    [
        '[{"a": 1}, {"a": 2}]',
        '[{"a": 1}, {"a": 2}]\n',
        '\ufeff  [ {"a": "' + "x" * 9000 + '"} ]\n\n',
        '[\n  {"a": 1},\n  {"a": 2}\n]\n',
        '[{"a": 1},\n{"a": 2}]',
        '\n[{\n  "a": 1\n}]',
    ],
)
def test_an_array_of_rows_is_no_json_lines(tmp_path: pathlib.Path, text: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text, "utf-8")
    with pytest.raises(SourceError, match=r"rows\.jsonl: begins with '\[': a JSON array; name it \.json"):
        len(JsonLines([str(path)]))


@pytest.mark.parametrize("text", ["[1, 2]\n[3]\n", '[{"a": 1}]\n[{"a": 2}]\n', '["a", "b"]', "[]\n"])
def test_lines_that_are_arrays_are_rows(tmp_path: pathlib.Path, text: str) -> None:
    """A format function may read them."""
    path = tmp_path / "rows.jsonl"
    path.write_text(text, "utf-8")
    assert JsonLines([str(path)]).read([0]) == [json.loads(text.splitlines()[0])]
