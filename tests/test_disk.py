"""Reading with limits and a schema, writing atomically under names of our own."""

from __future__ import annotations

import errno
import fcntl
import os
import pathlib
import signal
import socket
from typing import Annotated, Any

import msgspec
import pytest

import ms_prefstream as mps
from ms_prefstream import disk
from ms_prefstream.errors import CacheError, StateError, printable

WHAT = "the manifest"


class Note(msgspec.Struct, forbid_unknown_fields=True):
    rows: Annotated[int, msgspec.Meta(ge=0)]
    files: dict[str, int] = {}


def test_a_file_is_replaced_as_a_whole(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "note.json"
    disk.write_file(path, b"one", CacheError, WHAT)
    disk.write_file(path, b"two", CacheError, WHAT)
    assert disk.read_file(path, CacheError, WHAT) == b"two"
    assert os.listdir(tmp_path) == ["note.json"]


def test_an_error_in_the_block_leaves_the_old_file_and_nothing_else(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "note.json"
    path.write_bytes(b"old")

    def interrupted() -> None:
        with disk.written(path, CacheError, WHAT) as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["note.json"]


def test_a_folder_that_vanishes_while_its_parent_is_walked_is_skipped(tmp_path: pathlib.Path) -> None:
    """A process that writes a part range deletes its temporary folders while another one looks for foreign files."""
    for name in ("kept", "left"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    found = []
    for here, _, files in disk.walk(str(tmp_path)):
        found += files
        if here == str(tmp_path):
            (tmp_path / "left" / "file").unlink()
            (tmp_path / "left").rmdir()
    assert found == ["file"]


def test_strangers_files_beside_are_untouched(tmp_path: pathlib.Path) -> None:
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("years of work")
    for name in ("x.idx.part", "x.idx.tmp", "x.idx.new", "x.idx"):
        (tmp_path / name).symlink_to(thesis)
    disk.write_file(tmp_path / "x.idx", b"index", CacheError, WHAT)
    assert thesis.read_text() == "years of work"
    assert not (tmp_path / "x.idx").is_symlink()  # replaced, not followed
    assert all((tmp_path / name).is_symlink() for name in ("x.idx.part", "x.idx.tmp", "x.idx.new"))


@pytest.mark.parametrize("kind", ["folder", "pipe", "socket", "device"])
def test_only_regular_files_are_read_and_none_is_waited_for(kind: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "it"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(path))
    else:
        path = pathlib.Path("/dev/zero")
    with pytest.raises(StateError, match=r"expected a regular file|cannot be read"):
        disk.read_file(path, StateError, WHAT)


def test_a_missing_file_is_the_callers_business(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError):
        disk.read_file(tmp_path / "none", StateError, WHAT)


def test_nothing_is_at_a_path_that_no_file_can_have(tmp_path: pathlib.Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    for name in ("missing", "file/x", "n" * 300, "n\0", "loop"):
        assert disk.status_of(tmp_path / name, follow=True) is None, name
    assert disk.exists(tmp_path / "loop")


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EMFILE])
def test_what_the_system_cannot_look_up_is_not_missing(
    number: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Any, **_: Any) -> Any:
        raise OSError(number, "no", path)

    (tmp_path / "file").touch()
    with (tmp_path / "file").open() as file:
        monkeypatch.setattr(os, "stat", fail)
        for ask in (disk.exists, disk.is_folder, disk.size_of, lambda path: disk.is_at(path, file.fileno())):
            with pytest.raises(OSError, match="no"):
                ask(tmp_path / "file")


def test_a_link_is_followed_where_it_is_read_and_replaced_where_it_is_written(tmp_path: pathlib.Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_bytes(b"old")
    link.symlink_to(file)
    assert disk.read_file(link, StateError, "the state") == b"old"
    disk.write_file(link, b"new", StateError, "the state")
    assert (file.read_bytes(), link.read_bytes(), link.is_symlink()) == (b"old", b"new", False)


def test_size_is_bounded(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "note.json"
    path.write_bytes(b"x" * 11)
    assert len(disk.read_file(path, CacheError, WHAT, most=11)) == 11
    with pytest.raises(CacheError, match="larger than 10 bytes"):
        disk.read_file(path, CacheError, WHAT, most=10)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"rows": -1}', "rows"),
        (b'{"rows": "1"}', "`int`, got `str`"),
        (b'{"rows": true}', "rows"),
        (b'{"files": {}}', "missing required field `rows`"),
        (b'{"rows": 1, "more": 2}', "unknown field `more`"),
        (b'{"rows": 1, "files": {"a": []}}', "files"),
        (b'{"rows": 1e999}', "rows"),
        (b"[" * 200_000, "damaged"),
        (b'{"rows": 1, "files": ' + b"[" * 200_000, "damaged"),
        (b"", "damaged"),
        (b"\xff\xfe", "damaged"),
        (b'{"rows": 1', "damaged"),
    ],
)
def test_json_is_checked_field_by_field(text: bytes, words: str) -> None:
    with pytest.raises(CacheError, match=words):
        disk.parse_json(text, Note, "manifest.json", CacheError, WHAT)


@pytest.mark.parametrize("path", ["no/such/folder/x", "a\0b", "x" * 300, "\udcff/x"])
def test_what_cannot_be_written_is_said(path: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CacheError, match=r"the manifest .* cannot be written: ") as caught:
        disk.write_file(path, b"x", CacheError, WHAT)
    assert "\0" not in str(caught.value)


def test_text_from_outside_is_printed_as_escapes() -> None:
    assert printable("\x1b]0;owned\x07 \u202e \r") == r"\x1b]0;owned\x07 \u202e \r"
    assert printable("拒绝 👨‍👩‍👧\n\t") == "拒绝 👨‍👩‍👧\n\t"
    assert len(printable("x" * 10_000)) < 310
    assert str(CacheError("row \x1b[2J")) == r"row \x1b[2J"


def test_a_file_of_ours_that_appears_during_the_check_is_no_link(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.idx"

    def appears(*args: object) -> None:
        path.write_bytes(b"ours")
        raise FileNotFoundError

    monkeypatch.setattr(disk, "open_regular", appears)
    disk.check_own(path, lambda file: True, CacheError, "the index")
    assert path.read_bytes() == b"ours"


STATE = b'{\n  "version": 1,\n  "plan_version": 1,\n  "step": 7\n}'


@pytest.mark.parametrize("size", [0, 9, len(STATE)])
def test_what_a_killed_write_left_is_deleted_by_the_next_one(size: int, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "state.json"
    if not (child := os.fork()):
        with disk.written(path, StateError, "the state") as file:
            file.write(STATE[:size])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (left,) = tmp_path.iterdir()
    assert left.stat().st_size == size
    disk.write_file(path, STATE.replace(b"7", b"8"), StateError, "the state")
    disk.remove_leftovers(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_is_going_on_is_no_leftover(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "state.json"
    with disk.written(path, StateError, "the state") as file:
        file.write(STATE)
        file.flush()
        disk.write_file(path, STATE, StateError, "the state")
        disk.remove_leftovers(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_taken_for_a_leftover_before_it_is_locked_is_created_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "state.json", fcntl.flock
    path.write_bytes(STATE)
    calls = []

    def flock(*arguments: int) -> None:
        calls.append(arguments)
        if len(calls) == 1:  # the second call locks the leftover
            disk.remove_leftovers(path)
            assert list(tmp_path.iterdir()) == [path]
        real(*arguments)

    monkeypatch.setattr(fcntl, "flock", flock)
    disk.write_file(path, STATE.replace(b"7", b"8"), StateError, "the state")
    assert b"8" in path.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["text", "longer begin", "link", "pipe", "folder", "other name"])
def test_strangers_that_are_named_like_leftovers_stay(kind: str, tmp_path: pathlib.Path) -> None:
    path, thesis = tmp_path / "state.json", tmp_path / "thesis.txt"
    thesis.write_bytes(STATE)
    stranger = tmp_path / ("state.json.0123456789ab.new" if kind != "other name" else "state.json.0123456789a.new")
    if kind == "text":
        stranger.write_text("years of work")
    elif kind in ("longer begin", "other name"):
        stranger.write_bytes(b'{\n  "version": 1, "prompt": "years of work"}' if kind == "longer begin" else STATE)
    elif kind == "link":
        stranger.symlink_to(thesis)
    elif kind == "pipe":
        os.mkfifo(stranger)
    else:
        stranger.mkdir()
    before = stranger.lstat()
    disk.write_file(path, STATE, StateError, "the state")
    disk.remove_leftovers(path)
    assert stranger.lstat() == before
    assert thesis.read_bytes() == STATE


@pytest.mark.parametrize("path", ["a\0b", "x" * 300, "x/" * 3000, "a\ud800b"])
def test_a_path_that_no_file_can_have_is_a_sentence_at_every_door(path: str, tmp_path: pathlib.Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n' * 8)
    options: dict[str, Any] = {"task": mps.DPO(64), "tokenizer": "bytes", "batching": mps.Pad(2), "verbose": False}
    for open_it in (
        lambda: mps.stream(path, **options),
        lambda: mps.stream(rows, **options, index=path),
        lambda: mps.stream(rows, **options | {"tokenizer": path}),
        lambda: mps.stream(rows, **options, on_bad_row="drop", quarantine=path),
        lambda: mps.build_index(rows, path, task=options["task"], tokenizer="bytes"),
        lambda: mps.write_cache(mps.stream(rows, **options), path),
        lambda: mps.StreamCheckpoint(mps.stream(rows, **options), path),
        lambda: mps.stats(path),
        lambda: mps.follow(path),
    ):
        with pytest.raises(mps.PrefStreamError):
            open_it()  # type: ignore[no-untyped-call]
