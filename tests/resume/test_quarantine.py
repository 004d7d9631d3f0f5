"""The quarantine file over interruptions: each row once per run, whatever happened in between."""

from __future__ import annotations

import json
import os
import pathlib
import stat
import sys
from collections import Counter
from typing import Any

import pytest

import ms_prefstream as mps
from tests.helpers import json_lines, pairs, through_mindspore

N = 24
BAD = (3, 8, 13, 21)


def source(folder: pathlib.Path) -> pathlib.Path:
    if (folder / "rows.jsonl").exists():
        return folder / "rows.jsonl"
    rows: list[Any] = list(pairs(N))
    for row in BAD:
        rows[row] = {"prompt": f"#{row}#", "chosen": "x", "note": {"a": {"b": 1}}}
    return json_lines(folder / "rows.jsonl", rows)


def make(folder: pathlib.Path, world: int = 1, rank: int = 0) -> mps.Stream:
    return mps.stream(
        source(folder),
        task=mps.DPO(128),
        tokenizer="bytes",
        batching=mps.Bucket(4 // world, multiple_of=32),
        window=2,
        on_bad_row="drop",
        quarantine=folder / "bad.jsonl",
        num_shards=world,
        shard_id=rank,
        logical_shards=2,
    )


def origins(folder: pathlib.Path) -> Counter[str]:
    """The origins in all quarantine files of a folder; every line must be whole."""
    return Counter(
        json.loads(line)["origin"] for path in folder.glob("bad*.jsonl") for line in path.read_text().splitlines()
    )


def all_once(folder: pathlib.Path) -> Counter[str]:
    return Counter(f"{folder}/rows.jsonl:{row + 1}" for row in BAD)


@pytest.mark.parametrize("step", range(12))
def test_an_interrupted_run_writes_what_a_whole_one_does(step: int, tmp_path: pathlib.Path) -> None:
    first = make(tmp_path)
    for epoch in range(step // 6 + 1):
        for done, _ in enumerate(first.batches(epoch), epoch * 6 + 1):
            if done >= step:
                break
    second = make(tmp_path).resume(first.state(step))
    list(second.batches())
    list(second.batches(step // 6 + 1))
    assert origins(tmp_path) == all_once(tmp_path)


def test_a_run_on_other_ranks_knows_what_was_written(tmp_path: pathlib.Path) -> None:
    ranks = [make(tmp_path, 2, rank) for rank in range(2)]
    for stream in ranks:
        list(stream.batches())
    assert {path.name for path in tmp_path.glob("bad*")} == {"bad.rank0.jsonl", "bad.rank1.jsonl"}
    alone = make(tmp_path).resume(ranks[0].state(6))
    list(alone.batches())
    assert origins(tmp_path) == all_once(tmp_path)


@pytest.mark.parametrize("cut", [1, 2, 3, 30])
def test_half_a_line_of_a_killed_run_is_mended(cut: int, tmp_path: pathlib.Path) -> None:
    first = make(tmp_path)
    list(first.batches())
    path = tmp_path / "bad.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    second = make(tmp_path).resume(first.state(6))
    list(second.batches())
    assert origins(tmp_path) == all_once(tmp_path)


@pytest.mark.mindspore
def test_the_door_of_mindformers_keeps_what_was_written(tmp_path: pathlib.Path) -> None:
    first = make(tmp_path)
    for _, _ in zip(range(2), first.batches(), strict=False):
        pass
    written = origins(tmp_path)
    second = make(tmp_path)
    dataset = second.dataset()
    dataset.set_init_step(2)
    list(through_mindspore(dataset))
    assert written  # the case is what it says: some rows before the interruption, the others behind it
    assert sum(second.report.dropped.values()) == len(BAD) - len(written) > 0
    assert origins(tmp_path) == all_once(tmp_path)


def test_a_new_run_begins_a_new_file(tmp_path: pathlib.Path) -> None:
    for _ in range(2):
        list(make(tmp_path).batches())
        assert origins(tmp_path) == all_once(tmp_path)


STRANGERS: dict[str, str] = {
    "text": "years of work",
    "data set whose first field is origin": '{"origin": "web", "prompt": "a", "chosen": "b", "rejected": "c"}\n',
    "the same, written tightly": '{"origin":"web","prompt":"a","chosen":"b","rejected":"c"}\n',
    "the same fields and one more": '{"origin":"web","reason":"tie","problem":"p","row":{},"more":1}\n',
    "another reason": '{"origin":"web","reason":"because","problem":"p","row":{}}\n',
    "other lines below": '{"origin":"web","reason":"tie","problem":"p","row":{}}\n{"origin":"web","prompt":"a"}\n',
    "one torn line": '{"origin":"web","prompt":"a","cho',
}


def kind_of_stranger(kind: str, path: pathlib.Path) -> None:
    (path.parent / "thesis.txt").write_text("years of work")
    if kind in STRANGERS:
        path.write_text(STRANGERS[kind])
    elif kind == "link":
        path.symlink_to(path.parent / "thesis.txt")
    elif kind == "broken link":
        path.symlink_to(path.parent / "nothing")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()


def state_of(path: pathlib.Path) -> Any:
    found = path.lstat()
    content = path.read_bytes() if stat.S_ISREG(found.st_mode) else b""
    return found.st_mode, found.st_ino, content, (path.parent / "thesis.txt").read_text()


@pytest.mark.parametrize("when", ["before", "during", "resumed"])
@pytest.mark.parametrize("kind", [*STRANGERS, "link", "broken link", "pipe", "folder"])
def test_what_is_no_quarantine_is_left_as_it_is(kind: str, when: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "bad.jsonl"
    stream = make(tmp_path)
    if when == "resumed":
        state = make(tmp_path).state(1)
    kind_of_stranger(kind, path)
    before = state_of(path)

    def use() -> None:
        if when == "before":
            make(tmp_path)
        elif when == "resumed":
            stream.resume(state)
        list(stream.batches())

    with pytest.raises(mps.PrefStreamError, match=r"quarantine.*(holds something else|link|regular file|a folder)"):
        use()
    assert state_of(path) == before


@pytest.mark.parametrize("kind", [*STRANGERS, "link", "pipe", "folder"])
def test_strangers_under_the_names_of_other_ranks_are_not_read(kind: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "bad.rank7.jsonl"
    kind_of_stranger(kind, path)
    before = state_of(path)
    first = make(tmp_path)
    list(first.batches())
    list(make(tmp_path).resume(first.state(6)).batches())
    assert state_of(path) == before
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == len(BAD)


def test_odd_rows_make_no_stranger_of_a_quarantine(tmp_path: pathlib.Path) -> None:
    """Rows that only the standard library can write, in a quarantine that the next run replaces."""
    deep: list[Any] = [1, 1]
    for at, depth in enumerate((300, 3 * sys.getrecursionlimit())):  # the second is too deep even for its `repr`
        for _ in range(depth):
            deep[at] = {"a": [deep[at]]}
    odd = [{"prompt": "\ud83d"}, {"prompt": 2**90}, {"prompt": float("nan")}, {("a", 1): 2}]
    odd += [{"prompt": one} for one in deep]
    for _ in range(2):
        stream = mps.stream(
            [*odd, *pairs(4)], task=mps.DPO(128), tokenizer="bytes", batching=mps.Pad(1), on_bad_row="drop",
            quarantine=tmp_path / "bad.jsonl",
        )  # fmt: skip
        list(stream.batches())
        assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == len(odd)
