"""Indexes beside the data: one for each kind of settings, ignored with one warning where they do not fit."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream.errors import OptionError, StateError
from tests.helpers import json_lines, pairs

SHORT, LONG = mps.DPO(96), mps.DPO(128)


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return json_lines(tmp_path / "rows.jsonl", pairs(40))


def stream(source: Any, **options: Any) -> mps.Stream:
    usual: dict[str, Any] = {"task": SHORT, "tokenizer": "bytes", "batching": mps.Pad(2)}
    return mps.stream(source, **usual | options)


def indexes(path: pathlib.Path) -> list[str]:
    return sorted(one.name for one in path.parent.glob("*.mprefidx"))


def test_indexes_for_several_settings_lie_side_by_side(path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = stream(path).build_index(), stream(path, task=LONG).build_index()
    assert len({first.path, second.path, *map(str, path.parent.glob("*.mprefidx"))}) == 2
    assert all(re.fullmatch(r"rows\.jsonl\.[0-9a-f]{8}\.mprefidx", name) for name in indexes(path))
    assert stream(path).state(0)["index"] == first.checksum
    assert stream(path, task=LONG).state(0)["index"] == second.checksum
    caplog.clear()
    assert not stream(path).report.warnings


@pytest.mark.parametrize("named", [True, False], ids=["with digits", "of an earlier version"])
def test_one_for_other_settings_is_ignored_with_one_warning(
    named: bool, path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = stream(path).build_index()
    if not named:
        os.rename(index.path, f"{path}.mprefidx")
        assert stream(path).state(0)["index"] == index.checksum, "a name without digits is found"
    caplog.clear()
    other = stream(path, task=LONG)
    assert other.state(0)["index"] is None
    (said,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert re.search(r"task was .*max_length=96.* and is .*max_length=128.* now", said)
    assert said in str(other.report)
    assert other.report.warnings == [said]
    caplog.clear()
    assert stream(path, task=LONG, verbose=False).report.warnings == [said]
    assert not caplog.records
    assert other.build_index().checksum == other.state(0)["index"], "the printed remedy works"
    assert not stream(path, task=LONG).report.warnings
    with pytest.raises(StateError, match="built for other data or settings: task was"):
        stream(path, task=LONG, index=index.path if named else f"{path}.mprefidx")


def test_data_that_changed_take_the_same_name(path: pathlib.Path) -> None:
    index = stream(path).build_index()
    json_lines(path, pairs(40, 1))
    changed = stream(path)
    assert "data was" in changed.report.warnings[0]
    assert changed.build_index().path == index.path


@pytest.mark.parametrize("batching", [mps.Pad(2), mps.Bucket(max_tokens=4096), mps.Pack(256)], ids=repr)
def test_build_makes_it_or_takes_it(batching: Any, path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = stream(path, batching=batching, index="build")
    assert "40 of 40 rows" in capsys.readouterr().err
    assert made.state(0)["index"]
    before = [one.stat().st_mtime_ns for one in path.parent.glob("*.mprefidx")]
    again = stream(path, batching=batching, index="build")
    assert again.state(0) == made.state(0)
    assert [one.stat().st_mtime_ns for one in path.parent.glob("*.mprefidx")] == before
    assert capsys.readouterr().err == ""
    os.unlink(made.data.index.path if made.data.index else "")
    stream(path, batching=batching, index="build", verbose=False)
    assert capsys.readouterr().err == ""


def test_what_has_no_place_for_an_index(path: pathlib.Path) -> None:
    with pytest.raises(OptionError, match=r"not a single file.*Give the index a path"):
        stream(pairs(8), index="build")
    with pytest.raises(OptionError, match=r"can only be read from the front"):
        stream(lambda: iter(pairs(8)), index="build")
    mixed = stream(mps.mix([(path, 1), (json_lines(path.parent / "more.jsonl", pairs(9)), 1)]), index="build")
    assert mixed.state(0)["index"]
    assert len(indexes(path)) == 2


def test_it_is_built_without_a_stream(path: pathlib.Path) -> None:
    index = mps.build_index(path, task=SHORT, tokenizer="bytes", verbose=False)
    assert index.usable == 40
    assert stream(path, batching=mps.Pack(256)).state(0)["index"] == index.checksum
    assert indexes(path) == [pathlib.Path(index.path).name]
    named = mps.build_index(path, path.parent / "mine", task=LONG, tokenizer="bytes", workers=1, verbose=False)
    assert stream(path, task=LONG, index=path.parent / "mine").state(0)["index"] == named.checksum
    in_memory = mps.build_index(pairs(8), path.parent / "list", task=SHORT, tokenizer="bytes", verbose=False)
    assert stream(pairs(8), index=in_memory.path).state(0)["index"]


RANK = """
import sys
import ms_prefstream as mps
rank, path = int(sys.argv[1]), sys.argv[2]
made = mps.stream(path, task=mps.DPO(96), tokenizer="bytes", batching=mps.Pad(2), index="build", num_shards=3,
                  shard_id=rank)
print(made.state(0)["index"])
"""


@pytest.mark.slow
def test_ranks_that_start_together_share_one(tmp_path: pathlib.Path) -> None:
    path = json_lines(tmp_path / "rows.jsonl", pairs(3000))
    words = [sys.executable, "-c", RANK]
    ranks = [subprocess.Popen([*words, str(rank), path], stdout=subprocess.PIPE, text=True) for rank in range(3)]
    assert len({rank.communicate(timeout=120)[0] for rank in ranks}) == 1
    assert [rank.returncode for rank in ranks] == [0, 0, 0]
