"""Files that grow while they are read: what is delivered, when, and in which order. The writer is this process."""

from __future__ import annotations

import itertools
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ms_prefstream.errors import OptionError, Reason, RowError, SourceError
from ms_prefstream.sources import open_source
from ms_prefstream.sources.base import OnePass
from ms_prefstream.sources.follow import Ending, Followed, follow

POLL = 0.01


def line(*numbers: int) -> str:
    return "".join(f'{{"n": {n}}}\n' for n in numbers)


def append(path: pathlib.Path, text: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)


def numbers(rows: Iterator[tuple[str, Any]], most: int | None = None) -> list[Any]:
    return [row if isinstance(row, RowError) else row["n"] for _, row in itertools.islice(rows, most)]


class Reader:
    """Reads in a thread, so that the test sees what has been delivered so far."""

    def __init__(self, source: Followed, skip: int = 0) -> None:
        self.found: list[Any] = []
        self.origins: list[str] = []
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._read, args=(source, skip), daemon=True)
        self._thread.start()

    def _read(self, source: Followed, skip: int) -> None:
        try:
            for origin, row in source.start(skip):
                self.origins.append(origin)
                self.found.append(row if isinstance(row, RowError) else row["n"])
        except Exception as error:
            self.error = error

    def wait(self, count: int) -> list[Any]:
        """The rows, once there are this many; a moment later there must not be more."""
        limit = time.monotonic() + 5
        while len(self.found) < count and time.monotonic() < limit and self._thread.is_alive():
            time.sleep(POLL / 4)
        time.sleep(POLL * 5)
        assert len(self.found) == count, (self.found, self.error)
        return self.found

    def end(self) -> list[Any]:
        self._thread.join(5)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error
        return self.found


def test_complete_lines_are_delivered_as_they_come_and_partial_ones_wait(tmp_path: pathlib.Path) -> None:
    path, done = tmp_path / "pairs.jsonl", tmp_path / "DONE"
    reader = Reader(follow(path, until=done, poll=POLL))
    reader.wait(0)  # the file is not there yet
    append(path, line(0, 1) + '{"n":')
    assert reader.wait(2) == [0, 1]
    append(path, " 2")
    reader.wait(2)
    append(path, "}\n\n" + line(3))  # and a blank line
    assert reader.wait(4) == [0, 1, 2, 3]
    append(path, line(4))
    done.touch()
    assert reader.end() == [0, 1, 2, 3, 4]
    assert reader.origins == [f"{path}:{n}" for n in (1, 2, 3, 5, 6)]


def test_what_is_written_right_before_the_sentinel_is_read(tmp_path: pathlib.Path) -> None:
    for round_ in range(20):
        path, done = tmp_path / f"{round_}.jsonl", tmp_path / f"{round_}.done"
        path.touch()
        reader = Reader(follow(path, until=done, poll=0.001))
        for n in range(30):
            append(path, line(n))
        done.touch()
        assert reader.end() == list(range(30))


@pytest.mark.parametrize("names", [["a.jsonl"], ["a.jsonl", "a.jsonl"], ["a.jsonl", "a.jsonl", "b.jsonl", "b.jsonl"]])
def test_what_comes_while_the_end_is_being_looked_for_is_read(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, names: list[str]
) -> None:
    """The writer writes, and at last finishes, between the reader's look at the data and its look at the sentinel."""
    left = list(enumerate(names))
    ended = Ending.over

    def over(self: Ending) -> bool:
        if left:
            number, name = left.pop(0)
            append(tmp_path / name, line(number))
        if not left:
            (tmp_path / "DONE").touch()
        return ended(self)

    monkeypatch.setattr(Ending, "over", over)
    assert numbers(follow(tmp_path, until=tmp_path / "DONE", poll=POLL).start()) == list(range(len(names)))


