"""Part ranges: what several processes write and `mps.merge` completes is what one process writes, byte for byte."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream import OptionError, StateError
from ms_prefstream.cache import folder as folder_module
from ms_prefstream.cache import parts
from ms_prefstream.cache import write as write_module
from ms_prefstream.cache.folder import StagingFolder
from ms_prefstream.cache.verify import verify
from ms_prefstream.part_range import PartRange
from tests.cache.places import PART, flip, rows_with_bad, source, stream_of, tree
from tests.cli.running import run
from tests.helpers import json_lines, pairs

ROOT = pathlib.Path(__file__).parents[2]
TASK = mps.DPO(128)


def write(path: Any, out: pathlib.Path, number: int | None = None, total: int = 8, **options: Any) -> Any:
    made = {name: options.pop(name) for name in ("on_bad_row", "quarantine", "carry", "tokenizer") if name in options}
    task = options.pop("task", TASK)
    options.setdefault("rows_per_part", PART)
    share = None if number is None else (number, total)
    return mps.write_cache(stream_of(path, task, **made), out, part_range=share, **options)


def write_all(path: Any, out: pathlib.Path, total: int = 8, **options: Any) -> None:
    for number in range(total, 0, -1):
        write(path, out, number, total, **options)


def rows(count: int = 200) -> list[Any]:
    """Rows with values to carry, of which some cannot be used and one is malformed."""
    found = [{**row, "id": number, "note": f"n{number}"} for number, row in enumerate(rows_with_bad(count))]
    del found[101]["chosen"]
    return found


@pytest.mark.parametrize(
    ("layout", "task"),
    [
        ("ragged", TASK),
        ("mindrlhf", TASK),
        ("megatron", TASK),
        ("mindformers", mps.Reward(128)),
        ("ragged", mps.RLHF(48, 128)),
    ],
)
def test_ranges_in_any_order_are_the_whole(layout: str, task: Any, tmp_path: pathlib.Path) -> None:
    path = source(tmp_path, rows())
    carry = None if layout == "megatron" else ["id", "note"]  # it has no place for them
    options: dict[str, Any] = {"layout": layout, "task": task, "on_bad_row": "drop", "carry": carry}
    whole = write(path, tmp_path / "one", **options, quarantine=tmp_path / "bad.jsonl")
    write_all(path, tmp_path / "out", **options, quarantine=tmp_path / "part.jsonl")
    assert not (tmp_path / "out").exists()
    assert mps.merge(tmp_path / "out") == whole
    assert tree(tmp_path / "out") == tree(tmp_path / "one")
    assert not any(one.problem for one in verify(str(tmp_path / "out")))
    assert not (tmp_path / "out.writing").exists()
    quarantines = [tmp_path / f"part.{number}-of-8.jsonl" for number in range(1, 9)]
    assert b"".join(one.read_bytes() for one in quarantines) == (tmp_path / "bad.jsonl").read_bytes()


def command(path: str, out: pathlib.Path, *more: str) -> list[str]:
    words = ["cache", path, str(out), "--task", "dpo", "--max-length", "128", "--tokenizer", "bytes"]
    return [sys.executable, "-m", "ms_prefstream", *words, "--rows-per-part", str(PART), "--workers", "0", *more]


@pytest.mark.slow
def test_eight_processes_at_once(tmp_path: pathlib.Path) -> None:
    path, out = source(tmp_path, rows_with_bad(200)), tmp_path / "out"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"env": env, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(command(path, out, "--part-range", f"{n}/8"), **pipes) for n in range(1, 9)]
    for process in started:
        shown, errors = process.communicate()
        assert process.returncode == 0, errors
        assert f"When all 8 ranges are written: ms-prefstream merge {out}" in shown
    write(path, tmp_path / "one")
    mps.merge(out)
    assert tree(out) == tree(tmp_path / "one")


def test_more_ranges_than_parts(tmp_path: pathlib.Path) -> None:
    path = source(tmp_path)
    write(path, tmp_path / "one")
    assert [write(path, tmp_path / "out", number, 9).source_rows for number in range(1, 10)].count(0) == 5
    mps.merge(tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "one")


@pytest.mark.parametrize("left", [(), ("plan.json",), ("plan.json", "range-1-of-2.lock")])
def test_a_merge_that_is_killed_at_its_very_end_can_be_repeated(left: tuple[str, ...], tmp_path: pathlib.Path) -> None:
    path, out = source(tmp_path, rows_with_bad(40)), tmp_path / "out"
    write_all(path, out, 2)
    manifest = mps.merge(out)
    (tmp_path / "out.writing").mkdir()
    for name in left:
        (tmp_path / "out.writing" / name).write_text('{"format": "ms_prefstream plan"}' if name == "plan.json" else "")
    assert mps.merge(out) == manifest
    assert not (tmp_path / "out.writing").exists()
    with pytest.raises(OptionError, match="there are no part ranges"):
        mps.merge(out)


def test_a_range_that_is_missing_is_named(tmp_path: pathlib.Path) -> None:
    path, out = source(tmp_path, rows_with_bad(200)), tmp_path / "out"
    write(path, out, 1)
    write(path, out, 4)
    with pytest.raises(
        StateError,
        match=r"part range 2/8, 3/8, 5/8, 6/8, 7/8 and 1 more of the cache .* with part_range=\(2, 8\) and so on",
    ):
        mps.merge(out)
    for number in (2, 3, 5, 6, 7):
        write(path, out, number)
    with pytest.raises(
        StateError, match=r"part range 8/8 of the cache .* has not been written.*part_range=\(8, 8\), then"
    ):
        mps.merge(out)
    assert not out.exists()
    write(path, out, 8)
    mps.merge(out)


def test_parts_that_are_missing_or_damaged_are_named_and_written_again(tmp_path: pathlib.Path) -> None:
    path, out = source(tmp_path, rows_with_bad(200)), tmp_path / "out"
    write(path, tmp_path / "one")
    write_all(path, out)
    new = out.with_name("out.writing") / "new"
    flip(new / "part-00004.mindrecord", 20_000)
    (new / "part-00011.mindrecord.db").unlink()
    with pytest.raises(
        StateError, match=r"part 4 of range 4/8, part 11 of range 8/8\. .*part_range=\(4, 8\) and so on"
    ):
        mps.merge(out)
    write(path, out, 4)
    with pytest.raises(StateError, match=r"damaged: part 11 of range 8/8\. "):
        mps.merge(out)
    write(path, out, 8)
    mps.merge(out)
    assert tree(out) == tree(tmp_path / "one")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": mps.DPO(100)}, "max_length of the task dpo was 128 and is 100 now"),
        ({"rows_per_part": 20}, "rows_per_part was 16 and is 20 now"),
        ({"layout": "mindrlhf"}, "layout was 'ragged' and is 'mindrlhf' now"),
        ({"on_bad_row": "drop"}, "on_bad_row was 'raise' and is 'drop' now"),
        ({"total": 4}, r"part_range is 2/4, but .* has the range 1/8\. Give every host one of 8 ranges"),
    ],
)
def test_a_foreign_range_is_refused_at_its_begin(change: dict[str, Any], said: str, tmp_path: pathlib.Path) -> None:
    path, out = source(tmp_path), tmp_path / "out"
    write(path, out, 1)
    before = tree(tmp_path)
    with pytest.raises(StateError, match=said):
        write(path, out, 2, **change)
    if "total" not in change:
        with pytest.raises(StateError, match=said):
            write(path, out, **change)
    after = tree(tmp_path)
    assert {name: after.pop(name) for name in set(after) - set(before)} == {}
    assert after == before


def test_other_data_and_another_tokenizer_are_foreign(tmp_path: pathlib.Path) -> None:
    path, out = source(tmp_path), tmp_path / "out"
    write(path, out, 1)
    json_lines(tmp_path / "rows.jsonl", [*rows_with_bad()[:-1], pairs(51)[-1]])
    with pytest.raises(StateError, match=r"part range 1/8 .* is of another cache: .*data was another one"):
        write(path, out, 2)


def test_another_name_of_the_source_is_foreign(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is in the manifest, and in the origins of dropped rows."""
    path, out = source(tmp_path), tmp_path / "out"
    write(path, out, 1)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StateError, match=rf"part range 1/8 .* is of another cache: source was '{path}' and is 'rows."):
        write("rows.jsonl", out, 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows_per_part": 8}, r"range 2/2 .* is of another cache than part range 1/2: rows_per_part was 16 and is 8"),
        ({"task": mps.DPO(99)}, "max_length of the task dpo was 128 and is 99 now"),
        ({"total": 3}, r"has the part ranges 1/2 and 2/3: both cover some of the parts\. Delete range-2-of-3\.json or"),
    ],
)  # fmt: skip
def test_foreign_and_doubled_ranges_that_were_copied_together(
    change: dict[str, Any], said: str, tmp_path: pathlib.Path
) -> None:
    """Hosts without a common folder, whose staging folders somebody copies into one."""
    path, out, other = source(tmp_path), tmp_path / "out", tmp_path / "other"
    total = change.pop("total", 2)
    write(path, out, 1, 2)
    write(path, other, 2, total, **change)
    for file in (tmp_path / "other.writing").rglob("*"):
        if file.is_file():
            file.rename(tmp_path / "out.writing" / file.relative_to(tmp_path / "other.writing"))
    with pytest.raises(StateError, match=said):
        mps.merge(out)
    assert not out.exists()


