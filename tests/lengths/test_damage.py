"""Doctored indexes and journals, each refused with a sentence; `tests/test_files_on_disk.py` has all at random.

Whoever can write a file can compute its checksum, so most of the doctored files here have the right one.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pathlib
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import ms_prefstream as mps
from ms_prefstream import PrefStreamError, SourceError, StateError
from ms_prefstream.lengths import build, build_index, open_index
from ms_prefstream.lengths.build import JOURNAL_SUFFIX
from ms_prefstream.load.loader import SampleLoader
from tests.lengths.test_build_index import Fails, Interrupted
from tests.pools import pairs, recipe, write

FINGERPRINT = {"data": "d1", "task": "DPO(60)"}
COUNT = 100
REASONS = {"identical": 64}


@pytest.fixture(scope="module", autouse=True)
def little_memory() -> Iterator[None]:
    """A row count that is believed asks for more memory than there is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = 24 * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture(scope="module")
def loader() -> SampleLoader:
    return recipe(pairs(COUNT)).loader()


@pytest.fixture(scope="module")
def whole(loader: SampleLoader, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "x"
    build_index(COUNT, loader, path, FINGERPRINT, origin=str, raise_malformed=False)
    return path.read_bytes()


@pytest.fixture(scope="module")
def begun(loader: SampleLoader, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The journal of a pass that was interrupted."""
    path = tmp_path_factory.mktemp("begun") / "x"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(build, "CHUNK", 10)
        with pytest.raises(Interrupted):
            build_index(COUNT, Fails(loader, 70), path, FINGERPRINT, origin=str, raise_malformed=False)
    return pathlib.Path(f"{path}{JOURNAL_SUFFIX}").read_bytes()


def sealed(body: bytes) -> bytes:
    """A body with the checksum that fits it."""
    file = io.BytesIO()
    np.save(file, np.array([zlib.crc32(body)], "<u4"))
    return body + file.getvalue()


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def index_of(lengths: Any, keys: Any, verdict: Any, about: Any) -> bytes:
    """The file of an index with these contents and the right checksum; `about` is JSON, or a value for it."""
    text = about if isinstance(about, bytes) else json.dumps(about).encode()
    return sealed(b"".join(map(npy, (lengths, keys, verdict, np.frombuffer(text, np.uint8)))))


GOOD = np.full((COUNT, 2), 9, np.int32), np.full(COUNT, 9, np.int32), np.zeros(COUNT, np.uint8)
ABOUT = {"version": 1, "fingerprint": FINGERPRINT, "reasons": REASONS}


def changed(position: int, row: Any, value: Any) -> tuple[Any, ...]:
    arrays = [array.copy() for array in GOOD]
    arrays[position][row] = value
    return *arrays, ABOUT


def header(text: str) -> Callable[[], bytes]:
    """A file whose first header says something else in the same number of bytes, with the right checksum."""

    def made() -> bytes:
        body = index_of(*GOOD, ABOUT)[:-132]
        return sealed(body[:10] + text.encode().ljust(117)[:117] + b"\n" + body[128:])

    return made


SHAPE = "{'descr': '<i4', 'fortran_order': False, 'shape': %s, }"
DOCTORED: dict[str, Any] = {
    "negative length": changed(0, (3, 1), -9),
    "huge length": changed(0, (3, 1), 2**31 - 1),
    "another key": changed(1, 5, 8),
    "negative key": changed(1, 5, -2),
    "key -1 of a good row": changed(1, 5, -1),
    "unknown verdict": changed(2, 99, 200),
    "verdict of a row with lengths": changed(2, 0, 64),
    "no lengths": (*(np.zeros_like(array) for array in GOOD), ABOUT),
    "more rows": (*(np.concatenate([array, array]) for array in GOOD), ABOUT),
    "fewer keys": (GOOD[0], GOOD[1][:-1], GOOD[2], ABOUT),
    "keys of 8 bytes": (GOOD[0], GOOD[1].astype(np.int64), GOOD[2], ABOUT),
    "keys as floats": (GOOD[0], np.full(COUNT, np.nan, np.float32), GOOD[2], ABOUT),
    "lengths in columns": (np.asfortranarray(GOOD[0]), *GOOD[1:], ABOUT),
    "lengths of three sides": (np.full((COUNT, 3), 9, np.int32), *GOOD[1:], ABOUT),
    "objects": (GOOD[0], np.array([{}] * COUNT), GOOD[2], ABOUT),
    "about is empty": (*GOOD, b""),
    "about is no JSON": (*GOOD, b"{'version': 1}"),
    "about is a list": (*GOOD, [1]),
    "about is nested": (*GOOD, b"[" * 100_000),
    "fingerprint is nested": (*GOOD, b'{"version": 1, "reasons": {}, "fingerprint": ' + b'{"a": ' * 50_000),
    "no version": (*GOOD, {"fingerprint": FINGERPRINT, "reasons": REASONS}),
    "version is text": (*GOOD, {**ABOUT, "version": "1"}),
    "version is huge": (*GOOD, {**ABOUT, "version": 10**400}),
    "version is NaN": (*GOOD, {**ABOUT, "version": float("nan")}),
    "no fingerprint": (*GOOD, {"version": 1, "reasons": REASONS}),
    "fingerprint is a list": (*GOOD, {**ABOUT, "fingerprint": [["data", "d1"]]}),
    "fingerprint holds a list": (*GOOD, {**ABOUT, "fingerprint": {**FINGERPRINT, "data": ["d1"]}}),
    "fingerprint is long": (*GOOD, {**ABOUT, "fingerprint": {"data": "x" * 10**6, "\x1b]0;owned\x07": None}}),
    "fingerprint has many names": (*GOOD, {**ABOUT, "fingerprint": {f"name {n}": n for n in range(9999)}}),
    "reasons are a list": (*GOOD, {**ABOUT, "reasons": [64]}),
    "reasons are floats": (*GOOD, {**ABOUT, "reasons": {"identical": 64.5}}),
    "not UTF-8": (*GOOD, json.dumps(ABOUT).encode().replace(b"d1", b"\xff\xfe")),
    "huge shape": header(SHAPE % "(99999999999999, 2)"),
    "negative shape": header(SHAPE % "(-1, 2)"),
    "shape of text": header(SHAPE % "('a', 2)"),
    "shape without end": header("((" * 60),
    "header that calls": header("__import__('os').abort()"),
    "another format": lambda: sealed(b"\x93NUMPY\x03" + index_of(*GOOD, ABOUT)[7:-132]),
    "a pickle": lambda: b"\x80\x04\x95",
    "nothing": lambda: b"",
    "only a checksum": lambda: sealed(b""),
}


@pytest.mark.parametrize("name", DOCTORED)
def test_a_doctored_index_is_refused(name: str, tmp_path: pathlib.Path) -> None:
    made = DOCTORED[name]
    (tmp_path / "x").write_bytes(made() if callable(made) else index_of(*made))
    with pytest.raises(StateError) as caught:
        open_index(tmp_path / "x", FINGERPRINT, COUNT)
    assert str(tmp_path / "x") in str(caught.value)
    assert len(str(caught.value)) < 4000
    assert "\x1b" not in str(caught.value)


def test_the_doctored_files_differ_from_one_that_is_read(tmp_path: pathlib.Path) -> None:
    (tmp_path / "x").write_bytes(index_of(*GOOD, ABOUT))
    assert open_index(tmp_path / "x", FINGERPRINT, COUNT).usable == COUNT


def test_a_sparse_file_of_a_terabyte_is_not_read(tmp_path: pathlib.Path) -> None:
    rows = 10**11
    with open(tmp_path / "x", "wb") as file:
        offset = 0
        for dtype, shape in (("<i4", (rows, 2)), ("<i4", (rows,)), ("|u1", (rows,)), ("|u1", (20,))):
            file.seek(offset)
            made = {"descr": dtype, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, made)  # type: ignore[no-untyped-call]
            offset = file.tell() + np.dtype(dtype).itemsize * int(np.prod(shape))
        file.truncate(offset + 132)
    with pytest.raises(StateError, match=r"rows was 100000000000 and is 100 now"):
        open_index(tmp_path / "x", FINGERPRINT, COUNT)


def test_lengths_beyond_the_task_are_refused(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "rows.jsonl", pairs(COUNT, bad=False))
    options: dict[str, Any] = {"task": mps.DPO(200), "tokenizer": "bytes", "batching": mps.Bucket(4, max_shapes=3)}
    index = pathlib.Path(mps.stream(path, **options).build_index().path)
    file = io.BytesIO(index.read_bytes())
    lengths, keys, verdict, about = (np.load(file) for _ in range(4))
    lengths[7, 1] = keys[7] = 2**31 - 1
    index.write_bytes(index_of(lengths, keys, verdict, about.tobytes()))
    with pytest.raises(
        StateError, match=r"rows\.jsonl\.\w{8}\.mprefidx has a row of 2,147,483,647 tokens, but DPO\(.*at most"
    ):
        mps.stream(path, **options)


@pytest.mark.parametrize("change", ["a good row", "a bad row", "fewer rows"])
def test_a_doctored_index_of_a_cache_is_refused(change: str, tmp_path: pathlib.Path) -> None:
    task, out = mps.DPO(200), tmp_path / "cache"
    stream = mps.stream(
        write(tmp_path / "rows.jsonl", pairs(COUNT)),
        task=task,
        tokenizer="bytes",
        batching=mps.Pad(4),
        on_bad_row="drop",
    )
    mps.write_cache(stream, out, workers=0)
    path = out / "lengths.mprefidx"
    file = io.BytesIO(path.read_bytes())
    lengths, keys, verdict, about = (np.load(file).copy() for _ in range(4))
    row = np.flatnonzero(verdict if change == "a good row" else verdict == 0)[0]
    lengths[row], keys[row], verdict[row] = (9, 9, 0) if change == "a good row" else (0, -1, 64)
    if change == "fewer rows":
        lengths, keys, verdict = lengths[:-1], keys[:-1], verdict[:-1]
        about = np.concatenate([about, np.frombuffer(b" " * 13, np.uint8)])  # the file keeps its size
    path.write_bytes(index_of(lengths, keys, verdict, about.tobytes()))
    values = json.loads((out / "manifest.json").read_text())
    note = values["files"]["lengths.mprefidx"]
    assert note["bytes"] == path.stat().st_size
    note["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    del values["checksum"]
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    values["checksum"] = hashlib.sha256(text.encode()).hexdigest()
    (out / "manifest.json").write_text(json.dumps(values, ensure_ascii=False))
    with pytest.raises(PrefStreamError, match="cache"):
        list(mps.stream(str(out), task=task, tokenizer="bytes", batching=mps.Pad(4)).batches())


CUT_OFF = """
import os, sys
from ms_prefstream.lengths import open_index
index = open_index(sys.argv[1], {"data": "d1", "task": "DPO(60)"}, 100_000)
os.truncate(sys.argv[1], 100)
print(index.keys.sum(), index.lengths.sum(), index.verdict.sum(), index.counts)
"""


def test_an_index_that_is_cut_off_in_use_is_no_signal(tmp_path: pathlib.Path) -> None:
    arrays = (np.full((100_000, 2), 9, np.int32), np.full(100_000, 9, np.int32), np.zeros(100_000, np.uint8))
    (tmp_path / "x").write_bytes(index_of(*arrays, ABOUT))
    run = subprocess.run([sys.executable, "-c", CUT_OFF, tmp_path / "x"], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "900000 1800000 0 ()\n"), run.stderr


@pytest.mark.parametrize(("most", "rows"), [(50, 0), (400, 10), (1500, 90)])
def test_no_room_is_a_sentence_and_the_rows_that_are_stored_stay(
    most: int, rows: int, whole: bytes, loader: SampleLoader, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "CHUNK", 10)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        with pytest.raises(SourceError, match=r"length index .*x cannot be written: File too large"):
            build_index(COUNT, loader, tmp_path / "x", FINGERPRINT, origin=str, raise_malformed=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [file.name for file in tmp_path.iterdir()] == ([f"x{JOURNAL_SUFFIX}"] if most > 100 else [])
    fails = Fails(loader, COUNT)
    build_index(COUNT, fails, tmp_path / "x", FINGERPRINT, origin=str, raise_malformed=False)
    assert (tmp_path / "x").read_bytes() == whole
    assert min([*fails.rows, COUNT]) >= rows


def block(lengths: Any, keys: Any, verdict: Any, rows: int | None = None) -> bytes:
    """A block of a journal with the right checksum; `rows` if it is to state another number."""
    body = b"".join(np.ascontiguousarray(array).tobytes() for array in (lengths, keys, verdict))
    return struct.pack("<II", zlib.crc32(body), len(keys) if rows is None else rows) + body


def resumed(journal: bytes, path: pathlib.Path, loader: SampleLoader) -> bytes:
    """The index of a pass that finds this journal."""
    pathlib.Path(f"{path}{JOURNAL_SUFFIX}").write_bytes(journal)
    build_index(COUNT, loader, path, FINGERPRINT, origin=str, raise_malformed=False)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    return path.read_bytes()


TEN = tuple(array[:10] for array in GOOD)
BLOCKS = {
    "four billion rows": block(*TEN, rows=2**32 - 1),
    "a head alone": struct.pack("<II", 0, 2**32 - 1),
    "no rows": block(*(array[:0] for array in GOOD)),
    "more rows than it has": block(*TEN, rows=11),
    "fewer rows than it has": block(*TEN, rows=9),
    "more rows than the source": block(*(np.concatenate([array, array]) for array in GOOD)),
    "more rows than are left": block(*GOOD),
    "negative lengths": block(-TEN[0], TEN[1], TEN[2]),
    "other keys": block(TEN[0], TEN[1] + 1, TEN[2]),
    "keys of rows without lengths": block(TEN[0] * 0, TEN[1], TEN[2]),
    "unknown verdicts": block(TEN[0], TEN[1], TEN[2] + 200),
    "bad rows with lengths": block(TEN[0], TEN[1], TEN[2] + 64),
    "zeros": bytes(1000),
    "text": b"years of work\n" * 100,
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_doctored_block_is_measured_again(
    name: str, whole: bytes, begun: bytes, loader: SampleLoader, tmp_path: pathlib.Path
) -> None:
    assert resumed(begun + BLOCKS[name], tmp_path / "x", loader) == whole
    first = begun[: begun.index(b"\n") + 1]
    if name != "more rows than are left":
        assert resumed(first + BLOCKS[name], tmp_path / "x", loader) == whole


def test_a_journal_with_more_blocks_than_rows(
    whole: bytes, begun: bytes, loader: SampleLoader, tmp_path: pathlib.Path
) -> None:
    blocks = begun[begun.index(b"\n") + 1 :]  # of 70 rows
    first = begun[: -len(blocks)]
    found = resumed(begun + blocks, tmp_path / "x", loader)  # 30 more are believed
    assert open_index(tmp_path / "x", FINGERPRINT, COUNT).rows == COUNT
    assert resumed(first + blocks, tmp_path / "x", loader) == whole != found


def test_a_journal_that_is_changed_during_the_pass(
    loader: SampleLoader, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "CHUNK", 10)
    journal = tmp_path / f"x{JOURNAL_SUFFIX}"

    class Cuts(Fails):
        def load(self, rows: Any) -> Any:
            if journal.stat().st_size > 300:
                os.truncate(journal, 300)
            return super().load(rows)

    with pytest.raises(StateError, match="changed by another program"):
        build_index(COUNT, Cuts(loader, COUNT), tmp_path / "x", FINGERPRINT, origin=str, raise_malformed=False)
    assert not (tmp_path / "x").exists()


def test_the_first_line_of_a_journal_says_what_it_is(begun: bytes) -> None:
    about = json.dumps({"version": 1, "rows": COUNT, "fingerprint": FINGERPRINT}, sort_keys=True)
    expected = f"ms-prefstream length index journal 1 {hashlib.sha256(about.encode()).hexdigest()}\n".encode()
    assert begun.startswith(expected)