def test_the_end_by_a_number_of_rows(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "pairs.jsonl"
    append(path, line(0, 1, 2))
    source = follow(path, until=5, poll=POLL)
    assert (source.rows, source.ends_by_time) == (5, False)
    reader = Reader(source)
    reader.wait(3)
    append(path, line(3, 4, 5, 6))
    assert reader.end() == [0, 1, 2, 3, 4]
    assert source.ended == " (all until=5 rows were given)"
    assert numbers(source.start(3)) == [3, 4]
    assert numbers(source.start(5)) == []
    with pytest.raises(SourceError, match="6 rows were to be skipped, but there are only 5"):
        source.start(6)
    again = follow(path, until=5, poll=POLL)
    assert again.begin(6)[0] == 5
    assert again.ended == " (all until=5 rows were given)"


def test_the_end_by_a_time_without_data_counts_only_waiting(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "pairs.jsonl"
    append(path, line(0, 1))
    source = follow(path, timeout=0.3, poll=POLL)
    assert source.ends_by_time
    rows = source.start()
    next(rows)
    next(rows)
    time.sleep(0.5)  # the reader is busy, training
    timer = threading.Timer(0.15, append, (path, line(2)))
    timer.start()
    before = time.monotonic()
    assert numbers(rows) == [2]
    assert 0.4 < time.monotonic() - before < 2
    assert source.ended == " (nothing was written for timeout=0.3 seconds)"


def test_a_file_that_never_comes_ends_by_timeout(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SourceError, match=r"found no rows \(nothing was written for timeout=.* seconds\), expected"):
        list(follow(tmp_path / "pairs.jsonl", timeout=0.05, poll=POLL).start())


@pytest.mark.parametrize("skip", range(8))
def test_a_resumed_pass_begins_behind_the_skipped_rows_wherever_they_stand(tmp_path: pathlib.Path, skip: int) -> None:
    done = tmp_path / "DONE"
    append(tmp_path / "a.jsonl", line(0, 1) + "\n" + line(2))
    append(tmp_path / "b.jsonl", "")
    append(tmp_path / "c.jsonl", line(3, 4) + '{"n": 5')
    source = follow(tmp_path, until=done, poll=POLL)
    reader = Reader(source, skip)
    reader.wait(max(0, 5 - skip))
    append(tmp_path / "c.jsonl", "}\n")
    append(tmp_path / "d.jsonl", line(6, 7))
    done.touch()
    assert reader.end() == list(range(skip, 8))


def test_skipping_waits_for_rows_that_are_not_there_yet_but_not_beyond_the_end(tmp_path: pathlib.Path) -> None:
    path, done = tmp_path / "pairs.jsonl", tmp_path / "DONE"
    append(path, line(0))
    source = follow(path, until=done, poll=POLL)
    reader = Reader(source, 3)
    reader.wait(0)
    append(path, line(1, 2, 3))
    assert reader.wait(1) == [3]
    done.touch()
    assert reader.end() == [3]
    with pytest.raises(SourceError, match="9 rows were to be skipped, but there are only 4"):
        source.start(9)


def test_skipped_rows_are_not_parsed(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, done = tmp_path / "pairs.jsonl", tmp_path / "DONE"
    append(path, "{broken\n" * 1000 + line(7))
    done.touch()
    assert numbers(follow(path, until=done).start(1000)) == [7]


# The order of files


def test_files_of_a_folder_come_by_name_also_late_ones(tmp_path: pathlib.Path) -> None:
    done = tmp_path / "DONE"
    append(tmp_path / "step-02.jsonl", line(0))
    append(tmp_path / "step-01.jsonl", line(1))
    for ignored in (".hidden.jsonl", "notes.txt", "step-00.jsonl.tmp"):
        append(tmp_path / ignored, line(99))
    (tmp_path / "folder.jsonl").mkdir()
    reader = Reader(follow(str(tmp_path) + os.sep, until=done, poll=POLL))
    assert reader.wait(2) == [1, 0]
    append(tmp_path / "step-02.jsonl", line(2))  # the last file may grow
    reader.wait(3)
    append(tmp_path / "part.tmp", line(3, 4))
    os.rename(tmp_path / "part.tmp", tmp_path / "step-03.ndjson")
    assert reader.wait(5) == [1, 0, 2, 3, 4]
    done.touch()
    reader.end()


def test_a_sentinel_that_looks_like_data_is_none(tmp_path: pathlib.Path) -> None:
    append(tmp_path / "a.jsonl", line(0))
    append(tmp_path / "z-end.jsonl", line(1))
    assert numbers(follow(tmp_path, until=tmp_path / "z-end.jsonl").start()) == [0]


def wait_for(reader: Reader) -> str:
    with pytest.raises(SourceError) as caught:
        reader.end()
    return str(caught.value)


def test_files_out_of_order_are_errors(tmp_path: pathlib.Path) -> None:
    def fresh(name: str) -> tuple[pathlib.Path, Reader]:
        folder = tmp_path / name
        folder.mkdir()
        append(folder / "b.jsonl", line(0))
        append(folder / "c.jsonl", line(1))
        reader = Reader(follow(folder, poll=POLL))
        reader.wait(2)
        return folder, reader

    folder, reader = fresh("late")
    append(folder / "a.jsonl", line(2))
    assert f"{folder / 'a.jsonl'}: the file appeared when" in wait_for(reader)
    folder, reader = fresh("grown")
    append(folder / "b.jsonl", line(2))
    assert "was complete with 9 bytes, since a later one had begun, and has 18" in wait_for(reader)
    folder, reader = fresh("packed")
    (folder / "d.jsonl.gz").write_bytes(b"")
    assert "compressed file, which cannot be followed" in wait_for(reader)
    folder, reader = fresh("deleted")
    (folder / "c.jsonl").unlink()
    assert "was deleted, replaced, or renamed" in wait_for(reader)
    folder, reader = fresh("passed")
    (folder / "b.jsonl").unlink()  # was read to its end: a resumed run would miss it, this one does not
    append(folder / "c.jsonl", line(3))
    reader.wait(3)
    (folder / "d.jsonl").mkdir()
    os.mkfifo(folder / "e.jsonl")
    assert "something else than a regular file" in wait_for(reader)


def test_files_that_are_not_appended_to_are_errors(tmp_path: pathlib.Path) -> None:
    def fresh(name: str) -> tuple[pathlib.Path, Reader]:
        path = tmp_path / name / "pairs.jsonl"
        path.parent.mkdir()
        append(path, line(0, 1, 2))
        reader = Reader(follow(path, poll=POLL))
        reader.wait(3)
        return path, reader

    path, reader = fresh("cut")
    os.truncate(path, 9)
    assert f"{path}: 27 bytes of the file were read, but it has 9 bytes now" in wait_for(reader)
    path, reader = fresh("anew")
    with open(path, "r+", encoding="utf-8") as file:
        file.write(line(7, 8, 9, 6))
    assert "has other contents there now" in wait_for(reader)
    path, reader = fresh("replaced")
    append(path.with_name("new"), line(0, 1, 2, 3))
    os.replace(path.with_name("new"), path)
    assert "was deleted, replaced, or renamed" in wait_for(reader)
    path, reader = fresh("renamed")
    os.rename(path, path.with_name("elsewhere"))
    append(path, line(3))
    assert "follow a folder of files that are numbered" in wait_for(reader)


# The last line


@pytest.mark.parametrize("ends", ["sentinel", "later file", "timeout"])
@pytest.mark.parametrize(("last", "found"), [('{"n": 1}', 1), ('{"n": 1', Reason.BAD_JSON), ("  ", None)])
def test_a_last_line_without_newline_is_a_row_at_the_end_of_its_file(
    tmp_path: pathlib.Path, ends: str, last: str, found: Any
) -> None:
    append(tmp_path / "a.jsonl", line(0) + last)
    options: dict[str, Any] = {"timeout": 0.1}
    if ends != "timeout":
        options = {"until": tmp_path / "DONE"}
    source = follow(tmp_path, poll=POLL, **options)
    reader = Reader(source)
    if ends != "timeout":
        reader.wait(1)
    if ends == "later file":
        append(tmp_path / "b.jsonl", line(5))
    if ends != "timeout":
        (tmp_path / "DONE").touch()
    rows = list(reader.end())
    row = rows.pop(1) if found is not None else None
    assert rows == ([0, 5] if ends == "later file" else [0])
    assert (row.reason if isinstance(row, RowError) else row) == found
    if isinstance(row, RowError):
        assert row.origin == f"{tmp_path / 'a.jsonl'}:2"
    assert len(list(source.start(1))) == len(reader.found) - 1  # a resumed pass counts it too


def test_a_first_line_with_a_byte_order_mark_and_foreign_files(tmp_path: pathlib.Path) -> None:
    done = tmp_path / "DONE"
    done.touch()
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + line(0).encode())
    assert numbers(follow(tmp_path / "a.jsonl", until=done).start()) == [0]
    (tmp_path / "b.jsonl").write_bytes(b"PAR1....")
    with pytest.raises(SourceError, match="found Parquet data"):
        list(follow(tmp_path / "b.jsonl", until=done).start())


def test_too_long_rows_are_errors_in_their_place(tmp_path: pathlib.Path) -> None:
    done = tmp_path / "DONE"
    append(tmp_path / "a.jsonl", line(0) + f'{{"n": "{"x" * 200}"}}\n' + line(2))
    done.touch()
    rows = numbers(follow(tmp_path / "a.jsonl", until=done, max_row_bytes=100).start())
    assert [row.reason if isinstance(row, RowError) else row for row in rows] == [0, Reason.ROW_TOO_LARGE, 2]


def test_the_fingerprint_shows_that_old_files_are_gone_and_nothing_else(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "pairs.jsonl"
    source = follow(path, until=100)
    empty = source.fingerprint()
    append(path, '{"n":')
    assert source.fingerprint() == empty
    append(path, "0}\n")
    first = source.fingerprint()
    assert first != empty
    append(path, line(1))
    assert follow(path, until=100).fingerprint() == first
    os.unlink(path)
    append(path, line(1))
    assert follow(path, until=100).fingerprint() != first
    assert source.fingerprint() == first


def test_the_fingerprint_of_a_folder_is_that_of_its_first_file(tmp_path: pathlib.Path) -> None:
    append(tmp_path / "step-01.jsonl", line(0))
    first = follow(tmp_path, until=100).fingerprint()
    append(tmp_path / "step-02.jsonl", line(1))
    assert follow(tmp_path, until=100).fingerprint() == first
    os.unlink(tmp_path / "step-01.jsonl")
    assert follow(tmp_path, until=100).fingerprint() != first


def test_it_is_a_one_pass_source_that_says_what_it_is(tmp_path: pathlib.Path) -> None:
    source = follow(tmp_path / "pairs.jsonl")
    assert isinstance(source, OnePass)
    assert open_source(source) is source
    assert (source.once, source.continues, source.rows, source.ends_by_time) == (True, True, None, False)
    assert follow(tmp_path, until=3, timeout=1).ends_by_time


@pytest.mark.parametrize(
    ("make", "error", "found"),
    [
        (lambda f: follow(f, until=0), OptionError, "until, as a number of rows, is 0; expected"),
        (lambda f: follow(f, until=True), OptionError, "until, as a number of rows, is True"),
        (lambda f: follow(f, until=1.5), OptionError, "until, as a number of rows, is 1.5"),
        (lambda f: follow(f, until=""), OptionError, "until is ''"),
        (lambda f: follow(f, timeout=0), OptionError, "timeout is 0; expected a number of seconds"),
        (lambda f: follow(f, timeout="5"), OptionError, "timeout is '5'"),
        (lambda f: follow(f, poll=-1), OptionError, "poll is -1"),
        (lambda f: follow(f, max_row_bytes=0), OptionError, "max_row_bytes is 0"),
        (lambda f: follow([f]), OptionError, "path is .*expected the path of a file"),
        (lambda f: follow(f / "no" / "x.jsonl"), SourceError, "there is no folder"),
        (lambda f: follow(f, until=f / "no" / "DONE"), SourceError, "until is .* there is no folder"),
        (lambda f: follow(f / "x.jsonl.gz"), SourceError, "compressed file, which cannot be followed"),
    ],
)
def test_options_check_themselves(
    tmp_path: pathlib.Path, make: Callable[[pathlib.Path], Any], error: type[Exception], found: str
) -> None:
    with pytest.raises(error, match=found):
        make(tmp_path)