def test_one_process_completes_what_ranges_have_begun(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out, begun = source(tmp_path, rows_with_bad(200)), tmp_path / "out", []
    write(path, tmp_path / "one")
    for number in (2, 5):
        write(path, out, number, 5)
    real = parts.write_part
    monkeypatch.setattr(
        write_module, "write_part", lambda loader, task: begun.append(task.number) or real(loader, task)
    )
    write(path, out)
    assert begun == [0, 1, *range(5, 10)]
    assert tree(out) == tree(tmp_path / "one")
    assert not (tmp_path / "out.writing").exists()


class Interrupted(BaseException):
    pass


def test_an_interrupted_range_resumes(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out, begun = source(tmp_path, rows_with_bad(200)), tmp_path / "out", []
    write(path, tmp_path / "one")
    real = parts.write_part

    def failing(loader: Any, task: Any) -> Any:
        begun.append(task.number)
        if task.number == 8:
            raise Interrupted
        return real(loader, task)

    write(path, out, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(write_module, "write_part", failing)
        with pytest.raises(Interrupted):
            write(path, out, 2, 2)
        with pytest.raises(StateError, match=r"damaged: part 8 of range 2/2\. "):
            mps.merge(out)
        begun.clear()
        patch.setattr(write_module, "write_part", lambda loader, task: begun.append(task.number) or real(loader, task))
        write(path, out, 2, 2)
    assert begun == [8, 9, 10, 11, 12]
    mps.merge(out)
    assert tree(out) == tree(tmp_path / "one")


@pytest.mark.parametrize("layout", ["ragged", "megatron"])
@pytest.mark.parametrize("call", ["seal", "publish", "remove"])
def test_an_interrupted_merge_resumes(
    call: str, layout: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = source(tmp_path), tmp_path / "out"
    write(path, tmp_path / "one", layout=layout)
    write_all(path, out, 2, layout=layout)

    def fails(*_: Any) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(StagingFolder, call, fails)
        with pytest.raises(Interrupted):
            mps.merge(out)
    mps.merge(out)
    assert tree(out) == tree(tmp_path / "one")
    assert not (tmp_path / "out.writing").exists()


def test_who_waits_for_whom(tmp_path: pathlib.Path) -> None:
    path, out = source(tmp_path), tmp_path / "out"
    write(path, out, 1, 2)
    with StagingFolder(str(out), PartRange(2, 2)):
        with pytest.raises(StateError, match="another process is writing part range 2/2 of the cache"):
            write(path, out, 2, 2)
        with pytest.raises(StateError, match=r"another process is writing the cache .* or part of it"):
            mps.merge(out)
        with pytest.raises(StateError, match=r"another process is writing the cache .* or part of it"):
            write(path, out)
        write(path, out, 1, 2)
    with StagingFolder(str(out)), pytest.raises(StateError, match="another process is writing the cache"):
        write(path, out, 2, 2)
    write(path, out, 2, 2)
    mps.merge(out)


def test_without_locks_the_ranges_are_the_same(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    path, out = source(tmp_path), tmp_path / "out"
    write(path, tmp_path / "one")
    monkeypatch.setattr(folder_module.fcntl, "flock", refused)
    with StagingFolder(str(out), PartRange(2, 2)):
        write_all(path, out, 2)
    assert (tmp_path / "out.writing").is_dir()
    mps.merge(out)
    assert tree(out) == tree(tmp_path / "one")
    assert fcntl.flock is refused


def test_nothing_is_left_of_a_range_that_was_refused(tmp_path: pathlib.Path) -> None:
    path = source(tmp_path)
    write(path, tmp_path / "out")
    with pytest.raises(OptionError, match=r"exists with the same samples"):
        write(path, tmp_path / "out", 1)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "rows.jsonl"]
    write_all(path, tmp_path / "out", 2, overwrite=True)
    with pytest.raises(OptionError, match="Pass overwrite=True"):
        mps.merge(tmp_path / "out")
    mps.merge(tmp_path / "out", overwrite=True)


@pytest.mark.parametrize("given", [(0, 8), (9, 8), (1, 0), "3/8", 3, (1.5, 8), (1, 2, 3), (True, 8)])
def test_what_is_no_range(given: Any, tmp_path: pathlib.Path) -> None:
    with pytest.raises(OptionError, match="part_range"):
        mps.write_cache(stream_of(source(tmp_path), TASK), tmp_path / "out", part_range=given)


def test_what_cannot_be_divided(tmp_path: pathlib.Path) -> None:
    stream = mps.stream(iter(pairs(20)), task=TASK, tokenizer="bytes", batching=mps.Pad(1), steps_per_epoch=1)
    with pytest.raises(OptionError, match="part_range is for sources that can be read from any row"):
        mps.write_cache(stream, tmp_path / "out", part_range=(1, 2))
    with pytest.raises(OptionError, match="Merge the ranges first"):
        write(source(tmp_path), tmp_path / "out", 1, reference=lambda batch: None, reference_id="sft")
    with pytest.raises(OptionError, match=r"there are no part ranges of .*nowhere: neither of a cache"):
        mps.merge(tmp_path / "nowhere")
    with pytest.raises(OptionError, match="out is None"):
        mps.merge(None)  # type: ignore[arg-type]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["rows.jsonl"]


def test_a_damaged_plan_is_named(tmp_path: pathlib.Path) -> None:
    path, out = source(tmp_path), tmp_path / "out"
    write_all(path, out, 2)
    plan = tmp_path / "out.writing" / "range-2-of-2.json"
    values = json.loads(plan.read_text())
    plan.write_text(json.dumps({**values, "rows": 17}))
    with pytest.raises(StateError, match=r"range-2-of-2\.json is damaged \(its checksum does not fit\)\. Delete it"):
        mps.merge(out)
    plan.unlink()
    write(path, out, 2, 2)
    mps.merge(out)


def test_the_commands(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = source(tmp_path), tmp_path / "out"
    write(path, tmp_path / "one")
    assert run(monkeypatch, *command(path, out, "--part-range", "1/2")[3:]) == 0
    shown = capsys.readouterr().out
    assert f"of 32 rows written to part range 1/2 of {out}," in shown
    assert run(monkeypatch, "merge", str(out)) == 1
    assert "Run the command that wrote the others with --part-range 2/2, then merge again." in capsys.readouterr().err
    assert run(monkeypatch, *command(path, out, "--part-range", "2/4")[3:]) == 1
    assert "--part-range is 2/4, but" in capsys.readouterr().err
    assert run(monkeypatch, *command(path, out, "--part-range", "3")[3:]) == 2
    assert "expected K/N" in capsys.readouterr().err
    assert run(monkeypatch, *command(path, out, "--part-range", "2/2")[3:]) == 0
    assert run(monkeypatch, "merge", str(out)) == 0
    assert f"rows written to {out}, " in capsys.readouterr().out
    assert tree(out) == tree(tmp_path / "one")
