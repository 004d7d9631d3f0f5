"""Caches in a store: written, interrupted, replaced, verified and read back."""

from __future__ import annotations

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream import CacheError, OptionError, PrefStreamError
from ms_prefstream.cache.verify import verify
from ms_prefstream.sources import copies, store
from ms_prefstream.sources.copies import Remote
from tests.cache.places import flip, rows_with_bad, stream_of, tree
from tests.cache.remote_writer import PART, TASK
from tests.cli.running import run
from tests.helpers import assert_same_batches, json_lines, pairs
from tests.processes import ROOT
from tests.sources.stores import S3, SECRETS, Web

pytest.importorskip("s3fs")
pytestmark = pytest.mark.mindspore


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses are short."""
    monkeypatch.setattr(store, "PAUSES", (0.01,) * 5)


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def empty(s3: S3, folder: str) -> None:
    for path in s3.files.find(f"data/{folder}"):
        s3.files.rm_file(path)


def given(s3: S3, folder: pathlib.Path) -> dict[str, Any]:
    return {"storage_options": s3.options, "cache_dir": folder}


def written(rows: Any, out: Any, **options: Any) -> Any:
    overwrite = options.pop("overwrite", False)
    stream = stream_of(rows, TASK, on_bad_row="drop", verbose=False)
    return mps.write_cache(stream, out, rows_per_part=PART, overwrite=overwrite, **options)


def test_it_is_the_local_cache(s3: S3, tmp_path: pathlib.Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a store to a store, file by file the same as on a disk; verified, and read by a stream."""
    empty(s3, "one")
    url, out = s3.put("one/rows.jsonl", lines(rows_with_bad())), "s3://data/one/cache"
    words = ["--storage-options", json.dumps(s3.options), "--cache-dir", tmp_path / "copies"]
    more = ["--task", "dpo", "--max-length", 128, "--tokenizer", "bytes", "--on-bad-row", "drop", "--rows-per-part", 7]
    assert run(monkeypatch, "cache", url, out, *more, "--workers", 0, *words) == 0
    assert run(monkeypatch, "verify", out, *words) == 0
    assert f"to {out}," in capsys.readouterr().out
    there = s3.tree("one/cache")
    local = written(str(json_lines(tmp_path / "rows.jsonl", rows_with_bad())), tmp_path / "cache")
    here = tree(tmp_path / "cache")
    manifest = json.loads(there.pop("manifest.json"))
    assert {**there, "manifest.json": b""} == {**here, "manifest.json": b""}
    assert manifest["about"].pop("source") == url
    assert manifest["about"] == {name: value for name, value in local.about.items() if name != "source"}
    found = stream_of(out, TASK, tokenizer=None, **given(s3, tmp_path / "other"))
    expected = stream_of(tmp_path / "cache", TASK, tokenizer=None)
    assert_same_batches(list(found.batches()), list(expected.batches()))
    assert found.data.source.name == out
    assert found.data.source.origin(3) == f"{out}[3]"
    assert not list((tmp_path / "copies").rglob("out.writing"))
    assert str(tmp_path) not in json.dumps(manifest)


@pytest.mark.parametrize("layout", ["mindrlhf", "megatron"])
def test_other_layouts(layout: str, s3: S3, tmp_path: pathlib.Path) -> None:
    """They are uploaded as the local folder; streams do not read them, from a store neither."""
    empty(s3, layout)
    written(pairs(30), tmp_path / "cache", layout=layout)
    written(pairs(30), f"s3://data/{layout}/cache", layout=layout, **given(s3, tmp_path / "copies"))
    assert s3.tree(f"{layout}/cache") == tree(tmp_path / "cache")
    assert all(not one.problem for one in verify(f"s3://data/{layout}/cache", None, Remote(**given(s3, tmp_path))))
    with pytest.raises(PrefStreamError, match=f"s3://data/{layout}/cache has the layout"):
        stream_of(f"s3://data/{layout}/cache", TASK, tokenizer=None, **given(s3, tmp_path / "other"))


