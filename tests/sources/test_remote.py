"""Remote sources: what is read from a store equals what is read from a local file, and is copied once."""

from __future__ import annotations

import errno
import gzip
import io
import json
import logging
import os
import pathlib
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import ms_prefstream as mps
from ms_prefstream import PrefStreamError
from ms_prefstream.errors import SourceError
from ms_prefstream.sources import copies, store
from ms_prefstream.sources.content_hash import whole_hash
from ms_prefstream.sources.copies import LIMIT, Remote
from ms_prefstream.sources.open import open_source
from ms_prefstream.sources.store import without_secrets
from tests.helpers import assert_same_batches, json_lines, pairs, rest, rest_through_mindspore
from tests.kinds import source_of
from tests.processes import ROOT
from tests.sources.stores import S3, SECRETS, Web

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

TASK, BATCHING = mps.DPO(128), mps.Bucket(4)
MANY = 30_000  # rows of a file that takes many packets
KINDS = ("json lines", "json array", "parquet", "gz", "zst", "two files", "plain and gz")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses are short."""
    monkeypatch.setattr(store, "PAUSES", (0.01,) * 5)


@pytest.fixture
def memory() -> Iterator[Callable[[str, bytes], str]]:
    """Writes a file to fsspec's store in memory; returns its URL."""
    files = fsspec.filesystem("memory")

    def put(path: str, content: bytes) -> str:
        files.pipe_file(f"/{path}", content)
        return f"memory://{path}"

    yield put
    files.store.clear()


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def stream_of(source: Any, **options: Any) -> mps.Stream:
    return mps.stream(source, **{"task": TASK, "tokenizer": "bytes", "batching": BATCHING, "seed": 3, **options})


def _begin(ranged: str) -> int:
    """The first byte of a Range header."""
    return int(ranged.removeprefix("bytes=").removesuffix("-") or 0)


