"""Writing that is interrupted: nothing half done is left at `out`, what is finished is kept, the bytes are the same."""

from __future__ import annotations

import errno
import fcntl
import functools
import gzip
import os
import pathlib
import pickle
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream import CacheError, NoUsableRowsError, OptionError, PrefStreamError, RowError, StateError
from ms_prefstream.cache import folder as folder_module
from ms_prefstream.cache import parts
from ms_prefstream.cache import write as write_module
from ms_prefstream.mindrecord.files import unwritable
from tests.cache.places import PART, flip, rows_with_bad, source, stream_of, tree
from tests.helpers import json_lines

pytestmark = pytest.mark.mindspore
TASK = mps.DPO(128)


class Interrupted(BaseException):
    pass


def write(path: Any, out: pathlib.Path, **options: Any) -> Any:
    task = options.pop("task", TASK)
    made = {name: options.pop(name) for name in ("on_bad_row", "quarantine", "steps_per_epoch") if name in options}
    return mps.write_cache(
        stream_of(path, task, **made), out, rows_per_part=options.pop("rows_per_part", PART), **options
    )


def fail_at(monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException) -> list[int]:
    """Let the writing of a part fail; the parts that were begun."""
    begun: list[int] = []
    real = parts.write_part

    def failing(loader: Any, task: Any) -> Any:
        begun.append(task.number)
        if task.number == number:
            raise error
        return real(loader, task)

    monkeypatch.setattr(write_module, "write_part", failing)
    return begun


def interrupted(monkeypatch: pytest.MonkeyPatch, number: int, path: Any, out: pathlib.Path, **options: Any) -> None:
    """A run that ends abruptly when it begins a part."""
    with monkeypatch.context() as patch:
        fail_at(patch, number, Interrupted())
        with pytest.raises(Interrupted):
            write(path, out, **options)


def test_the_same_bytes_for_any_number_of_workers(tmp_path: pathlib.Path) -> None:
    path = source(tmp_path)
    write(path, tmp_path / "alone")
    write(path, tmp_path / "two", workers=2)
    assert tree(tmp_path / "two") == tree(tmp_path / "alone")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["alone", "rows.jsonl", "two"]


