"""Files of others at the names of an index and its journal: never opened for writing, truncated, deleted or awaited."""

from __future__ import annotations

import os
import pathlib
import stat
import threading
from typing import Any

import numpy as np
import pytest

import ms_prefstream as mps
from ms_prefstream import OptionError, PrefStreamError, SourceError, StateError
from ms_prefstream.lengths import build, build_index, open_index
from ms_prefstream.lengths.build import JOURNAL_SUFFIX
from ms_prefstream.load.loader import SampleLoader
from tests.pools import pairs, recipe, write

FINGERPRINT = {"data": "d1"}
COUNT = 40
KINDS = ["text", "array", "empty", "link", "dangling", "pipe", "folder", "locked"]
AT_INDEX, AT_JOURNAL = "", JOURNAL_SUFFIX


@pytest.fixture
def loader() -> SampleLoader:
    return recipe(pairs(COUNT)).loader()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "CHUNK", 10)
    monkeypatch.setattr(build, "_PAUSE", 0.001)


def put(kind: str, path: pathlib.Path) -> None:
    """Puts a stranger's file at a path."""
    thesis = path.parent / "thesis.txt"
    if kind == "text":
        path.write_text("years of work")
    elif kind == "array":
        np.save(path.open("wb"), np.arange(20))
    elif kind == "empty":
        path.touch()
    elif kind == "link":
        thesis.write_text("years of work")
        path.symlink_to(thesis)
    elif kind == "dangling":
        path.symlink_to(path.parent / "nowhere")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
        (path / "thesis.txt").write_text("years of work")
    else:
        path.write_text("years of work")
        path.chmod(0)


def seen(folder: pathlib.Path) -> dict[str, Any]:
    """Everything in a folder: kind, inode, size, time of change, contents."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) and status.st_mode & 0o400 else None
        found[path.name] = (status.st_mode, status.st_ino, status.st_size, status.st_mtime_ns, content)
    return found


def built(path: pathlib.Path, loader: Any) -> None:
    build_index(COUNT, loader, path, FINGERPRINT, origin=str, raise_malformed=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [AT_INDEX, AT_JOURNAL], ids=["index", "journal"])
def test_a_strangers_file_is_refused_and_untouched(
    suffix: str, kind: str, tmp_path: pathlib.Path, loader: SampleLoader
) -> None:
    if kind == "empty":
        pytest.skip("an empty file, as `mktemp` makes, may become an index or its journal")
    put(kind, tmp_path / f"x{suffix}")
    before = seen(tmp_path)
    said = r"x\.journal is the place of the journal.*something else" if suffix else "x"
    with pytest.raises(SourceError if suffix else OptionError, match=said):
        built(tmp_path / "x", loader)
    assert seen(tmp_path) == before


def test_an_index_replaces_an_index_even_if_it_is_stale_or_its_rows_are_damaged(
    tmp_path: pathlib.Path, loader: SampleLoader
) -> None:
    path = tmp_path / "x"
    build_index(7, loader, path, {"data": "other"}, origin=str, raise_malformed=False)
    built(path, loader)
    whole = path.read_bytes()
    for former in (whole[:150] + b"\xff" + whole[151:], b""):
        path.write_bytes(former)
        built(path, loader)
        assert path.read_bytes() == whole


def test_a_journal_that_a_killed_process_left_without_its_line_is_taken_over(
    tmp_path: pathlib.Path, loader: SampleLoader
) -> None:
    (tmp_path / "x.journal").touch()
    built(tmp_path / "x", loader)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_index_is_not_read_as_one(kind: str, tmp_path: pathlib.Path) -> None:
    put(kind, tmp_path / "x")
    with pytest.raises(StateError, match="x"):
        open_index(tmp_path / "x", FINGERPRINT, COUNT)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_leaves_them_alone_with_a_sentence(kind: str, tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "rows.jsonl", pairs(COUNT, bad=False))
    options: dict[str, Any] = {"task": mps.DPO(200), "tokenizer": "bytes", "batching": mps.Pad(4)}
    stream = mps.stream(path, **options)
    place = pathlib.Path(stream.build_index().path)
    place.unlink()
    put(kind, place)
    before = seen(tmp_path)
    if kind != "empty":
        with pytest.raises(PrefStreamError):
            stream.build_index()
    assert mps.stream(path, **options).report.warnings, "nobody named it, so it is only left alone"
    with pytest.raises(PrefStreamError):
        mps.stream(path, **options, index=place)
    assert seen(tmp_path) == before


PATHS = ["a\0b", "\ud800", "\udcff/x", "x" * 300, "x" * 250, "none/x", "thesis.txt/x", "loop/x", ""]


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", PATHS, ids=ascii)
def test_paths_that_cannot_be_used(
    name: str, parts: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if parts == 2 and name in ("x" * 250, "none/x", "\udcff/x"):
        pytest.skip("a folder that can be created")
    monkeypatch.chdir(tmp_path)
    pathlib.Path("thesis.txt").write_text("years of work")
    pathlib.Path("loop").symlink_to("loop")
    files = [write(tmp_path / f"rows{part}.jsonl", pairs(COUNT, bad=False)) for part in range(parts)]
    source: Any = files[0] if parts == 1 else mps.mix([(file, 1) for file in files])
    options: dict[str, Any] = {"task": mps.DPO(200), "tokenizer": "bytes", "batching": mps.Pad(4)}
    before = seen(tmp_path)
    with pytest.raises(PrefStreamError) as caught:
        mps.stream(source, **options).build_index(name)
    str(caught.value).encode()
    with pytest.raises(PrefStreamError) as caught:
        mps.stream(source, **options, index=name)
    str(caught.value).encode()
    assert seen(tmp_path) == before


def test_builders_that_race_end_in_a_whole_index(tmp_path: pathlib.Path) -> None:
    for number in range(10):
        path, ends = tmp_path / str(number), list[str]()

        def build_it(path: pathlib.Path = path, ends: list[str] = ends) -> None:
            try:
                built(path, recipe(pairs(COUNT)).loader())
            except StateError as error:
                assert "another process is building" in str(error)  # noqa: PT017
                ends.append("refused")
            else:
                ends.append("built")

        threads = [threading.Thread(target=build_it) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(ends) == 4
        assert "built" in ends
        assert open_index(path, FINGERPRINT, COUNT).rows == COUNT
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(map(str, range(10)))


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_named_once(kind: str, tmp_path: pathlib.Path) -> None:
    put(kind, tmp_path / "index.mprefidx")
    with pytest.raises(OptionError) as caught:
        mps.build_index(pairs(4), tmp_path / "index.mprefidx", task=mps.DPO(64), tokenizer="bytes", verbose=False)
    assert str(caught.value).count("index.mprefidx") == 1
    assert str(caught.value).endswith("; expected a regular file.")