def test_manifest_last_and_nothing_sent_twice(s3: S3, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted after each file: no reader sees a cache before the manifest, and the next run sends only the rest."""
    empty(s3, "two")
    out, put, sent = "s3://data/two/cache", store.Store.put, []
    left = [0]  # files that may be sent before the interrupt

    def interrupted(self: store.Store, path: str, url: str) -> Any:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        sent.append(url.rpartition("/")[2])
        return put(self, path, url)

    def interrupted_after(self: store.Store, path: str, url: str) -> Any:
        put(self, path, url)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:  # nobody noted that the file was sent: it is sent again
        patched.setattr(store.Store, "put", interrupted_after)
        with pytest.raises(KeyboardInterrupt):
            written(rows_with_bad(), out, **given(s3, tmp_path))
    assert len(s3.tree("two/cache")) == 1
    monkeypatch.setattr(store.Store, "put", interrupted)
    for more in (0, 1, 3, 8):
        left[0] = more
        with pytest.raises(KeyboardInterrupt):
            written(rows_with_bad(), out, **given(s3, tmp_path))
        with pytest.raises(PrefStreamError, match="s3://data/two/cache holds a cache without its manifest"):
            stream_of(out, TASK, tokenizer=None, **given(s3, tmp_path / "other"))
    left[0] = 100
    written(rows_with_bad(), out, **given(s3, tmp_path))
    assert sent[-1] == "manifest.json"
    assert len(set(sent)) == len(sent) == len(s3.tree("two/cache")) > 12
    assert all(not one.problem for one in verify(out, None, Remote(**given(s3, tmp_path))))
    left[0] = 2
    with pytest.raises(KeyboardInterrupt):
        written(pairs(30), out, overwrite=True, **given(s3, tmp_path))
    assert "manifest.json" not in s3.tree("two/cache")  # neither the former cache nor the new one


def test_what_is_at_the_url_stays(s3: S3, tmp_path: pathlib.Path) -> None:
    """Another cache needs overwrite; files of others, or parts that nobody knows, are refused."""
    empty(s3, "three")
    out = "s3://data/three/cache"
    written(pairs(30), out, **given(s3, tmp_path))
    before = s3.tree("three/cache")
    with pytest.raises(OptionError, match=r"s3://data/three/cache exists .*contents was .*overwrite=True"):
        written(pairs(10), out, **given(s3, tmp_path))
    assert s3.tree("three/cache") == before
    written(pairs(10), out, overwrite=True, **given(s3, tmp_path))
    after = s3.tree("three/cache")
    assert len(after) < len(before)  # the parts that the new cache lacks are deleted
    found = stream_of(out, TASK, tokenizer=None, **given(s3, tmp_path))
    assert len(found.data.source) == 10
    with pytest.raises(OptionError, match="is the cache that the stream reads"):
        mps.write_cache(found, out, **given(s3, tmp_path))
    s3.put("three/cache/notes.txt", b"mine")
    with pytest.raises(OptionError, match=r"s3://data/three/cache holds other files as well \(notes.txt\)"):
        written(pairs(10), out, overwrite=True, **given(s3, tmp_path))
    s3.files.rm_file("data/three/cache/notes.txt")
    s3.files.rm_file("data/three/cache/manifest.json")
    with pytest.raises(OptionError, match=r"without a manifest .*this machine has not uploaded"):
        written(pairs(10), out, **given(s3, tmp_path))
    written(pairs(10), out, overwrite=True, **given(s3, tmp_path))
    assert s3.tree("three/cache") == after
    s3.put("three/cache/manifest.json", b"{}")
    with pytest.raises(OptionError, match="exists and is no cache"):
        written(pairs(10), out, overwrite=True, **given(s3, tmp_path))


def test_damage(s3: S3, tmp_path: pathlib.Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged, a missing and a foreign file are named by their URLs; nothing of a damaged cache is read."""
    empty(s3, "four")
    out = "s3://data/four/cache"
    written(pairs(30), out, **given(s3, tmp_path))
    part = bytearray(s3.files.cat_file("data/four/cache/part-00001.mindrecord"))
    part[len(part) // 2] ^= 1
    s3.put("four/cache/part-00001.mindrecord", bytes(part))
    with pytest.raises(CacheError, match=r"four/cache/part-00001.mindrecord is damaged"):
        stream_of(out, TASK, tokenizer=None, **given(s3, tmp_path))
    s3.put("four/cache/part-00077.mindrecord", b"foreign")
    s3.files.rm_file("data/four/cache/places.npy")
    words = ["--storage-options", json.dumps(s3.options), "--cache-dir", tmp_path / "copies"]
    assert run(monkeypatch, "verify", out, *words) == 1
    said = capsys.readouterr().out
    assert f"{out}/part-00001.mindrecord: its SHA-256 is not that of the manifest" in said
    assert f"{out}/places.npy: it is missing" in said
    assert f"{out}/part-00077.mindrecord: it does not belong to the cache" in said
    assert str(tmp_path) not in said
    with pytest.raises(CacheError, match=r"four/cache/(part-00001.mindrecord is damaged|places.npy is missing)"):
        stream_of(out, TASK, tokenizer=None, **given(s3, tmp_path))
    with pytest.raises(CacheError, match=r"s3://data/four/nothing/manifest.json is missing"):
        verify("s3://data/four/nothing", None, Remote(**given(s3, tmp_path)))


def test_a_copy_that_is_damaged_later(s3: S3, tmp_path: pathlib.Path) -> None:
    """Errors about the copy name the URL too."""
    empty(s3, "five")
    out = "s3://data/five/cache"
    written(pairs(30), out, **given(s3, tmp_path))
    found = stream_of(out, TASK, tokenizer=None, **given(s3, tmp_path))
    for path in tmp_path.rglob("part-*.mindrecord"):
        for at in range(0, path.stat().st_size, 64):
            flip(path, at)
    with pytest.raises(CacheError, match=r"^s3://data/five/cache/part-0000\d.mindrecord is damaged") as raised:
        list(found.batches())
    assert str(tmp_path) not in str(raised.value)


def test_a_cache_on_a_web_server(web: Web, tmp_path: pathlib.Path) -> None:
    """It is read without a list of its files; nothing is written there."""
    written(pairs(30), tmp_path / "cache")
    for name, content in tree(tmp_path / "cache").items():
        web.put(f"cache/{name}", content)
    found = stream_of(f"{web.url}/cache", TASK, tokenizer=None, cache_dir=tmp_path / "copies")
    assert len(found.data.source) == 30
    assert all(not one.problem for one in verify(f"{web.url}/cache/"))
    with pytest.raises(OptionError, match="a web server takes no files"):
        written(pairs(30), f"{web.url}/out", cache_dir=tmp_path)


def test_layouts_of_other_readers_are_not_copied(web: Web, tmp_path: pathlib.Path) -> None:
    written(pairs(30), tmp_path / "cache", layout="mindrlhf")
    web.put("cache/manifest.json", (tmp_path / "cache" / "manifest.json").read_bytes())
    with pytest.raises(PrefStreamError, match=r"has the layout 'mindrlhf', .* copy the folder to a disk"):
        stream_of(f"{web.url}/cache", TASK, tokenizer=None, cache_dir=tmp_path / "copies")


def test_a_store_that_fails(s3: S3, tmp_path: pathlib.Path) -> None:
    """The parts stay in the staging folder, and no message holds credentials."""
    options = {**s3.options, "endpoint_url": "http://127.0.0.1:9", "config_kwargs": {"retries": {"max_attempts": 0}}}
    with pytest.raises(PrefStreamError, match=r"s3://data/out.*the store failed") as raised:
        written(pairs(9), "s3://data/out", storage_options=options, cache_dir=tmp_path)
    assert not any(secret in str(raised.value) for secret in SECRETS)


@pytest.mark.slow
@pytest.mark.parametrize("notes", [b"", b'{"format": "ms_prefstream uploads", "files": 5}', b"somebody's thesis"])
def test_damaged_notes_on_uploads(
    notes: bytes, s3: S3, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They count as none: what is at the URL then belongs to nobody, and is replaced only with overwrite."""
    empty(s3, "notes")
    out, put = "s3://data/notes/cache", store.Store.put

    def interrupted(self: store.Store, path: str, url: str) -> Any:
        put(self, path, url)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(store.Store, "put", interrupted)
        with pytest.raises(KeyboardInterrupt):
            written(pairs(9), out, **given(s3, tmp_path))
    (path,) = tmp_path.rglob("sent.json")
    path.write_bytes(notes)
    with pytest.raises(OptionError, match=r"which this machine has not uploaded|somebody else's files are there"):
        written(pairs(9), out, **given(s3, tmp_path))
    if b"thesis" in notes:
        assert path.read_bytes() == notes
    else:
        written(pairs(9), out, overwrite=True, **given(s3, tmp_path))
        assert "manifest.json" in s3.tree("notes/cache")


def test_a_bucket_is_not_created(s3: S3, tmp_path: pathlib.Path) -> None:
    with pytest.raises(CacheError, match=r"s3://no-such-bucket/out: .* no such file, folder or bucket"):
        written(pairs(9), "s3://no-such-bucket/out", **given(s3, tmp_path))
    (tmp_path / "file").write_bytes(b"content")
    with pytest.raises(CacheError, match=r"cannot be written: the store has no such file, folder or bucket"):
        store.Store("s3://no-such-bucket", s3.options, CacheError).put(
            str(tmp_path / "file"), "s3://no-such-bucket/a/b"
        )
    assert [entry.strip("/") for entry in s3.files.ls("")] == ["data"]


@pytest.mark.slow
def test_files_that_stand_for_folders(s3: S3, tmp_path: pathlib.Path) -> None:
    """Consoles of stores make a folder as an empty file whose name ends with a slash."""
    empty(s3, "made")
    url, out = s3.put("made/rows.jsonl", lines(pairs(20))), "s3://data/made/cache"
    for folder in ("cache/", "cache.writing/", "cache.writing/new/"):
        s3.files.call_s3("put_object", Bucket="data", Key=f"made/{folder}", Body=b"")
    for number in (1, 2, 3):
        write_range(url, out, number, tmp_path / "host", s3)
    assert mps.merge(out, **given(s3, tmp_path / "merging")).rows == 20


def test_a_bucket_is_no_folder(s3: S3, tmp_path: pathlib.Path) -> None:
    with pytest.raises(
        OptionError, match=r"s3://data is a whole bucket\. Name a folder in it, such as s3://data/cache"
    ):
        written(pairs(4), "s3://data/", **given(s3, tmp_path))


def test_parts_that_were_written_before_a_failure(s3: S3, tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    """An upload that fails is an error; the next run writes no part again."""
    empty(s3, "six")
    out = "s3://data/six/cache"

    def failing(self: store.Store, path: str, url: str) -> Any:
        raise CacheError("the store failed")

    with monkeypatch.context() as patched:
        patched.setattr(store.Store, "put", failing)
        with pytest.raises(CacheError, match="the store failed"):
            written(pairs(30), out, **given(s3, tmp_path))
    assert "manifest.json" not in s3.tree("six/cache")

    def no_part(*_: Any) -> Any:
        raise AssertionError("a part is written again")

    monkeypatch.setattr("ms_prefstream.cache.write.write_part", no_part)
    written(pairs(30), out, **given(s3, tmp_path))
    assert all(not one.problem for one in verify(out, None, Remote(**given(s3, tmp_path))))


def write_range(url: str, out: str, number: int, folder: pathlib.Path, s3: S3, **options: Any) -> None:
    """What a host does that writes one of three ranges."""
    stream = stream_of(url, TASK, on_bad_row="drop", verbose=False, **given(s3, folder))
    mps.write_cache(stream, out, rows_per_part=PART, part_range=(number, 3), **options)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["ragged", pytest.param("megatron", marks=pytest.mark.long)])
def test_ranges_of_several_hosts(layout: str, s3: S3, tmp_path: pathlib.Path) -> None:
    """Hosts that share nothing but the store write parts; merged elsewhere they are the cache of one process."""
    folder = f"hosts-{layout}"
    empty(s3, folder)
    url, out, whole = (
        s3.put(f"{folder}/rows.jsonl", lines(rows_with_bad(20))),
        *(f"s3://data/{folder}/{n}" for n in "ab"),
    )
    stream = stream_of(url, TASK, on_bad_row="drop", verbose=False, **given(s3, tmp_path / "one"))
    expected = mps.write_cache(stream, whole, rows_per_part=PART, layout=layout)
    merged = {"storage_options": s3.options, "cache_dir": tmp_path / "merging"}
    for number in (3, 1):
        write_range(url, out, number, tmp_path / f"host-{number}", s3, layout=layout)
    assert not s3.tree(f"{folder}/a")
    with pytest.raises(mps.StateError, match="2/3"):
        mps.merge(out, **merged)
    write_range(url, out, 2, tmp_path / "host-2", s3, layout=layout)
    damaged = next(name for name in s3.tree(f"{folder}/a.writing") if name.startswith("new/part-00001."))
    content = s3.tree(f"{folder}/a.writing")[damaged]
    s3.put(f"{folder}/a.writing/{damaged}", bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(mps.StateError, match=r"part 1 of range 2/3"):
        mps.merge(out, **merged)
    write_range(url, out, 2, tmp_path / "host-2", s3, layout=layout)  # which sees that the store has another file
    assert mps.merge(out, **merged) == expected
    assert s3.tree(f"{folder}/a") == s3.tree(f"{folder}/b")
    assert not s3.tree(f"{folder}/a.writing")
    assert not list((tmp_path / "merging").rglob("out.writing"))
    with pytest.raises(OptionError, match=f"no part ranges of {out}"):
        mps.merge(out, **merged)
    with pytest.raises(OptionError, match="exists with the same samples"):
        write_range(url, out, 1, tmp_path / "host-4", s3, layout=layout)


@pytest.mark.slow
@pytest.mark.parametrize("more", [8, pytest.param(1, marks=pytest.mark.long)])
def test_a_merge_that_is_interrupted(
    more: int, s3: S3, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After any file that is sent or deleted: the next merge completes the same cache and leaves nothing behind."""
    empty(s3, "merges")
    url, out = s3.put("merges/rows.jsonl", lines(rows_with_bad(20))), "s3://data/merges/cache"
    stream = stream_of(url, TASK, on_bad_row="drop", verbose=False, **given(s3, tmp_path / "one"))
    mps.write_cache(stream, "s3://data/merges/whole", rows_per_part=PART)
    for number in (1, 2, 3):
        write_range(url, out, number, tmp_path / "host", s3)
    left = [0]

    def counted(call: Any) -> Any:
        def made(*args: Any) -> Any:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return call(*args)

        return made

    monkeypatch.setattr(store.Store, "put", counted(store.Store.put))
    monkeypatch.setattr(store.Store, "remove", counted(store.Store.remove))
    for _ in range(60):
        left[0] = more
        try:
            mps.merge(out, **given(s3, tmp_path / "merging"))
            break
        except KeyboardInterrupt:
            assert "manifest.json" not in (found := s3.tree("merges/cache")) or found == s3.tree("merges/whole")
    assert s3.tree("merges/cache") == s3.tree("merges/whole")
    assert not s3.tree("merges/cache.writing")


def test_foreign_files_beside_ranges(s3: S3, tmp_path: pathlib.Path) -> None:
    empty(s3, "strange")
    url, out = s3.put("strange/rows.jsonl", lines(rows_with_bad(20))), "s3://data/strange/cache"
    for number in (1, 2, 3):
        write_range(url, out, number, tmp_path / "host", s3)
    s3.put("strange/cache.writing/new/notes.txt", b"mine")
    with pytest.raises(OptionError, match=r"cache.writing/ holds other files as well \(new/notes.txt\)"):
        mps.merge(out, **given(s3, tmp_path / "merging"))
    assert s3.tree("strange/cache.writing")["new/notes.txt"] == b"mine"


@pytest.mark.slow
def test_ranges_of_another_cache(s3: S3, tmp_path: pathlib.Path) -> None:
    """Refused before anything is written or sent, as in a common folder: uploads would replace parts of others."""
    empty(s3, "foreign")
    url, out = s3.put("foreign/rows.jsonl", lines(rows_with_bad(20))), "s3://data/foreign/cache"
    write_range(url, out, 1, tmp_path / "host-1", s3)
    before = s3.tree("foreign/cache.writing")
    other = stream_of(url, mps.DPO(99), on_bad_row="drop", verbose=False, **given(s3, tmp_path / "host-2"))
    named = r"part range 1/3 in s3://data/foreign/cache\.writing is of another cache: max_length of the task"
    for options in ({"part_range": (2, 3)}, {"part_range": (1, 3)}, {}):
        with pytest.raises(mps.StateError, match=named):
            mps.write_cache(other, out, rows_per_part=PART, **options)
    with pytest.raises(mps.StateError, match=r"part_range is 2/2, but s3://data/foreign/cache\.writing has .* 1/3"):
        mps.write_cache(other, out, rows_per_part=PART, part_range=(2, 2))
    assert s3.tree("foreign/cache.writing") == before


@pytest.mark.slow
def test_a_plan_that_somebody_deleted_in_the_store(s3: S3, tmp_path: pathlib.Path) -> None:
    """What is at the URL counts. An error names the plan there, and the copy of an earlier merge is no plan."""
    empty(s3, "plans")
    url, out = s3.put("plans/rows.jsonl", lines(rows_with_bad(20))), "s3://data/plans/cache"
    for number in (1, 2, 3):
        write_range(url, out, number, tmp_path / "host", s3)
    stream = stream_of(url, TASK, on_bad_row="drop", verbose=False, **given(s3, tmp_path / "host-4"))
    mps.write_cache(stream, "s3://data/plans/other", rows_per_part=PART, part_range=(1, 4))
    s3.put("plans/cache.writing/range-1-of-4.json", s3.tree("plans/other.writing")["range-1-of-4.json"])
    with pytest.raises(mps.StateError, match=r"^s3://data/plans/cache\.writing has the part ranges 1/3 and 1/4"):
        mps.merge(out, **given(s3, tmp_path / "merging"))
    s3.files.rm_file("data/plans/cache.writing/range-1-of-4.json")
    assert mps.merge(out, **given(s3, tmp_path / "merging")).source_rows == 20


def test_a_manifest_that_is_deleted_during_the_copy(s3: S3, tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    empty(s3, "ends")
    written(pairs(20), "s3://data/ends", **given(s3, tmp_path))
    fetch = copies.fetch

    def other(made: Any, entry: Any, path: str) -> None:
        if s3.files.exists("data/ends/manifest.json"):
            s3.files.rm_file("data/ends/manifest.json")
            s3.files.rm_file("data/ends/places.npy")
        fetch(made, entry, path)

    monkeypatch.setattr(copies, "fetch", other)
    with pytest.raises(CacheError, match=r"^s3://data/ends: the cache was deleted or replaced while it was copied"):
        stream_of("s3://data/ends", TASK, tokenizer=None, **given(s3, tmp_path))
    with pytest.raises(PrefStreamError, match="s3://data/ends holds a cache without its manifest"):
        stream_of("s3://data/ends", TASK, tokenizer=None, **given(s3, tmp_path))


class Writer:
    """`tests.cache.remote_writer`, as a process."""

    def __init__(self, s3: S3) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.cache.remote_writer", json.dumps(s3.options)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def say(self, *words: object) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@pytest.mark.slow
@pytest.mark.parametrize("kills", [4, pytest.param(30, marks=pytest.mark.long)])
def test_killed_at_any_moment(kills: int, s3: S3, tmp_path: pathlib.Path) -> None:
    """Reading from the store and writing to it: nothing lost, nothing half, the same bytes as undisturbed."""
    url = s3.put("killed/rows.jsonl", lines(rows_with_bad(60)))
    draw, writer = random.Random(kills), Writer(s3)
    try:
        empty(s3, "killed/expected")
        writer.say("go", url, "s3://data/killed/expected", tmp_path / "expected")
        begin = time.monotonic()
        assert writer.say("wait") == 0
        seconds, expected = time.monotonic() - begin, s3.tree("killed/expected")
        left = kills
        while left:
            out, folder = f"killed/out-{left}", tmp_path / f"out-{left}"
            empty(s3, out)
            for _ in range(min(left, 5)):  # several kills of one run
                pid = writer.say("go", url, f"s3://data/{out}", folder)
                time.sleep(draw.uniform(0, 1.1 * seconds))
                os.kill(pid, signal.SIGKILL)
                ended = writer.say("wait") == 0
                left -= 1
                found = s3.tree(out)
                assert found == expected if "manifest.json" in found else found.keys() <= expected.keys()
                if ended:
                    break
            else:
                writer.say("go", url, f"s3://data/{out}", folder)
                assert writer.say("wait") == 0
            assert s3.tree(out) == expected
    finally:
        writer.process.communicate()