def test_only_what_is_missing_is_written_again(disk_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = source(disk_path), disk_path / "out"
    write(path, disk_path / "whole")
    for number in (0, 2, 3):
        with monkeypatch.context() as patch:
            begun = fail_at(patch, number, Interrupted())
            with pytest.raises(Interrupted):
                write(path, out)
            assert begun == list(range(begun[0], number + 1))
            assert not out.exists()
    begun = fail_at(monkeypatch, 99, Interrupted())
    write(path, out)
    assert begun == [3]
    assert tree(out) == tree(disk_path / "whole")
    assert not (disk_path / "out.writing").exists()


def halves(batch: Any) -> Any:
    """A model for references."""
    return tuple(batch[f"{side}_loss_mask"].sum(axis=1) / -2 for side in ("chosen", "rejected"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "error", [Interrupted, functools.partial(OSError, errno.EIO, "I/O error")], ids=["killed", "EIO"]
)
@pytest.mark.parametrize(
    "options",
    [{}, {"reference": halves, "reference_id": "h"}, {"layout": "megatron"}],
    ids=["plain", "reference", "megatron"],
)
def test_an_interruption_at_each_step_of_the_end(
    options: Any, error: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any call the former cache is there, or the new one, or neither for a moment; the next run mends everything."""
    path, out = source(tmp_path, rows_with_bad(PART + 4)), tmp_path / "out"
    write(path, tmp_path / "whole", **options)
    write(path, tmp_path / "other", task=mps.DPO(64))
    whole, other = tree(tmp_path / "whole"), tree(tmp_path / "other")
    calls = 0

    def interrupting(real: Callable[..., Any], at: int) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                raise error()
            return real(*arguments, **options)

        return call

    at, done = 1, False
    while not done:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(tmp_path / "other", out)
        calls = 0
        with monkeypatch.context() as patch:
            names = ["unlink", "rename", "replace", "mkdir", "rmdir"]
            for name in [*names, "fsync"] if "layout" in options and error is not Interrupted else names:
                patch.setattr(os, name, interrupting(getattr(os, name), at))
            try:
                write(path, out, overwrite=True, **options)
                done = calls < at
            except (Interrupted, PrefStreamError):
                assert not out.exists() or tree(out) in (other, whole)
        write(path, out, overwrite=True, **options)
        assert tree(out) == whole, at
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["other", "out", "rows.jsonl", "whole"], at
        at += 1
    assert at > 10


def test_other_settings_begin_anew(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = source(tmp_path), tmp_path / "out"
    interrupted(monkeypatch, 2, path, out)
    begun = fail_at(monkeypatch, 99, Interrupted())
    write(path, out, task=mps.DPO(64))
    assert begun == [0, 1, 2, 3]
    write(path, tmp_path / "whole", task=mps.DPO(64))
    assert tree(out) == tree(tmp_path / "whole")


DAMAGES: dict[str, Callable[[pathlib.Path], Any]] = {
    "a byte": lambda path: flip(path, 20_000 if path.suffix == ".mindrecord" else 9_000),
    "the last byte": lambda path: os.truncate(path, path.stat().st_size - 1),
    "all of it": os.unlink,
}


@pytest.mark.parametrize("name", ["part-00001.mindrecord", "part-00001.mindrecord.db"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_finished_part_is_written_again(
    damage: Callable[[pathlib.Path], Any],
    name: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path, out = source(tmp_path), tmp_path / "out"
    write(path, tmp_path / "whole")
    interrupted(monkeypatch, 3, path, out)
    folder = tmp_path / "out.writing"
    note = folder / "part-00000.done"
    note.write_bytes(note.read_bytes().replace(b'"version": 2', b'"version": 3'))
    damage(folder / "new" / name)
    begun = fail_at(monkeypatch, 99, Interrupted())
    write(path, out)
    assert begun == [0, 1, 3]
    assert tree(out) == tree(tmp_path / "whole")
    assert [record.message for record in caplog.records if "written again" in record.message] == [
        f"{note}: the note on a finished part is damaged or of another version (its checksum does not "
        "fit). The part is written again.",
        f"{folder / 'part-00001.done'}: {name} is missing or has not the size and SHA-256 of the note. The part is "
        "written again.",
    ]


class LeavesAMark:
    """Makes a file when it is unpickled."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return pathlib.Path.touch, (self.path,)


def test_a_pickle_in_the_place_of_a_note_is_refused_and_not_loaded(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out, mark = source(tmp_path), tmp_path / "out", tmp_path / "mark"
    interrupted(monkeypatch, 3, path, out)
    pickled = pickle.dumps(LeavesAMark(mark), protocol=4)
    pickle.loads(pickled)
    assert mark.exists()  # it does what it should not get to do
    mark.unlink()
    note = tmp_path / "out.writing" / "part-00001.done"
    note.write_bytes(pickled)
    with pytest.raises(OptionError, match=r"somebody else's files are there \(part-00001\.done\)"):
        write(path, out)
    assert note.read_bytes() == pickled
    assert not mark.exists()


def test_an_existing_cache_is_replaced_only_on_demand_and_only_by_a_whole_one(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = source(tmp_path), tmp_path / "out"
    write(path, out)
    before = tree(out)
    with pytest.raises(OptionError, match="overwrite=True"):
        write(path, out, task=mps.DPO(64))
    interrupted(monkeypatch, 1, path, out, task=mps.DPO(64), overwrite=True)
    assert tree(out) == before
    write(path, out, task=mps.DPO(64), overwrite=True)
    assert tree(out) != before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "rows.jsonl"]


@pytest.mark.parametrize("overwrite", [True, False])
def test_what_is_no_cache_is_never_replaced(tmp_path: pathlib.Path, overwrite: bool) -> None:
    path = source(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for name in ("mine", "rows.jsonl"):
        with pytest.raises(OptionError, match="is no cache"):
            write(path, tmp_path / name, overwrite=overwrite)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    assert write(path, tmp_path / "empty").rows


def test_two_processes_at_once(tmp_path: pathlib.Path) -> None:
    path = source(tmp_path)
    (tmp_path / "out.writing").mkdir()
    with open(tmp_path / "out.writing" / "plan.json", "w") as plan:
        fcntl.flock(plan, fcntl.LOCK_EX)
        with pytest.raises(StateError, match="another process is writing"):
            write(path, tmp_path / "out")
    assert write(path, tmp_path / "out").rows


@pytest.mark.parametrize("call", ["makedirs", "open", "mkdir", "replace"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOSPC])
def test_the_operating_system_refuses(
    call: str, code: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out, stream = source(tmp_path), tmp_path / "out", None
    stream = stream_of(path, TASK)

    def refused(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(folder_module.os, call, refused)
        with pytest.raises(CacheError) as caught:
            mps.write_cache(stream, out, rows_per_part=PART)
    assert os.strerror(code) in str(caught.value)
    assert "out.writing" in str(caught.value)
    assert "MB are free there" in str(caught.value)
    assert not out.exists()
    write(path, out)
    write(path, tmp_path / "whole")
    assert tree(out) == tree(tmp_path / "whole")


def test_a_place_below_a_file(tmp_path: pathlib.Path) -> None:
    with pytest.raises(CacheError, match="cannot be written: Not a directory"):
        write(source(tmp_path), tmp_path / "rows.jsonl" / "out")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a file system in which nothing can be made")
def test_a_place_where_no_folder_can_be_made(tmp_path: pathlib.Path) -> None:
    with pytest.raises(CacheError, match=r"/proc/x.writing cannot be written: No such file or directory"):
        mps.write_cache(stream_of(source(tmp_path), mps.DPO(128)), "/proc/x")


@pytest.mark.parametrize(("stream", "out", "said"), [("rows", "o", "stream is 'rows"), (None, None, "out is None")])
def test_what_is_no_stream_and_no_path(stream: Any, out: Any, said: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(OptionError, match=said):
        mps.write_cache(stream or stream_of(source(tmp_path), mps.DPO(128)), out)


def test_a_malformed_row_stops_it_and_a_corrected_file_begins_anew(tmp_path: pathlib.Path) -> None:
    rows = rows_with_bad(40)
    path, out = source(tmp_path, [*rows[:20], "{broken", *rows[20:]]), tmp_path / "out"
    with pytest.raises(RowError, match=r"rows\.jsonl:21: .*bad_json"):
        write(path, out)
    with pytest.raises(RowError, match=r"rows\.jsonl:21: .*bad_json"):
        write(path, out, workers=1)
    assert not out.exists()
    manifest = write(path, out, on_bad_row="drop")
    assert manifest.dropped["bad_json"] == {"rows": 1, "first": [f"{path}:21"]}
    assert manifest.source_rows == 41
    write(source(tmp_path, rows), out, overwrite=True)


def test_no_usable_row(tmp_path: pathlib.Path) -> None:
    path = source(tmp_path, [{"prompt": "p", "chosen": "a", "rejected": "a"}] * 3)
    with pytest.raises(NoUsableRowsError, match=r"identical 3, first at .*rows\.jsonl:1"):
        write(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_quarantine_file_holds_each_dropped_row_once(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = source(tmp_path), tmp_path / "out"
    write(path, tmp_path / "whole", quarantine=tmp_path / "all.jsonl")
    interrupted(monkeypatch, 2, path, out, quarantine=tmp_path / "first.jsonl")
    write(path, out, quarantine=tmp_path / "second.jsonl")
    assert (tmp_path / "second.jsonl").read_bytes() == (tmp_path / "all.jsonl").read_bytes()


def test_rows_from_the_front(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_with_bad(50)
    json_lines(tmp_path / "plain", rows)
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "plain").read_bytes()))
    out = tmp_path / "out"
    write(packed, tmp_path / "whole")
    interrupted(monkeypatch, 2, packed, out)
    begun = fail_at(monkeypatch, 99, Interrupted())
    write(packed, out)
    assert begun == [2, 3]
    assert tree(out) == tree(tmp_path / "whole")
    text = tmp_path / "text"
    write(source(tmp_path, rows), text)
    parts = [name for name in tree(text) if name.startswith("part")]
    assert [tree(out)[name] for name in parts] == [tree(text)[name] for name in parts]
    monkeypatch.undo()
    write(packed, tmp_path / "two", workers=2)
    assert tree(tmp_path / "two") == tree(out)


def test_rows_that_come_only_once_are_never_taken_from_an_earlier_run(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def once(first: int) -> Iterator[Any]:
        yield from rows_with_bad(first + 50)[first:]

    interrupted(monkeypatch, 2, once(7), tmp_path / "out", steps_per_epoch=1)
    write(once(0), tmp_path / "out", steps_per_epoch=1)
    write(source(tmp_path), tmp_path / "text")
    for number in range(4):
        name = f"part-{number:05d}.mindrecord"
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "text" / name).read_bytes()


def test_a_part_that_does_not_hold_its_rows_is_found(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = parts.RecordFile.write

    def losing(self: Any, values: dict[str, Any]) -> None:
        real(self, {name: column[1:] for name, column in values.items()})

    monkeypatch.setattr(parts.RecordFile, "write", losing)
    with pytest.raises(CacheError, match="rows were written and"):
        write(source(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_part_that_holds_other_bytes_is_found(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = parts.RecordFile.close

    def damaging(self: Any) -> None:
        real(self)
        flip(pathlib.Path(self.path), int(self.places()["begin"][3]) + 20)

    monkeypatch.setattr(parts.RecordFile, "close", damaging)
    with pytest.raises(CacheError, match="other bytes than were written"):
        write(source(tmp_path), tmp_path / "out")


def test_the_sentence_of_a_full_disk_says_how_much_room_there_is(tmp_path: pathlib.Path) -> None:
    said = str(unwritable(str(tmp_path / "no" / "such" / "file"), OSError(errno.ENOSPC, "No space left on device")))
    assert "No space left on device" in said
    assert "MB are free there" in said
    assert isinstance(unwritable("x", OSError(1, "a")), PrefStreamError)


@pytest.mark.parametrize("how", ["disk", "program"])
def test_a_part_that_gets_lost_when_all_are_written_is_an_error(
    how: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of a finished part must not be missing from a cache because its files are not found for a moment."""
    path, out, real = source(tmp_path), tmp_path / "out", write_module.merge_parts

    def merge_parts(folder: Any, *more: Any) -> Any:
        with pytest.MonkeyPatch.context() as patched:
            if how == "program":
                (tmp_path / "out.writing" / "part-00001.done").unlink()
            else:
                patched.setattr(folder_module, "size_of", lose)
            return real(folder, *more)

    def lose(path: str) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    monkeypatch.setattr(write_module, "merge_parts", merge_parts)
    with pytest.raises(CacheError, match="Input/output error" if how == "disk" else "another program has changed"):
        mps.write_cache(stream_of(path, TASK), out, rows_per_part=PART)
    assert not out.exists()
    monkeypatch.undo()
    mps.write_cache(stream_of(path, TASK), out, rows_per_part=PART)
    mps.write_cache(stream_of(path, TASK), tmp_path / "whole", rows_per_part=PART)
    assert tree(out) == tree(tmp_path / "whole")