def files_below(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def copies_of(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in files_below(folder) if not path.name.endswith("lock"))


@pytest.mark.parametrize("kind", KINDS)
def test_same_rows(
    kind: str, tmp_path: pathlib.Path, memory: Callable[[str, bytes], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows, fingerprint and number are those of the local file; the origin names the URL, and the copy nowhere."""
    local = source_of(kind, tmp_path, pairs(20))
    paths = local if isinstance(local, list) else [local]
    urls = [memory(f"rows/{path.name}", path.read_bytes()) for path in paths]
    here = tmp_path / "copies"
    found = open_source(urls if len(urls) > 1 else urls[0], Remote(cache_dir=here))
    expected = open_source(local)
    assert found.fingerprint() == expected.fingerprint()
    assert whole_hash(found) == whole_hash(expected)
    read = list(mps.read(urls, cache_dir=here))
    assert read == list(mps.read(local)) == pairs(20)
    if hasattr(found, "origin"):
        origins = [found.origin(row) for row in range(len(found))]  # type: ignore[arg-type]
    else:
        origins = [origin for origin, _ in found.start()]
    assert all(origin.startswith("memory://rows/") for origin in origins)
    again = pickle.loads(pickle.dumps(found))
    assert again.fingerprint() == found.fingerprint()
    assert str(here) not in " ".join([found.name, again.name, *origins, repr(vars(again).get("paths"))])


def test_s3(s3: S3, tmp_path: pathlib.Path) -> None:
    """A file, a glob and a folder of an S3 server."""
    for number in (0, 1):
        s3.put(f"several/train-{number}.jsonl", lines(pairs(10, 10 * number)))
    s3.put("several/README.md", b"what this is")
    given = {"storage_options": s3.options, "cache_dir": tmp_path}
    assert list(mps.read("s3://data/several/train-1.jsonl", **given)) == pairs(10, 10)
    for url in ("s3://data/several/train-*.jsonl", "s3://data/several", "s3://data/several/"):
        found = mps.read(url, **given)
        assert list(found) == pairs(20)
        assert found.origin(12) == "s3://data/several/train-1.jsonl:3"
    assert copies_of(tmp_path) == ["train-0.jsonl", "train-1.jsonl"]  # each once


def test_options_of_several_stores(s3: S3, web: Web, tmp_path: pathlib.Path) -> None:
    """Options under a protocol's name reach that store alone; one source may then lie in several."""
    places = [s3.put("mixed/rows.jsonl", lines(pairs(3))), web.put("rows.jsonl", lines(pairs(3, 3)))]
    with pytest.raises(SourceError, match="unexpected keyword argument 'key'"):
        mps.read(places, storage_options=s3.options, cache_dir=tmp_path)
    own = {"s3": s3.options, "http": {"params": {"of": "web"}}}
    assert list(mps.read(places, storage_options=own, cache_dir=tmp_path)) == pairs(6)
    assert {path for _, path, _ in web.asked[-2:]} == {"/rows.jsonl?of=web"}


@pytest.mark.mindspore
def test_a_stream_is_the_local_one(s3: S3, tmp_path: pathlib.Path) -> None:
    """Batches through MindSpore, state, index and resume on another folder of copies are those of a local file."""
    rows = pairs(60)
    local, url = json_lines(tmp_path / "rows.jsonl", rows), s3.put("stream/rows.jsonl", lines(rows))
    first = {"storage_options": s3.options, "cache_dir": tmp_path / "first"}
    second = {"storage_options": s3.options, "cache_dir": tmp_path / "second"}
    for index in (None, "build"):
        expected = stream_of(local, index=index)
        found = stream_of(url, index=index, **first)
        assert json.loads(json.dumps(found.state(5))) == expected.state(5)
        assert_same_batches(rest_through_mindspore(found, 0, 1), rest(expected, 0, 1))
        there = stream_of(url, index=index, **second).resume(found.state(7))
        assert_same_batches(rest_through_mindspore(there, 7, 2), rest(expected.resume(expected.state(7)), 7, 2))
    beside = [path for path in files_below(tmp_path / "first") if path.suffix == ".mprefidx"]
    assert len(beside) == 1
    assert beside[0].parent == next((tmp_path / "first").glob("*/*/rows.jsonl")).parent
    assert str(tmp_path).encode() not in beside[0].read_bytes()


def test_it_is_copied_once(web: Web, tmp_path: pathlib.Path) -> None:
    """Later streams ask whether the file is the same, and read the copy."""
    url = web.put("rows.jsonl", lines(pairs(9)))
    for _ in range(3):
        assert len(mps.read(url, cache_dir=tmp_path)) == 9
    assert web.gets() == [""]


def test_processes_at_once(web: Web, tmp_path: pathlib.Path) -> None:
    """Several processes share one copy, which one of them makes."""
    url = web.put("rows.jsonl", lines(pairs(500)))
    web.stalls = 1.0
    code = f"import ms_prefstream as mps; print(len(mps.read({url!r}, cache_dir={str(tmp_path)!r})))"
    running = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [process.communicate(timeout=60)[0] for process in running] == ["500\n"] * 2
    assert web.gets() == [""]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_body_that_breaks_off(ranges: bool, web: Web, tmp_path: pathlib.Path) -> None:
    """It is requested again: from where it broke off, or from the front of a server without ranges."""
    content = lines(pairs(MANY))
    url, web.ranges, web.breaks, web.breaks_at = web.put("rows.jsonl", content), ranges, 2, len(content) // 2
    assert list(mps.read(url, cache_dir=tmp_path)) == pairs(MANY)
    assert web.gets()[0] == ""
    assert 0 < _begin(web.gets()[1]) <= len(content) // 2
    assert len(web.gets()) in (2, 3)  # what was on its way when the connection broke is lost


def test_a_body_that_always_breaks_off(web: Web, tmp_path: pathlib.Path) -> None:
    """A server without ranges that never sends the whole file is an error after some tries; what came is kept."""
    content = lines(pairs(MANY))
    url = web.put("rows.jsonl", content)
    web.ranges, web.breaks, web.breaks_at = False, 1000, len(content) // 2
    with pytest.raises(SourceError, match=r"rows\.jsonl: it cannot be read: the store failed 6 times"):
        mps.read(url, cache_dir=tmp_path)
    web.ranges, web.breaks = True, 0
    assert len(mps.read(url, cache_dir=tmp_path)) == MANY
    assert 0 < _begin(web.gets()[-1]) <= len(content) // 2


def test_a_copy_that_was_interrupted(web: Web, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on where it was; if the file has changed since, it begins again."""
    old, new = pairs(MANY), pairs(MANY + 10, 5)
    url = web.put("rows.jsonl", lines(old))
    for rows in (old, new):
        place = tmp_path / str(len(rows))
        web.put("rows.jsonl", lines(old))
        web.breaks, web.breaks_at = 1, len(lines(old)) // 2
        with monkeypatch.context() as patched:
            patched.setattr(store, "PAUSES", ())
            with pytest.raises(SourceError):
                mps.read(url, cache_dir=place)
        web.put("rows.jsonl", lines(rows))
        assert list(mps.read(url, cache_dir=place)) == rows
        assert (_begin(web.gets()[-1]) > 0) == (rows is old)
        assert copies_of(place) == ["rows.jsonl"]


@pytest.mark.parametrize("rows", [MANY, 100])
def test_a_file_that_changes_during_the_copy(rows: int, web: Web, tmp_path: pathlib.Path) -> None:
    """The new file is copied from its begin, no mixture of both; it may be shorter than what was copied."""
    old, new = lines(pairs(MANY)), lines(pairs(rows, 500))
    url, web.breaks, web.breaks_at = web.put("rows.jsonl", old), 1, len(old) // 2
    web.swap["/rows.jsonl"] = new
    assert list(mps.read(url, cache_dir=tmp_path)) == pairs(rows, 500)


@pytest.mark.parametrize("tags", [True, False])
def test_a_file_without_ranges_that_changes_after_the_body(tags: bool, web: Web, tmp_path: pathlib.Path) -> None:
    """Without an ETag nothing shows it: then the copy is made again by each stream that starts alone."""
    old, new = lines(pairs(30)), lines(pairs(30, 500))
    url, web.ranges, web.tags = web.put("rows.jsonl", old), False, tags
    web.swap["/rows.jsonl"] = new
    found = list(mps.read(url, cache_dir=tmp_path))
    assert found == (pairs(30, 500) if tags else pairs(30))
    assert list(mps.read(url, cache_dir=tmp_path)) == pairs(30, 500)


def test_a_file_without_size_and_version(web: Web, tmp_path: pathlib.Path) -> None:
    """A body without its length is whole when it ends; one that broke off is requested from its begin."""
    content = lines(pairs(MANY))
    web.chunked, web.tags, web.breaks, web.breaks_at = True, False, 1, len(content) // 2
    assert list(mps.read(web.put("rows.jsonl", content), cache_dir=tmp_path)) == pairs(MANY)
    assert web.gets() == ["", ""]


def test_a_file_that_never_stops_changing(web: Web, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, number, entry = web.put("rows.jsonl", lines(pairs(3))), [0], store.Store.entry

    def changing(self: store.Store, url: str) -> Any:
        number[0] += 1
        web.put("rows.jsonl", lines(pairs(3, number[0])))
        return entry(self, url)

    monkeypatch.setattr(store.Store, "entry", changing)
    with pytest.raises(SourceError, match="changed in the store 3 times while it was copied"):
        mps.read(url, cache_dir=tmp_path)
    assert copies_of(tmp_path) == []


def test_a_server_that_fails(web: Web, tmp_path: pathlib.Path) -> None:
    """A few failures are survived; more are one sentence. A refusal is not repeated."""
    url = web.put("rows.jsonl", lines(pairs(9)))
    web.failures = 4  # two for each look: by HEAD and by GET
    assert len(mps.read(url, cache_dir=tmp_path)) == 9
    web.failures = 1000
    with pytest.raises(SourceError, match=r"it cannot be looked up: the store failed 6 times .*503.* run again"):
        mps.read(url, cache_dir=tmp_path)
    web.status, asked = 403, len(web.asked)
    with pytest.raises(SourceError, match=r"the store refuses access .*storage_options"):
        mps.read(url, cache_dir=tmp_path)
    assert len(web.asked) == asked + 2


def test_a_pause_in_the_middle_is_no_end(web: Web, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience is counted from the first failure, and not from the last byte."""
    content = lines(pairs(MANY))
    url, web.breaks, web.breaks_at, web.pause = web.put("rows.jsonl", content), 1, len(content) // 2, 0.5
    monkeypatch.setattr(store, "PATIENCE", 0.4)
    assert len(mps.read(url, cache_dir=tmp_path)) == MANY


def test_a_server_that_does_not_answer(web: Web, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, web.stalls = web.put("rows.jsonl", lines(pairs(9))), 30.0
    monkeypatch.setattr(store, "REQUEST_SECONDS", 0.2)
    begin = time.monotonic()
    with pytest.raises(SourceError, match="the store failed 6 times"):
        mps.read(url, cache_dir=tmp_path)
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("memory://rows/nothing.jsonl", "no such file in the store"),
        ("memory://rows/nothing", "no such file or folder in the store"),
        ("memory://rows/*.parquet", "the pattern matches no file"),
        ("memory://rows/notes.txt", "found the suffix '.txt', expected one of"),
        ("memory://mixed", "found files of several kinds"),
        ("memory://splits", r"found files of several splits \(test, train\)"),
        ("http://127.0.0.1:9/rows", "."),
        ("nosuchstore://a/b.jsonl", "the store cannot be opened"),
    ],
)
def test_errors(
    url: str,
    found: str,
    memory: Callable[[str, bytes], str],
    tmp_path: pathlib.Path,
) -> None:
    for name in ("rows/a.jsonl", "rows/notes.txt", "mixed/a.jsonl", "mixed/b.parquet"):
        memory(name, lines(pairs(2)))
    for name in ("train.jsonl", "test.jsonl"):
        memory(f"splits/{name}", lines(pairs(2)))
    with pytest.raises(SourceError, match=found) as raised:
        mps.read(url, cache_dir=tmp_path)
    assert str(raised.value).startswith(url)
    assert copies_of(tmp_path) == []  # nothing is copied before the names were looked at


def test_a_file_that_cannot_be_read_leaves_nothing_in_the_store(
    memory: Callable[[str, bytes], str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty manifest would be taken for a damaged cache by whoever reads the folder, and by the next run."""
    path, plain = tmp_path / "manifest.json", open
    path.write_bytes(b"{}")

    class Broken(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    def opened(name: Any, *args: Any, **given: Any) -> Any:
        return Broken(name) if name == str(path) else plain(name, *args, **given)

    monkeypatch.setattr("builtins.open", opened)
    there = store.Store("memory://sent", None, SourceError)
    with pytest.raises(SourceError, match=r"memory://sent/manifest.json: it cannot be written: .*Input/output error"):
        there.put(str(path), "memory://sent/manifest.json")
    assert there.below("memory://sent") == []


def test_a_url_that_is_named_twice(memory: Callable[[str, bytes], str], tmp_path: pathlib.Path) -> None:
    url = memory("twice/rows.jsonl", lines(pairs(3)))
    with pytest.raises(SourceError, match=rf"^{url}: the file is named twice"):
        mps.read([url, "memory://twice/*.jsonl"], cache_dir=tmp_path)


def test_protocols_have_no_case(memory: Callable[[str, bytes], str], tmp_path: pathlib.Path) -> None:
    memory("case/rows.jsonl", lines(pairs(3)))
    for url in ("MEMORY://case/rows.jsonl", "Memory://case/*.jsonl"):
        assert list(mps.read(url, cache_dir=tmp_path)) == pairs(3)


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.jsonl"])
def test_a_server_that_names_the_compression(name: str, web: Web, tmp_path: pathlib.Path) -> None:
    """With ``Content-Encoding: gzip``, and whatever the client accepts, as servers answer that hold a packed file."""
    web.encoding = "gzip"
    url = web.put(name, gzip.compress(lines(pairs(40))))
    assert list(mps.read(url, cache_dir=tmp_path)) == pairs(40)


def test_rows_that_are_wrong_name_the_url(memory: Callable[[str, bytes], str], tmp_path: pathlib.Path) -> None:
    """Errors, warnings, report, quarantine and damaged files name the URL, and never the copy."""
    rows = [*map(json.dumps, pairs(9)), '{"prompt": "?", "chosen": 1']
    url = memory("rows/bad.jsonl", "\n".join(rows).encode())
    with pytest.raises(PrefStreamError, match=r"memory://rows/bad\.jsonl:10") as raised:
        stream_of(url, cache_dir=tmp_path, index="build", verbose=False)
    quarantine = tmp_path / "bad.jsonl"
    stream = stream_of(url, cache_dir=tmp_path, on_bad_row="drop", quarantine=quarantine, drop_remainder=False)
    list(stream.batches())
    assert json.loads(quarantine.read_text())["origin"] == f"{url}:10"
    said = f"{raised.value}{stream.report}{stream!r}{json.dumps(stream.state(1))}{quarantine.read_text()}"
    for name, content in (
        ("a.jsonl.gz", b"\x1f\x8b\x08"),
        ("a.parquet", b"PAR1"),
        ("a.json", b"[1,"),
        ("b.jsonl", b""),
    ):
        damaged = memory(f"damaged/{name}", content)
        with pytest.raises(PrefStreamError) as raised:
            list(mps.read(damaged, cache_dir=tmp_path))
        assert damaged in str(raised.value)
        said += str(raised.value)
    assert str(tmp_path) not in said.replace(str(quarantine), "")


def test_a_changed_file(memory: Callable[[str, bytes], str], tmp_path: pathlib.Path, caplog: Any) -> None:
    """A stream that starts alone reads the new file; one that starts beside another reads the same as that."""
    url = memory("rows/rows.jsonl", lines(pairs(40)))
    first = stream_of(url, cache_dir=tmp_path)
    state = first.state(3)
    memory("rows/rows.jsonl", lines(pairs(44)))
    with caplog.at_level(logging.WARNING, "ms_prefstream"):
        second = stream_of(url, cache_dir=tmp_path)
    assert "memory://rows/rows.jsonl changed in the store after it was copied" in caplog.text
    assert len(second.data.source) == 40
    del first, second
    third = stream_of(url, cache_dir=tmp_path)
    assert len(third.data.source) == 44
    assert copies_of(tmp_path) == ["rows.jsonl"]  # the former one is deleted
    with pytest.raises(mps.StateError, match="data"):
        third.resume(state)


def test_own_files_are_no_rows(memory: Callable[[str, bytes], str], tmp_path: pathlib.Path) -> None:
    """A quarantine file in a remote folder is left out and reported; named alone it is read, as on a disk."""
    memory("own/rows.jsonl", lines(pairs(9)))
    row = {"origin": "x:1", "reason": "bad_json", "problem": "p", "row": "{"}
    url = memory("own/bad.jsonl", lines([row]))
    for source in ("memory://own", "memory://own/*.jsonl"):
        stream = stream_of(source, cache_dir=tmp_path)
        assert len(stream.data.source) == 9
        assert stream.report.left_out_files == {url: "a quarantine file"}
    assert list(mps.read(url, cache_dir=tmp_path)) == [row]
    with pytest.raises(SourceError, match=r"found only files that this library wrote .*a quarantine file"):
        mps.read("memory://own/b*.jsonl", cache_dir=tmp_path)


def test_a_cache_in_the_folder_is_no_second_kind(memory: Callable[[str, bytes], str], tmp_path: pathlib.Path) -> None:
    """The manifest of a cache and the plans of part ranges are JSON, and no rows."""
    url = memory("mixed/rows.jsonl", lines(pairs(9)))
    stream = stream_of(url, cache_dir=tmp_path)
    mps.write_cache(stream, "memory://mixed/cache")
    mps.write_cache(stream, "memory://mixed/other", part_range=(1, 1))
    found = stream_of("memory://mixed", cache_dir=tmp_path)
    assert len(found.data.source) == 9
    assert found.report.left_out_files == dict.fromkeys(
        ["memory://mixed/cache/manifest.json", "memory://mixed/other.writing/range-1-of-1.json"],
        "a description of a cache",
    )
    memory("mixed/more.json", json.dumps(pairs(2)).encode())
    with pytest.raises(SourceError, match=r"several kinds in the folder \(1 JSON, 1 JSON Lines\)"):
        stream_of("memory://mixed", cache_dir=tmp_path)


def test_a_copy_whose_file_was_deleted(memory: Callable[[str, bytes], str], tmp_path: pathlib.Path) -> None:
    """As by a clean-up of old files, which leaves the folders; a truncated one, and files of a cache likewise."""
    url = memory("gone/rows.jsonl", lines(pairs(20)))
    mps.write_cache(stream_of(url, cache_dir=tmp_path), "memory://gone/cache")
    for change in (os.unlink, lambda path: os.truncate(path, 100)):
        for source, name in ((url, "rows.jsonl"), ("memory://gone/cache", "part-00000.mindrecord")):
            assert sum(1 for _ in stream_of(source, cache_dir=tmp_path).batches()) == 5
            [copy] = [path for path in files_below(tmp_path) if path.name == name]
            change(copy)
    for source in (url, "memory://gone/cache"):
        assert sum(1 for _ in stream_of(source, cache_dir=tmp_path).batches()) == 5


def test_a_long_copy_shows_its_progress(web: Web, tmp_path: pathlib.Path, monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setattr(copies, "_LINE_SECONDS", 0.0)
    caplog.set_level(logging.INFO, "ms_prefstream")
    mps.read(web.put("rows.jsonl", lines(pairs(MANY))), cache_dir=tmp_path)
    assert f"copying {web.url}/rows.jsonl: " in caplog.text
    assert " of 4 MB" in caplog.text


def test_the_folder_has_a_limit(
    memory: Callable[[str, bytes], str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies that were used longest ago go first; those in use stay; too little room is an error."""
    urls = [memory(f"rows/{name}.jsonl", lines(pairs(10, 10))) for name in "abcd"]
    size = len(lines(pairs(10, 10)))
    monkeypatch.setenv(LIMIT, str(2.5 * size / 1e9))
    used = mps.read(urls[0], cache_dir=tmp_path)
    for number, url in enumerate(urls[1:]):
        mps.read(url, cache_dir=tmp_path)
        for path in tmp_path.glob("*/*"):
            os.utime(path, (number, number))
    assert copies_of(tmp_path) == ["a.jsonl", "d.jsonl"]
    assert list(used) == pairs(10, 10)
    large = memory("rows/large.jsonl", lines(pairs(40)))
    with pytest.raises(SourceError, match=rf"large.jsonl: its copy needs .*{LIMIT}"):
        mps.read(large, cache_dir=tmp_path)
    monkeypatch.setenv(LIMIT, "much")
    with pytest.raises(mps.OptionError, match=rf"{LIMIT} is 'much'; expected a number of gigabytes"):
        mps.read(large, cache_dir=tmp_path)


def test_credentials_are_said_nowhere(s3: S3, web: Web, tmp_path: pathlib.Path, caplog: Any) -> None:
    """Neither in errors with their causes, nor in logs, names, states, reprs and files."""
    caplog.set_level(logging.DEBUG, "ms_prefstream")
    url = s3.put("secret/rows.jsonl", lines(pairs(9)))
    given = {"storage_options": s3.options, "cache_dir": tmp_path / "a"}
    stream = stream_of(url, index="build", **given)
    said = [repr(stream), str(stream.report), json.dumps(stream.state(1)), repr(stream.data.remote)]
    said.append(repr(pickle.dumps(stream.data.recipe.records)))
    for path in files_below(tmp_path):
        said.append(f"{path}{path.read_bytes()!r}")
    wrong = {**s3.options, "endpoint_url": "http://127.0.0.1:9", "session": object}
    for options in (wrong, {**s3.options, "endpoint_url": 5}, {**s3.options, SECRETS[0]: {SECRETS[1]: 1}}):
        with pytest.raises(PrefStreamError) as raised:
            mps.read(url, storage_options=options, cache_dir=tmp_path)
        said.append(_with_causes(raised.value))
    web.put("rows.jsonl", lines(pairs(9)))
    signed = web.url.replace("://", f"://user:{SECRETS[1]}@") + f"/rows.jsonl?signature={SECRETS[0]}"
    found = stream_of(signed, cache_dir=tmp_path / "b")
    assert found.data.source.name == f"{web.url}/rows.jsonl"
    said += [repr(found), *map(str, files_below(tmp_path / "b"))]
    web.failures = 1000
    for status in (500, 403):
        web.status = status
        with pytest.raises(SourceError) as raised:
            mps.read(signed, cache_dir=tmp_path / "c")
        said.append(_with_causes(raised.value))
    with pytest.raises(mps.OptionError) as misspelt:
        mps.read(url, storage_option=s3.options)  # type: ignore[call-arg]
    said += [str(misspelt.value), caplog.text]
    for text in said:
        assert not any(secret in text for secret in SECRETS)


def _with_causes(error: BaseException) -> str:
    import traceback

    return "".join(traceback.format_exception(error, chain=True)).replace("SECRETS", "")


def test_names_without_secrets() -> None:
    for url, shown in (
        ("https://u:p@host:8/a/b.jsonl?sig=1#x", "https://host:8/a/b.jsonl"),
        ("s3://bucket/a?b.jsonl", "s3://bucket/a?b.jsonl"),
        ("hdfs://user:pw@host/a@b.jsonl", "hdfs://host/a@b.jsonl"),
        ("hf://datasets/org/name@main/a.jsonl", "hf://datasets/org/name@main/a.jsonl"),
        ("zip://a.jsonl::s3://key:secret@bucket/a.zip", "zip://a.jsonl::s3://bucket/a.zip"),
        ("http://[::1]:8/a.jsonl", "http://[::1]:8/a.jsonl"),
    ):
        assert without_secrets(url) == shown


@pytest.mark.parametrize(
    "name", ["../../evil.jsonl", "..", ".jsonl", "a/../../../b.jsonl", "\n.jsonl", "x" * 400 + ".jsonl"]
)
def test_a_name_cannot_leave_the_folder(
    name: str, tmp_path: pathlib.Path, memory: Callable[[str, bytes], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a store lists: copies lie in folders that are named by a hash, under plain names."""
    url = memory("rows/rows.jsonl", lines(pairs(3)))
    there = store.Store(url).entry(url)
    monkeypatch.setattr(store.Store, "matching", lambda self, pattern: [f"memory://rows/{name}"])
    monkeypatch.setattr(store.Store, "entry", lambda self, one: None if "*" in one else there)
    inside = tmp_path / "inside"
    if name == "..":
        with pytest.raises(SourceError, match="found the suffix"):
            mps.read("memory://rows/*", cache_dir=inside)
    else:
        assert list(mps.read("memory://rows/*", cache_dir=inside)) == pairs(3)
    assert {path.name for path in tmp_path.iterdir()} <= {"inside"}
    for path in files_below(inside):
        assert path.resolve().is_relative_to(inside)
        assert len(path.relative_to(inside).parts) <= 3


def test_a_url_in_a_row_is_text(web: Web, tmp_path: pathlib.Path) -> None:
    url = web.put("secret.jsonl", b"{}")
    rows = [{**row, "prompt": url, "chosen": f"![]({url}) {row['chosen']}", "source": url} for row in pairs(8)]
    list(stream_of(json_lines(tmp_path / "rows.jsonl", rows), on_bad_row="drop").batches())
    assert web.asked == []


def test_local_paths_need_no_package(tmp_path: pathlib.Path) -> None:
    """Neither fsspec nor a package of a store is imported for local paths, and their names need none."""
    path = json_lines(tmp_path / "rows.jsonl", pairs(9))
    code = (
        "import sys, ms_prefstream as mps\n"
        f"s = mps.stream({str(path)!r}, task=mps.DPO(64), tokenizer='bytes', batching=mps.Bucket(2), cache_dir='x')\n"
        "next(s.batches())\n"
        "print([name for name in ('fsspec', 's3fs', 'aiohttp', 'botocore') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("url", "missing", "line"),
    [
        ("s3://data/rows.jsonl", "s3fs", 's3:// needs s3fs, .* pip install "ms-prefstream\\[remote\\]"\\.'),
        ("obs://data/rows.jsonl", "s3fs", 'obs:// needs s3fs, .* pip install "ms-prefstream\\[remote\\]"\\.'),
        ("memory://rows.jsonl", "fsspec.core", 'needs fsspec, .* pip install "ms-prefstream\\[remote\\]"\\.'),
        ("hf://datasets/a/b.jsonl", "huggingface_hub", '"ms-prefstream\\[remote\\]" huggingface_hub\\.'),
        ("hdfs://host/b.jsonl", "pyarrow.fs", 'Java.*"ms-prefstream\\[remote\\]" pyarrow\\.'),
    ],
)
def test_a_missing_package(url: str, missing: str, line: str, tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    from fsspec.registry import _registry

    for protocol in ("s3", "hf", "hdfs"):
        monkeypatch.delitem(_registry, protocol, raising=False)
    with pytest.raises(SourceError, match=line):
        mps.read(url, cache_dir=tmp_path)


def test_every_door(memory: Callable[[str, bytes], str], tmp_path: pathlib.Path) -> None:
    """Whatever takes a source takes a URL, with a folder of copies of its own."""
    rows, other = memory("rows/a.jsonl", lines(pairs(30))), memory("rows/b.jsonl", lines(pairs(5)))
    given = {"cache_dir": tmp_path / "copies", "storage_options": {}}
    train, test = mps.split(rows, 0.3, **given)
    assert len(train) + len(test) == 30
    assert mps.stats(rows, against=other, **given).rows == 30
    assert mps.doctor(rows, task=TASK, tokenizer="bytes", **given).rows == 30
    assert mps.build_index(rows, task=TASK, tokenizer="bytes", exclude=other, **given).usable == 25
    assert mps.mix([(rows, 1), (other, 1)], **given).parts[0].name == rows
    stream = stream_of(rows, **given)
    assert stream.build_index(exclude=[other]).usable == 25
    from ms_prefstream.adapters.yaml_keys import stream_from

    keys = {"task": {"type": "DPO", "max_length": 64}, "batching": "Pad", "tokenizer": "bytes", **given}
    made = stream_from({**keys, "source": {"mix": [rows, other]}}, batch_size=2)
    assert next(made.batches())["chosen_input_ids"].shape == (2, 64)
    assert {path.name for path in tmp_path.iterdir()} == {"copies"}


def test_a_file_that_is_followed_is_local(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SourceError, match=r"s3://a/b\.jsonl, which lies in a store"):
        mps.follow("s3://a/b.jsonl")


def test_wrong_options(tmp_path: pathlib.Path) -> None:
    with pytest.raises(mps.OptionError, match="storage_options is of type str; expected a dict"):
        mps.read("s3://a/b.jsonl", storage_options="key=secret")  # type: ignore[arg-type]
    with pytest.raises(mps.OptionError, match="cache_dir is 5; expected the path of a folder"):
        mps.read("s3://a/b.jsonl", cache_dir=5)  # type: ignore[arg-type]
    for folder in ("", "s3://a/copies"):
        with pytest.raises(mps.OptionError, match=rf"cache_dir is '{folder}'; expected the path of a folder of this"):
            mps.read("s3://a/b.jsonl", cache_dir=folder)
    with pytest.raises(mps.OptionError, match=r"cache_dir .* cannot be a path"):
        mps.read("s3://a/b.jsonl", cache_dir="a\0b")
    place = tmp_path / "file"
    place.write_text("")
    fsspec.filesystem("memory").pipe_file("/a.jsonl", lines(pairs(1)))
    with pytest.raises(SourceError, match=r"cannot be written: .* cache_dir"):
        mps.read("memory://a.jsonl", cache_dir=place)


def test_a_url_as_a_path(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `pathlib.Path` of a URL has lost a slash: no folder ``s3:`` is made, and the remedy is named."""
    monkeypatch.chdir(tmp_path)
    stream = stream_of(json_lines(tmp_path / "rows.jsonl", pairs(9)))
    with pytest.raises(mps.OptionError, match="out s3:/data/cache is a URL that has lost a slash"):
        mps.write_cache(stream, pathlib.Path("s3://data/cache"))
    with pytest.raises(SourceError, match=r"s3:/data/rows.jsonl: no such file.* pass it as a string"):
        mps.read(pathlib.Path("s3://data/rows.jsonl"))
    assert not (tmp_path / "s3:").exists()


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Remote().folder == str(tmp_path / "ms_prefstream" / "files")
    assert copies.LOCAL.storage_options is None
    assert np.all([Remote(cache_dir="~/x").folder == os.path.expanduser("~/x")])
