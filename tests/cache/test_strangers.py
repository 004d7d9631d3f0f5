"""Nothing that this library has not written is ever replaced or deleted, whatever its name."""

from __future__ import annotations

import errno
import fcntl
import os
import pathlib
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream import OptionError, SourceError, StateError
from ms_prefstream.cache import folder as folder_module
from ms_prefstream.cache.folder import StagingFolder
from tests.cache.places import PART, rows_with_bad, source, stream_of, tree
from tests.cache.test_reference import logps

pytestmark = pytest.mark.mindspore
TASK = mps.DPO(128)


def write(path: Any, out: pathlib.Path, **options: Any) -> Any:
    return mps.write_cache(stream_of(path, TASK), out, **{"rows_per_part": PART, **options})


def mine(folder: pathlib.Path, name: str = "thesis.txt") -> pathlib.Path:
    """A folder of the user's."""
    folder.mkdir()
    (folder / name).write_text("years of work")
    return folder / name


def test_a_copy_that_is_called_old_stays(tmp_path: pathlib.Path) -> None:
    path, out = source(tmp_path), tmp_path / "out"
    write(path, out)
    os.rename(out, tmp_path / "out.old")
    before = tree(tmp_path / "out.old")
    write(path, out)
    write(path, out, rows_per_part=PART + 1, overwrite=True)
    assert tree(tmp_path / "out.old") == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "out.old", "rows.jsonl"]


@pytest.mark.parametrize("name", ["thesis.txt", "plan.json", "manifest.json", "part-00000.mindrecord"])
def test_the_folder_where_the_library_works_must_be_its_own(name: str, tmp_path: pathlib.Path) -> None:
    path, out, work = source(tmp_path), tmp_path / "out", tmp_path / "out.writing"
    file = mine(work, name)
    for options in ({}, {"reference": logps, "reference_id": "sft"}):
        with pytest.raises(OptionError, match=r"out\.writing is needed to write .* somebody else's files are there"):
            write(path, out, **options)
    assert file.read_text() == "years of work"
    os.rename(work, tmp_path / "elsewhere")
    work.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OptionError, match="somebody else's files"):
        write(path, out)
    work.unlink()
    assert write(path, out, reference=logps, reference_id="sft").reference
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["elsewhere", "out", "rows.jsonl"]


def test_a_cache_of_that_name_stays(tmp_path: pathlib.Path) -> None:
    path = source(tmp_path)
    write(path, tmp_path / "out.writing")
    write(path, tmp_path / "out.reference")
    before = tree(tmp_path / "out.writing")
    with pytest.raises(OptionError, match="somebody else's files"):
        write(path, tmp_path / "out")
    os.rename(tmp_path / "out.writing", tmp_path / "moved")
    write(path, tmp_path / "out", reference=logps, reference_id="sft")
    assert tree(tmp_path / "moved") == tree(tmp_path / "out.reference") == before


@pytest.mark.parametrize("name", ["notes.txt", "part-of-thesis.mindrecord", "reference-01.npy", "former/thesis.txt"])
def test_a_cache_with_files_of_others_is_not_replaced(name: str, tmp_path: pathlib.Path) -> None:
    path, out = source(tmp_path), tmp_path / "out"
    write(path, out)
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("years of work")
    if not name.endswith(".mindrecord"):  # which no reader may meet
        write(path, out, reference=logps, reference_id="sft")
    with pytest.raises(OptionError, match=rf"holds other files as well \({name}\)"):
        write(path, out, rows_per_part=PART + 1, overwrite=True)
    assert (out / name).read_text() == "years of work"


def test_a_folder_that_only_looks_like_a_cache_is_not_replaced(tmp_path: pathlib.Path) -> None:
    file = mine(tmp_path / "out", "part-00000.mindrecord")
    with pytest.raises(OptionError, match=r"out exists and is no cache"):
        write(source(tmp_path), tmp_path / "out", overwrite=True)
    assert file.read_text() == "years of work"


def test_a_folder_whose_manifest_is_damaged_is_not_replaced(tmp_path: pathlib.Path) -> None:
    path, out = source(tmp_path), tmp_path / "out"
    write(path, out)
    manifest = out / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text[:300])
    before = tree(out)
    with pytest.raises(OptionError, match=r"out exists and is no cache: its manifest\.json is damaged .* Delete"):
        write(path, out, overwrite=True)
    assert tree(out) == before
    manifest.write_text(text.replace('"rows":', '"ROWS":'))  # whole, and wrong
    write(path, out, overwrite=True)
    assert manifest.read_text() == text


@pytest.mark.parametrize(
    "name", ["part-00001.mindrecord", "part-00001.mindrecord.db", "places.npy", "lengths.mprefidx"]
)
def test_a_file_of_a_cache_that_somebody_exchanged_is_not_replaced(name: str, tmp_path: pathlib.Path) -> None:
    path, out = source(tmp_path), tmp_path / "out"
    write(path, out)
    whole = (out / name).read_bytes()
    (out / name).write_text("years of work")
    with pytest.raises(OptionError, match=rf"holds other files as well \({name}\), or some too damaged to be known"):
        write(path, out, overwrite=True)
    assert (out / name).read_text() == "years of work"
    (out / name).write_bytes(whole[:-1] + b"?")  # one of ours, damaged
    write(path, out, overwrite=True)
    assert (out / name).read_bytes() == whole


