"""A length index for a mix: one file for each part, exact shares over the rows that can be used."""

from __future__ import annotations

import pathlib
import re
from collections import Counter
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream.errors import NoUsableRowsError, OptionError
from tests.helpers import assert_resumes_everywhere, flat, global_steps, json_lines, pairs, rows_of

A, B = 18, 30  # rows; 2 and 3 of them are bad
BAD = {3, 11} | {A + 0, A + 17, A + 29}


@pytest.fixture
def paths(tmp_path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    rows = pairs(A + B)
    for bad in BAD:
        rows[bad]["rejected"] = rows[bad]["chosen"]
    return json_lines(tmp_path / "a.jsonl", rows[:A]), json_lines(tmp_path / "b.jsonl", rows[A:])


def make(paths: Any, stop: str = "first", **options: Any) -> mps.Stream:
    settings = {
        "task": mps.DPO(128),
        "tokenizer": "bytes",
        "batching": mps.Bucket(4, multiple_of=16),
        "window": 3,
        "seed": 5,
    }
    return mps.stream(mps.mix([(paths[0], 1), (paths[1], 2)], stop=stop), **settings | options)  # type: ignore[arg-type]


@pytest.mark.parametrize("stop", ["first", "all"])
@pytest.mark.parametrize("shuffle", [True, "window", False])
def test_shares_are_exact_over_the_good_rows(paths: Any, stop: str, shuffle: Any) -> None:
    stream = make(paths, stop, shuffle=shuffle)
    assert stream.build_index().usable == A + B - len(BAD)
    assert stream.steps_per_epoch == {"first": 40, "all": 47}[stop] // 4  # 13 + 27 rows; 16 + 31
    for epoch in range(2):
        rows = flat(rows_of(stream.batches(epoch)))
        assert not BAD & set(rows)
        assert abs(sum(row < A for row in rows) - len(rows) / 3) < 1
        if stop == "first":
            assert max(Counter(rows).values()) == 1
        else:
            assert {row for row in rows if row >= A} | BAD >= set(range(A, A + B))
    assert stream.report.repeats == 0
    a, b = stream.report.parts.values()
    assert (a.dropped, b.dropped) == ({"identical": 2}, {"identical": 3})
    assert (a.left_out_per_epoch, b.repeats_per_epoch) == ((3, 0) if stop == "first" else (1, 2))
    assert stream.report.dropped == {"identical": 5}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batching": mps.Pad(4)},
        {"batching": mps.Bucket(4, max_shapes=3)},
        {"batching": mps.Pack(256, batch_size=2)},
        {"stop": "all", "shuffle": "window"},
        {"drop_remainder": False, "longest_first": True},
    ],
)
def test_it_resumes_everywhere(paths: Any, options: dict[str, Any]) -> None:
    make(paths).build_index()
    assert make(paths, **options).state(0)["index"]
    assert_resumes_everywhere(lambda: make(paths, **options))


def test_any_divisor_of_the_global_batch_gives_the_same_rows(paths: Any) -> None:
    make(paths).build_index()
    alone = make(paths, batching=mps.Bucket(12, multiple_of=16))
    state = alone.state(1)
    for world in (2, 3, 4, 12):
        ranks = [
            make(paths, batching=mps.Bucket(12 // world, multiple_of=16), num_shards=world, shard_id=rank)
            for rank in range(world)
        ]
        assert global_steps(ranks, 1) == global_steps([alone], 1)
        assert global_steps([rank.resume(state) for rank in ranks], 0, 1) == global_steps([alone], 0)[1:]
        widths = {tuple(batch["chosen_input_ids"].shape[1] for batch in rank.batches(1)) for rank in ranks}
        assert len(widths) == 1


def test_a_part_has_the_file_that_it_would_have_by_itself(paths: Any) -> None:
    settings: dict[str, Any] = {"task": mps.DPO(128), "tokenizer": "bytes", "batching": mps.Pad(2)}
    files = [pathlib.Path(mps.stream(path, **settings).build_index().path) for path in paths]
    alone = [file.read_bytes() for file in files]
    stream = make(paths)
    assert stream.state(0)["index"], "both parts are indexed, so the mix is"
    stream.build_index()
    assert [file.read_bytes() for file in files] == alone
    files[1].unlink()
    assert make(paths).state(0)["index"] is None


def test_the_index_of_a_part_that_changed_is_not_used(paths: Any, caplog: pytest.LogCaptureFixture) -> None:
    make(paths).build_index()
    with paths[1].open("ab") as file:
        file.write(paths[1].read_bytes().splitlines(keepends=True)[1])
    assert make(paths).state(0)["index"] is None
    assert re.findall(r"b\.jsonl\.\w{8}\.mprefidx .*rows was 30 and is 31 now", caplog.text)
    assert len(caplog.records) == 1
    assert make(paths, index=None).state(0)["index"] is None


def test_parts_without_files_take_a_folder(paths: Any, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "index"
    lists = [[dict(row) for row in mps.read(path)] for path in paths]
    with pytest.raises(OptionError, match="not a single file"):
        make(lists).build_index()
    make(lists).build_index(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["part-0.mprefidx", "part-1.mprefidx"]
    stream = make(lists, index=folder)
    make(paths).build_index()
    assert rows_of(stream.batches()) == rows_of(make(paths).batches())
    with pytest.raises(OptionError, match="a file, but the source is a mix of 2 parts"):
        make(paths, index=paths[0])


def test_a_part_of_which_nothing_is_left(paths: Any) -> None:
    json_lines(paths[0], [{"prompt": "p", "chosen": "a", "rejected": "a"}] * 5)
    with pytest.raises(NoUsableRowsError, match="all rows of part 0 of the mix"):
        make(paths).build_index()


def test_each_bad_row_goes_to_one_rank(paths: Any, tmp_path: pathlib.Path) -> None:
    make(paths).build_index()
    for rank in range(2):
        make(paths, quarantine=tmp_path / "bad.jsonl", num_shards=2, shard_id=rank)
    origins = [line["origin"] for rank in range(2) for line in mps.read(tmp_path / f"bad.rank{rank}.jsonl")]
    assert len(origins) == len(set(origins)) == len(BAD)
