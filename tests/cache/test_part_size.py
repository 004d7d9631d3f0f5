"""The size of a part in MB: converted to rows once, by the first 1,000 rows."""

from __future__ import annotations

import gzip
import pathlib
from typing import Any

import orjson
import pytest

import ms_prefstream as mps
from ms_prefstream import OptionError
from ms_prefstream.cache import part_size
from ms_prefstream.cache import write as write_module
from ms_prefstream.mindrecord.manifest import read_manifest
from tests.cache.places import rows_with_bad, source, stream_of, tree
from tests.helpers import json_lines, pairs

TASK = mps.DPO(128)


def write(path: Any, out: pathlib.Path, **options: Any) -> Any:
    return mps.write_cache(stream_of(path, options.pop("task", TASK)), out, **options)


def rows_of(manifest: Any) -> int:
    found: int = manifest.about["rows_per_part"]
    return found


@pytest.mark.parametrize(("layout", "count", "megabytes"), [("ragged", 3000, 0.5), ("mindrlhf", 600, 3)])
def test_files_have_about_the_size(layout: str, count: int, megabytes: float, tmp_path: pathlib.Path) -> None:
    path = source(tmp_path, [{**row, "chosen": row["chosen"] * 8} for row in pairs(count)])
    manifest = write(path, tmp_path / "out", layout=layout, mb_per_part=megabytes, task=mps.DPO(1024))
    sizes = [
        sum(manifest.files[name + suffix].bytes for suffix in ("", ".db"))
        for name in sorted(manifest.files)
        if name.endswith(".mindrecord")
    ]
    assert len(sizes) > 3
    assert all(0.8 < size / megabytes / 1e6 < 1.2 for size in sizes[:-1]), sizes
    write(path, tmp_path / "same", layout=layout, rows_per_part=rows_of(manifest), task=mps.DPO(1024))
    assert tree(tmp_path / "same") == tree(tmp_path / "out")


def test_only_the_first_rows_decide(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_size, "_MEASURED", 20)
    rows = pairs(40)
    for name, more in (("a", 1), ("b", 90)):
        path = json_lines(tmp_path / f"{name}.jsonl", rows[:20] + [{**row, "chosen": "x" * more} for row in rows[20:]])
        write(path, tmp_path / name, mb_per_part=0.02)
    assert rows_of(read_manifest(str(tmp_path / "a"))) == rows_of(read_manifest(str(tmp_path / "b")))


def test_a_run_that_resumes_and_ranges_take_the_number_of_the_plan(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = source(tmp_path, pairs(100)), tmp_path / "out"
    first = write(path, out, mb_per_part=0.1, part_range=(1, 2))
    monkeypatch.setattr(write_module, "rows_of_size", lambda *_: pytest.fail("measured again"))
    assert rows_of(write(path, out, mb_per_part=0.1, part_range=(2, 2))) == rows_of(first)
    assert rows_of(write(path, out, mb_per_part=0.1)) == rows_of(first)
    monkeypatch.undo()
    assert rows_of(write(path, out, mb_per_part=0.3, overwrite=True)) > rows_of(first)  # no plan is left


def test_a_source_that_is_read_from_the_front(tmp_path: pathlib.Path) -> None:
    plain = source(tmp_path, pairs(60))
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b"".join(orjson.dumps(row) + b"\n" for row in pairs(60))))
    stream = stream_of(str(tmp_path / "rows.jsonl.gz"), TASK, steps_per_epoch=1)
    packed = mps.write_cache(stream, tmp_path / "packed", mb_per_part=0.05)
    assert rows_of(packed) == rows_of(write(plain, tmp_path / "plain", mb_per_part=0.05)) < 60


def test_rows_that_cannot_be_used_have_no_size(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_size, "_MEASURED", 2)
    rows = [{**row, "chosen": ""} for row in pairs(2)] + pairs(5)
    assert rows_of(write(source(tmp_path, rows), tmp_path / "out", mb_per_part=1)) == 8192


@pytest.mark.parametrize("given", [0, -1, float("nan"), "64", True])
def test_what_is_no_size(given: Any, tmp_path: pathlib.Path) -> None:
    with pytest.raises(OptionError, match=r"mb_per_part is .*; expected a number above 0"):
        write(source(tmp_path), tmp_path / "out", mb_per_part=given)


def test_both_sizes_and_rows_that_are_gone(tmp_path: pathlib.Path) -> None:
    with pytest.raises(OptionError, match="Give only one of them"):
        write(source(tmp_path), tmp_path / "out", mb_per_part=1, rows_per_part=8)
    stream = mps.stream(iter(pairs(20)), task=TASK, tokenizer="bytes", batching=mps.Pad(1), steps_per_epoch=1)
    with pytest.raises(OptionError, match=r"can be read only once\. Give rows_per_part"):
        mps.write_cache(stream, tmp_path / "out", mb_per_part=1)


def test_rows_that_an_index_leaves_out_are_counted_once(tmp_path: pathlib.Path) -> None:
    """A cache of a stream with an index; its report says the same before and after."""
    path = source(tmp_path, rows_with_bad(60))
    stream = stream_of(path, TASK, quarantine=tmp_path / "bad.jsonl", index="build")
    before, quarantine = stream.report.as_dict(), (tmp_path / "bad.jsonl").read_bytes()
    assert sum(before["dropped"].values()) == len(quarantine.splitlines()) > 5
    mps.write_cache(stream, tmp_path / "out", rows_per_part=16)
    assert stream.report.as_dict() == before
    assert (tmp_path / "bad.jsonl").read_bytes() == quarantine
    alone = mps.write_cache(stream_of(path, TASK, index=None), tmp_path / "alone", rows_per_part=16)
    assert read_manifest(str(tmp_path / "out")).dropped == alone.dropped