def test_a_link_stays_a_link(tmp_path: pathlib.Path) -> None:
    path, out = source(tmp_path), tmp_path / "out"
    (tmp_path / "disk").mkdir()
    out.symlink_to(tmp_path / "disk" / "cache")
    write(path, out)
    write(path, out, rows_per_part=PART + 1, overwrite=True)
    assert out.is_symlink()
    assert [entry.name for entry in (tmp_path / "disk").iterdir()] == ["cache"]
    assert len(list(stream_of(str(out), TASK, tokenizer=None).batches()))


def test_between_the_renames_the_former_cache_is_put_back(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = source(tmp_path), tmp_path / "out"
    write(path, out)
    before, rename = tree(out), os.rename

    def stopped(old: Any, new: Any) -> None:
        if str(old).endswith("new"):
            raise KeyboardInterrupt
        rename(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", stopped)
        with pytest.raises(KeyboardInterrupt):
            write(path, out, rows_per_part=PART + 1, overwrite=True)
    assert tree(out) == before
    write(path, out, rows_per_part=PART + 1, overwrite=True)
    assert not (tmp_path / "out.writing").exists()


def test_a_process_that_was_killed_there_is_explained_and_mended(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = source(tmp_path), tmp_path / "out"
    write(path, out)
    before = tree(out)
    with monkeypatch.context() as patch:
        patch.setattr(StagingFolder, "_swap", lambda self: os.rename(out, os.path.join(self.path, "former")))
        patch.setattr(StagingFolder, "remove", StagingFolder.close)
        write(path, out, rows_per_part=PART + 1, overwrite=True)
    assert not out.exists()
    with pytest.raises(SourceError, match="being written, or its writing was interrupted: run that command again"):
        stream_of(str(out), TASK, tokenizer=None)
    with pytest.raises(OptionError, match=r"exists .*rows_per_part was 16 and is 17 now"):
        write(path, out, rows_per_part=PART + 1)
    assert tree(out) == before
    write(path, out, rows_per_part=PART + 1, overwrite=True)
    assert tree(out) != before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "rows.jsonl"]


def test_nobody_else_gets_in_while_a_cache_is_put_in_its_place(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = source(tmp_path), tmp_path / "out"
    write(path, out)
    swap, rmtree = StagingFolder._swap, folder_module.shutil.rmtree
    met = []

    def another() -> None:
        with pytest.raises(StateError, match="another process is writing"):
            write(path, out, rows_per_part=PART + 2, overwrite=True)
        met.append(True)

    def slowly(self: Any) -> None:
        another()
        swap(self)
        another()

    def removing(folder: Any, *args: Any, **options: Any) -> None:
        another()
        rmtree(folder, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(StagingFolder, "_swap", slowly)
        patch.setattr(folder_module.shutil, "rmtree", removing)
        write(path, out, rows_per_part=PART + 1, overwrite=True)
    assert len(met) > 2
    write(path, tmp_path / "other", rows_per_part=PART + 1)
    assert tree(out) == tree(tmp_path / "other")


def test_who_takes_the_work_folder_when_it_is_just_gone_keeps_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, real, others = StagingFolder(str(tmp_path / "out")), os.rmdir, []

    def rmdir(path: Any, **options: Any) -> None:
        real(path, **options)
        if not others:
            others.append(StagingFolder(str(tmp_path / "out")))
            os.mkdir(others[0].new)

    monkeypatch.setattr(os, "rmdir", rmdir)
    first.remove()
    (other,) = others
    assert sorted(os.listdir(other.path)) == ["new", "plan.json"]
    other.remove()
    assert not list(tmp_path.iterdir())


def test_a_staging_folder_that_is_deleted_before_it_is_locked(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, real = [StagingFolder(str(tmp_path / "out"))], fcntl.flock

    def flock(*arguments: Any) -> None:
        first.pop().remove()
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        with pytest.raises(StateError, match="another process is writing"):
            StagingFolder(str(tmp_path / "out"))
    assert not list(tmp_path.iterdir())


def test_what_differs_is_named(tmp_path: pathlib.Path) -> None:
    path, out = source(tmp_path), tmp_path / "out"
    write(path, out)
    with pytest.raises(OptionError, match="exists with the same samples"):
        write(path, out)
    with pytest.raises(OptionError, match=r"exists \(max_length of the task dpo was 128 and is 64 now\)"):
        mps.write_cache(stream_of(path, mps.DPO(64)), out, rows_per_part=PART)
    (tmp_path / "other").mkdir()
    other = source(tmp_path / "other", rows_with_bad(20))
    with pytest.raises(OptionError, match=r"exists \(data was another one: "):
        write(other, out)


def test_nothing_usable_leaves_nothing_behind(tmp_path: pathlib.Path) -> None:
    path = source(tmp_path, [{"prompt": "p", "chosen": "a", "rejected": "a"}] * 3)
    with pytest.raises(mps.NoUsableRowsError):
        write(path, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_file_system_without_locks(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    assert write(source(tmp_path), tmp_path / "out").rows
