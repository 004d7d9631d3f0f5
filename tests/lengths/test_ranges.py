"""Part ranges of a length index: what several processes measure and `mps.merge` joins is what one process writes."""

from __future__ import annotations

import fcntl
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import ms_prefstream as mps
from ms_prefstream import OptionError, RowError, StateError
from ms_prefstream.lengths import build
from ms_prefstream.lengths import ranges as ranges_module
from tests.cache.places import flip, rows_with_bad, source
from tests.cli.running import run
from tests.helpers import json_lines, pairs

ROOT = pathlib.Path(__file__).parents[2]
TASK = mps.DPO(128)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "CHUNK", 7)


def index(path: Any, out: pathlib.Path, number: int | None = None, total: int = 8, **options: Any) -> Any:
    given = {"task": TASK, "tokenizer": "bytes", "verbose": False, **options}
    return mps.build_index(path, out, part_range=None if number is None else (number, total), **given)


def index_all(path: Any, out: pathlib.Path, total: int = 8, **options: Any) -> None:
    for number in range(total, 0, -1):
        index(path, out, number, total, **options)


def names(folder: pathlib.Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def rows(count: int = 100) -> list[Any]:
    found = [{**row, "score": number % 9} for number, row in enumerate(rows_with_bad(count))]
    del found[61]["chosen"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("total", [1, 3, 8, 130])
@pytest.mark.parametrize(
    "options", [{}, {"exclude": [{"prompt": "#0# why?"}], "order_by": "field:score"}, {"workers": 2}], ids=str
)
def test_ranges_in_any_order_are_the_whole(total: int, options: dict[str, Any], tmp_path: pathlib.Path) -> None:
    path = source(tmp_path, rows())
    options = {**options, "on_bad_row": "drop"}
    index(path, tmp_path / "one", **{**options, "workers": 0})
    index_all(path, tmp_path / "x", total, **{**options, "workers": options.get("workers", 0) if total == 3 else 0})
    found = mps.merge(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == (tmp_path / "one").read_bytes()
    assert isinstance(found, mps.lengths.LengthIndex)
    assert found.rows == 100
    assert names(tmp_path) == ["one", "rows.jsonl", "x"]


@pytest.mark.slow
def test_eight_processes_at_once(tmp_path: pathlib.Path) -> None:
    path, out = source(tmp_path, rows_with_bad(100)), tmp_path / "x"
    words = ["index", path, "--task", "dpo", "--max-length", "128", "--tokenizer", "bytes", "--out", str(out)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"env": env, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    start = [sys.executable, "-m", "ms_prefstream", *words, "--part-range"]
    for process in [subprocess.Popen([*start, f"{number}/8"], **pipes) for number in range(1, 9)]:
        shown, errors = process.communicate()
        assert process.returncode == 0, errors
        assert f"When all 8 ranges are written: ms-prefstream merge {out}\n" in shown
    index(path, tmp_path / "one")
    mps.merge(out)
    assert out.read_bytes() == (tmp_path / "one").read_bytes()


def test_an_index_beside_its_source(tmp_path: pathlib.Path) -> None:
    path = source(tmp_path)
    found = [mps.build_index(path, task=TASK, tokenizer="bytes", part_range=(n, 2), verbose=False) for n in (1, 2)]
    stream = mps.stream(path, task=TASK, tokenizer="bytes", batching=mps.Pad(2), verbose=False)
    assert stream.data.index is None
    whole = found[0].path.removesuffix(".1-of-2")
    mps.merge(whole)
    stream = mps.stream(path, task=TASK, tokenizer="bytes", batching=mps.Pad(2), verbose=False)
    assert stream.data.index is not None
    assert stream.data.index.path == whole


def test_a_range_that_is_missing_is_named(tmp_path: pathlib.Path) -> None:
    path, out = source(tmp_path), tmp_path / "x"
    for number in (1, 3, 4):
        index(path, out, number, 4)
    with pytest.raises(StateError, match=r"part range 2/4 of the length index .*x has not been .*part_range=\(2, 4\)"):
        mps.merge(out)
    assert not out.exists()
    index(path, out, 2, 4)
    mps.merge(out)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": mps.DPO(99)}, r"part range 2/2 \(.*x\.2-of-2\) does not belong to part range 1/2: task was"),
        ({"boundary": "inference"}, "boundary was 'joint' and is 'inference' now"),
        ({"total": 3}, r"x\.1-of-2 and .*x\.2-of-3 cover some of the same rows: one is of 2 ranges, the other of 3"),
        ({"exclude": [{"prompt": "a"}]}, "exclude was None and is '1 prompts"),
    ],
)
def test_foreign_and_doubled_ranges_are_named(change: dict[str, Any], said: str, tmp_path: pathlib.Path) -> None:
    path, out = source(tmp_path), tmp_path / "x"
    options = {"total": 2, **change}
    index(path, out, 1, 2)
    index(path, out, 2, **options)
    with pytest.raises(StateError, match=said):
        mps.merge(out)
    assert not out.exists()


def test_other_data_are_foreign(tmp_path: pathlib.Path) -> None:
    path, out = source(tmp_path), tmp_path / "x"
    index(path, out, 1, 2)
    json_lines(tmp_path / "rows.jsonl", pairs(60))
    index(path, out, 2, 2)
    with pytest.raises(StateError, match=r"does not belong to part range 1/2: data was .*part_range=\(2, 2\)"):
        mps.merge(out)


def test_a_damaged_range_is_named(tmp_path: pathlib.Path) -> None:
    path, out = source(tmp_path), tmp_path / "x"
    index_all(path, out, 2)
    flip(tmp_path / "x.2-of-2", 200)
    with pytest.raises(StateError, match=r"part range 2/2: .*x\.2-of-2 is damaged.*part_range=\(2, 2\)"):
        mps.merge(out)


class Interrupted(BaseException):
    pass


def test_an_interrupted_range_resumes(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out, real = source(tmp_path, rows_with_bad(100)), tmp_path / "x", build.Journal.append
    index(path, tmp_path / "one")
    index(path, out, 1, 2)
    appended: list[int] = []

    def append(journal: Any, measured: Any) -> None:
        if len(appended) == 3:
            raise Interrupted
        real(journal, measured)
        appended.append(len(measured.verdict))

    with monkeypatch.context() as patch:
        patch.setattr(build.Journal, "append", append)
        with pytest.raises(Interrupted):
            index(path, out, 2, 2)
    assert names(tmp_path) == ["one", "rows.jsonl", "x.1-of-2", "x.2-of-2.journal"]
    with pytest.raises(StateError, match="part range 2/2"):
        mps.merge(out)
    monkeypatch.setattr(build.Journal, "append", lambda *given: appended.append(len(given[1].verdict)) or real(*given))
    index(path, out, 2, 2)
    assert appended == [7, 7, 7, 7, 7, 7, 7, 1]  # 50 rows, none of them twice
    mps.merge(out)
    assert out.read_bytes() == (tmp_path / "one").read_bytes()


def test_an_interrupted_merge_resumes(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out, real = source(tmp_path), tmp_path / "x", os.unlink
    index_all(path, out, 4)

    def unlink(file: Any) -> None:
        if str(file).endswith("3-of-4"):
            raise Interrupted
        real(file)

    with monkeypatch.context() as patch:
        patch.setattr(ranges_module.os, "unlink", unlink)
        with pytest.raises(Interrupted):
            mps.merge(out)
    assert names(tmp_path) == ["rows.jsonl", "x", "x.3-of-4", "x.4-of-4"]
    mps.merge(out)
    assert names(tmp_path) == ["rows.jsonl", "x"]


def test_a_range_waits_for_its_writer_alone(tmp_path: pathlib.Path) -> None:
    path, out = source(tmp_path), tmp_path / "x"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build.Journal, "remove", lambda journal: None)
        index(path, out, 1, 2)
    with (tmp_path / "x.1-of-2.journal").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StateError, match=r"another process is building the length index .*x\.1-of-2"):
            index(path, out, 1, 2)
        index(path, out, 2, 2)
    index(path, out, 1, 2)
    mps.merge(out)
    assert names(tmp_path) == ["rows.jsonl", "x"]


def test_the_first_range_decides_open_settings(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The day that a template shows is that of the host that finishes first, whenever the others begin."""
    template = "{{ strftime_now('%Y') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    path, out, days = source(tmp_path), tmp_path / "x", iter(["2026-05-01", "2026-05-02"])
    monkeypatch.setattr("ms_prefstream.steps.data.first_day", lambda *_: next(days))
    first = index(path, out, 1, 2, template=template)
    assert first.fingerprint["template_date"] == "2026-05-01"
    index(path, out, 2, 2, template=template)
    assert mps.merge(out).fingerprint["template_date"] == "2026-05-01"  # type: ignore[union-attr]


def test_malformed_rows_are_those_of_their_range(tmp_path: pathlib.Path) -> None:
    path, out = source(tmp_path, rows()), tmp_path / "x"
    index(path, out, 1, 2)
    with pytest.raises(RowError, match=r"rows\.jsonl:62"):
        index(path, out, 2, 2)


def test_what_cannot_be_divided(tmp_path: pathlib.Path) -> None:
    path, out = source(tmp_path), tmp_path / "x"
    with pytest.raises(OptionError, match="duplicates are looked for among all rows"):
        index(path, out, 1, dedup="row")
    with pytest.raises(OptionError, match="part_range divides the rows of one source, and this is a mix of 2 parts"):
        index(mps.mix([(path, 1), (pairs(9), 1)]), out, 1)
    with pytest.raises(OptionError, match=r"part_range\[0\] is 9; expected a whole number in 1\.\.8"):
        index(path, out, 9)
    (tmp_path / "x.1-of-8").write_text("years of work")
    with pytest.raises(OptionError, match=r"x\.1-of-8 exists and holds something else"):
        index(path, out, 1)
    with pytest.raises(StateError, match=r"x\.1-of-8 is damaged or no length index"):
        mps.merge(out)
    assert (tmp_path / "x.1-of-8").read_text() == "years of work"


def test_a_stranger_at_the_place_of_the_index(tmp_path: pathlib.Path) -> None:
    path, out = source(tmp_path), tmp_path / "x"
    index_all(path, out, 2)
    np.save(out.open("wb"), np.arange(3))
    with pytest.raises(OptionError, match="holds something else"):
        mps.merge(out)
    assert np.load(out).tolist() == [0, 1, 2]


def test_the_commands(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = source(tmp_path), tmp_path / "x"
    words = ["index", path, "--task", "dpo", "--max-length", "128", "--tokenizer", "bytes", "--out", str(out)]
    assert run(monkeypatch, *words, "--part-range", "1/2") == 0
    assert "ms-prefstream merge" in capsys.readouterr().out
    assert run(monkeypatch, "merge", str(out)) == 1
    assert "with --part-range 2/2, then merge again" in capsys.readouterr().err
    assert run(monkeypatch, *words, "--part-range", "2/2", "--dedup", "row") == 2
    assert run(monkeypatch, *words, "--part-range", "2/2") == 0
    assert run(monkeypatch, "merge", str(out)) == 0
    assert f"of 50 rows can be used; written to {out}\n" in capsys.readouterr().out
