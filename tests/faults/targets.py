"""What the fault suite disturbs: every operation that writes files, and those that read them.

Each makes its inputs in a folder, works on them, and says which of its files a reader would take for whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click
import fsspec

import ms_prefstream as mps
from ms_prefstream.cache import folder as staging
from ms_prefstream.html.build import stats_report
from ms_prefstream.mindspore.checkpoint import CheckpointWriter, load_state
from tests.cache.places import rows_with_bad, source, tree
from tests.cache.test_reference import logps

TASK = mps.DPO(128)
PART, ROWS = 12, 24
FORMER = mps.DPO(64)
"""The task of what is there before, which is to be replaced."""

Files = dict[str, bytes]


@dataclass(frozen=True)
class Target:
    """One operation.

    Attributes:
        name: What it is called in tests.
        work: Folder -> what the caller gets, to be compared. It may be repeated in the same process.
        whole: Names of files and folders in ``out``, as patterns: each is what it was, or what it must become.
        prepare: Makes what is there before, besides the rows.
        grows: Files in ``out`` that are written line by line: they hold the first of the new lines, or what they held.
        may_warn: Whether the call may go on without its file, with a warning.
        writes: Whether it writes any file.
    """

    name: str
    work: Callable[[pathlib.Path], Any]
    whole: tuple[str, ...] = ()
    prepare: Callable[[pathlib.Path], None] = lambda folder: None
    grows: tuple[str, ...] = ()
    may_warn: bool = False
    writes: bool = True

    def make(self, folder: pathlib.Path) -> None:
        """Makes the inputs, and what is there before."""
        for name in ("in", "out", "tmp", "home"):
            (folder / name).mkdir(parents=True)
        source(folder / "in", rows_with_bad(ROWS))
        store().clear()
        self.prepare(folder)


def store() -> dict[str, Any]:
    """The files of the store in memory."""
    found: dict[str, Any] = fsspec.filesystem("memory").store
    return found


def stored() -> Files:
    """The files of the store in memory, with their bytes."""
    return {name: file.getvalue() for name, file in store().items()}


def put(url: str, data: bytes) -> None:
    fsspec.filesystem("memory").pipe_file(url, data)


def _stream(given: Any, task: Any = TASK, **options: Any) -> mps.Stream:
    given = str(given) if isinstance(given, pathlib.Path) else given
    options = {"tokenizer": "bytes", "batching": mps.Pad(4), "on_bad_row": "drop", "verbose": False, **options}
    return mps.stream(given, task=task, seed=3, **options)


def _digest(batches: Any) -> str:
    digest = hashlib.sha256()
    for batch in batches:
        for name, values in batch.items():
            digest.update(name.encode() + values.tobytes())
    return digest.hexdigest()


def _cache(layout: str, workers: int = 0) -> Callable[[pathlib.Path], Any]:
    def work(folder: pathlib.Path) -> Any:
        stream = _stream(folder / "in" / "rows.jsonl")
        out = folder / "out" / "cache"
        aside = out.with_name("cache.writing") / staging.FORMER  # where a swap that could not be undone leaves it
        options: Any = {"overwrite": True} if layout != "megatron" or _may_exist(out) or _may_exist(aside) else {}
        made = mps.write_cache(stream, out, layout=layout, rows_per_part=PART, workers=workers, **options)
        return made.rows, made.source_rows

    return work


def _may_exist(path: pathlib.Path) -> bool:
    """Returns whether a path exists, or cannot be looked up: this operation of the suite fails like others."""
    try:
        return path.exists()
    except OSError:
        return True


def _former_cache(layout: str) -> Callable[[pathlib.Path], None]:
    def prepare(folder: pathlib.Path) -> None:
        mps.write_cache(_stream(folder / "in" / "rows.jsonl", FORMER), folder / "out" / "cache", layout=layout)

    return prepare


def _index(folder: pathlib.Path, path: pathlib.Path, task: Any = TASK, **options: Any) -> Any:
    options = {"tokenizer": "bytes", "on_bad_row": "drop", "verbose": False, **options}
    return mps.build_index(str(folder / "in" / "rows.jsonl"), path, task=task, **options)


def _build(folder: pathlib.Path) -> Any:
    made = _index(folder, folder / "out" / "x.mprefidx")
    return made.rows, made.checksum


def _former_index(folder: pathlib.Path) -> None:
    _index(folder, folder / "out" / "x.mprefidx", FORMER)


def _states(folder: pathlib.Path, first: int, last: int) -> None:
    stream = _stream(folder / "in" / "rows.jsonl")
    if first:
        stream = stream.resume(load_state(folder / "out" / "states", first))
    writer = CheckpointWriter(stream, folder / "out" / "states", keep=2)
    for step in range(first + 1, last + 1):
        writer.step_end(step)


def _quarantined(folder: pathlib.Path) -> Any:
    return _digest(_stream(folder / "in" / "rows.jsonl", quarantine=folder / "out" / "bad.jsonl").batches())


def _half_quarantined(folder: pathlib.Path) -> None:
    stream = _stream(folder / "in" / "rows.jsonl", quarantine=folder / "out" / "bad.jsonl", window=8)
    batches = stream.batches()
    for _ in range(4):
        next(batches)
    states = CheckpointWriter(stream, folder / "in" / "states")
    states.step_end(4)


def _quarantined_on(folder: pathlib.Path) -> Any:
    stream = _stream(folder / "in" / "rows.jsonl", quarantine=folder / "out" / "bad.jsonl", window=8)
    return _digest(stream.resume(load_state(folder / "in" / "states")).batches())


def _ranges(folder: pathlib.Path) -> Any:
    out = folder / "out" / "cache"
    if not os.path.exists(out):
        for number in (1, 2):
            stream = _stream(folder / "in" / "rows.jsonl")
            mps.write_cache(stream, out, layout="ragged", rows_per_part=PART, part_range=(number, 2))
    if not os.path.exists(out) or os.path.exists(folder / "out" / "cache.writing"):
        mps.merge(out)


def _index_ranges(folder: pathlib.Path) -> Any:
    path = folder / "out" / "x.mprefidx"
    if not os.path.exists(path):
        for number in (1, 2):
            _index(folder, path, part_range=(number, 2))
    if not os.path.exists(path) or list(path.parent.glob("x.mprefidx.*-of-2")):
        mps.merge(path)


def _put_rows(folder: pathlib.Path) -> None:
    put("/rows.jsonl", (folder / "in" / "rows.jsonl").read_bytes())


def _put_cache(folder: pathlib.Path) -> None:
    mps.write_cache(_stream(folder / "in" / "rows.jsonl"), folder / "in" / "cache", rows_per_part=PART)
    for name, data in tree(folder / "in" / "cache").items():
        put(f"/cache/{name}", data)


def _copied(url: str) -> Callable[[pathlib.Path], Any]:
    return lambda folder: _digest(
        _stream(url, cache_dir=str(folder / "out"), **({"tokenizer": None} if url.endswith("cache") else {})).batches()
    )


def _published(folder: pathlib.Path) -> Any:
    stream = _stream(folder / "in" / "rows.jsonl")
    made = mps.write_cache(stream, "memory:///made", rows_per_part=PART, cache_dir=str(folder / "out"), overwrite=True)
    return made.rows


def _with_reference(folder: pathlib.Path) -> Any:
    made = mps.write_cache(
        _stream(folder / "in" / "rows.jsonl"), folder / "out" / "cache", rows_per_part=PART, overwrite=True,
        reference=logps, reference_id="sft",
    )  # fmt: skip
    return made.rows


def _some_cache(folder: pathlib.Path) -> None:
    mps.write_cache(_stream(folder / "in" / "rows.jsonl"), folder / "out" / "cache", rows_per_part=PART)


def _report(folder: pathlib.Path) -> Any:
    rows, encoding = str(folder / "in" / "rows.jsonl"), {"task": TASK, "tokenizer": "bytes"}
    found = mps.stats(rows, **encoding, progress=False)
    stats_report(folder / "out" / "report.html", found.to_dict(), rows, encoding, rows=4)
    return found.rows


def _init(folder: pathlib.Path) -> Any:
    from ms_prefstream.cli.main import commands

    words = ["init", str(folder / "in" / "rows.jsonl"), "--task", "dpo", "--tokenizer", "bytes"]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            commands([*words, "--out", str(folder / "out" / "made"), "--overwrite"], standalone_mode=False)
    except click.ClickException as error:
        raise error.__cause__ or error from None


def _read_sources(folder: pathlib.Path) -> None:
    import gzip

    import pyarrow as pa
    import pyarrow.parquet as pq
    import zstandard

    rows, here = rows_with_bad(ROWS), folder / "in"
    text = (here / "rows.jsonl").read_bytes()
    (here / "rows.jsonl.gz").write_bytes(gzip.compress(text, mtime=0))
    (here / "rows.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(text))
    import orjson

    (here / "rows.json").write_bytes(orjson.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), here / "rows.parquet")
    mps.write_cache(_stream(here / "rows.jsonl"), here / "cache", rows_per_part=PART)
    _index(folder, here / "rows.mprefidx")


def _read(name: str, **options: Any) -> Callable[[pathlib.Path], Any]:
    def work(folder: pathlib.Path) -> Any:
        given = dict(options)
        if "index" in given:
            given["index"] = folder / "in" / given["index"]
        return _digest(_stream(folder / "in" / name, window=8, **given).batches())

    return work


TARGETS = {
    target.name: target
    for target in (
        Target("ragged", _cache("ragged"), ("cache",)),
        Target("megatron", _cache("megatron"), ("cache",)),
        Target("mindrlhf", _cache("mindrlhf"), ("cache",)),
        Target("replaced", _cache("ragged"), ("cache",), _former_cache("ragged")),
        Target("replaced megatron", _cache("megatron"), ("cache",), _former_cache("megatron")),
        Target("reference", _with_reference, ("cache",)),
        Target("added reference", _with_reference, ("cache/manifest.json",), _some_cache),
        Target("index", _build, ("x.mprefidx",)),
        Target("replaced index", _build, ("x.mprefidx",), _former_index),
        Target("states", lambda folder: _states(folder, 0, 1), ("states/*",), may_warn=True),
        Target(
            "more states",
            lambda folder: _states(folder, 2, 3),
            ("states/*",),
            lambda folder: _states(folder, 0, 2),
            may_warn=True,
        ),
        Target("quarantine", _quarantined, grows=("bad.jsonl",)),
        Target("kept quarantine", _quarantined_on, (), _half_quarantined, grows=("bad.jsonl",)),
        Target("ranges", _ranges, ("cache",)),
        Target("index ranges", _index_ranges, ("x.mprefidx",)),
        Target("copy", _copied("memory:///rows.jsonl"), prepare=_put_rows),
        Target("cache copy", _copied("memory:///cache"), prepare=_put_cache),
        Target("publish", _published),
        Target("init", _init, ("made/*",)),
        Target("report", _report, ("report.html",)),
        Target("json lines", _read("rows.jsonl"), prepare=_read_sources, writes=False),
        Target("gz", _read("rows.jsonl.gz"), prepare=_read_sources, writes=False),
        Target("zst", _read("rows.jsonl.zst"), prepare=_read_sources, writes=False),
        Target("json", _read("rows.json"), prepare=_read_sources, writes=False),
        Target("parquet", _read("rows.parquet"), prepare=_read_sources, writes=False),
        Target("cache read", _read("cache", tokenizer=None), prepare=_read_sources, writes=False),
        Target("index read", _read("rows.jsonl", index="rows.mprefidx"), prepare=_read_sources, writes=False),
    )
}
