"""Followed files through a real stream: epochs that go on in the data, resume, several ranks, ends, mixes."""

from __future__ import annotations

import json
import pathlib
import threading
import time
from typing import Any

import pytest

import ms_prefstream as mps

from ..helpers import PAD, json_lines, rows_of, token_pairs

ROWS = token_pairs(48, 3)


def append(path: pathlib.Path, rows: list[Any]) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def stream(source: Any, world: int = 1, rank: int = 0, **options: Any) -> mps.Stream:
    settings: dict[str, Any] = {"window": 1, "pad_token_id": PAD, "batching": mps.Pad(4 // world)}
    return mps.stream(
        source,
        task=mps.DPO(max_length=16),
        tokenizer=None,
        num_shards=world,
        shard_id=rank,
        **{**settings, **options},
    )


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return json_lines(tmp_path / "pairs.jsonl", ROWS)


def test_epochs_go_on_in_the_data_and_every_row_is_delivered_once(path: pathlib.Path) -> None:
    run = stream(mps.follow(path), steps_per_epoch=3)
    steps = [rows for epoch in range(4) for rows in rows_of(run.batches(epoch))]
    assert [sorted(rows) for rows in steps] == [list(range(begin, begin + 4)) for begin in range(0, 48, 4)]
    assert run.report.read == 48


@pytest.mark.parametrize("window", [1, 2])
def test_resume_goes_on_behind_the_last_row_at_every_step_of_three_epochs(path: pathlib.Path, window: int) -> None:
    def make() -> mps.Stream:
        return stream(mps.follow(path), steps_per_epoch=4, window=window, batching=mps.Bucket(4, multiple_of=4))

    whole = make()
    expected = [rows for epoch in range(3) for rows in rows_of(whole.batches(epoch))]
    for step in range(12):
        run = make().resume(json.loads(json.dumps(whole.state(step))))
        rest = rows_of(run.batches()) + [r for epoch in range(step // 4 + 1, 3) for r in rows_of(run.batches(epoch))]
        assert rest == expected[step:], step


def test_the_first_step_needs_one_window_of_rows(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "pairs.jsonl"
    append(path, ROWS[:4])
    batches = stream(mps.follow(path, poll=0.01), steps_per_epoch=9).batches()
    assert sorted(rows_of([next(batches)])[0]) == [0, 1, 2, 3]
    threading.Timer(0.2, append, (path, ROWS[4:8])).start()
    assert sorted(rows_of([next(batches)])[0]) == [4, 5, 6, 7]


def test_a_number_of_rows_gives_the_steps(path: pathlib.Path) -> None:
    run = stream(mps.follow(path, until=30))
    assert run.steps_per_epoch == 7
    assert sorted(row for rows in rows_of(run.batches()) for row in rows) == list(range(28))
    with pytest.raises(
        mps.SourceError, match=r"ended after 30 rows \(all until=30 rows were given\), but the plan needs row 32"
    ):
        list(run.batches(1))


def test_an_early_end_says_why(path: pathlib.Path) -> None:
    done = path.with_name("DONE")
    done.touch()
    run = stream(mps.follow(path, until=done), steps_per_epoch=20)
    batches = run.batches()
    assert len(rows_of(next(batches) for _ in range(12))) == 12  # every whole window is delivered before
    with pytest.raises(
        mps.SourceError, match=r"after 48 rows \(the sentinel file .*DONE was there\), but .* needs row 52"
    ):
        next(batches)
    with pytest.raises(mps.SourceError, match=r"80 rows were to be .* only 48 \(the sentinel.*gives each row once"):
        list(run.batches(1))


def test_without_a_number_of_steps_it_is_refused(path: pathlib.Path) -> None:
    with pytest.raises(mps.OptionError, match="can be read only once, so its rows cannot be counted"):
        stream(mps.follow(path))
    with pytest.raises(mps.OptionError, match="lengths cannot be looked at to choose shapes"):
        stream(mps.follow(path), steps_per_epoch=3, batching=mps.Bucket(4, max_shapes=2))


def test_ranks_that_see_the_data_grow_differently_deliver_the_same_steps(tmp_path: pathlib.Path) -> None:
    folder, done = tmp_path / "rollouts", tmp_path / "DONE"
    folder.mkdir()

    def write() -> None:
        for part in range(6):
            for row in ROWS[part * 8 : part * 8 + 8]:
                append(folder / f"{part}.jsonl", [row])
                time.sleep(0.002)
        done.touch()

    writer = threading.Thread(target=write)
    writer.start()
    found: list[list[list[int]]] = [[], []]

    def read(rank: int) -> None:
        run = stream(mps.follow(folder, until=done, poll=0.003 * (1 + rank)), 2, rank, steps_per_epoch=4)
        for epoch in range(3):
            found[rank] += rows_of(run.batches(epoch))

    readers = [threading.Thread(target=read, args=(rank,)) for rank in range(2)]
    for thread in readers:
        thread.start()
    for thread in (*readers, writer):
        thread.join(20)
    alone = stream(mps.follow(folder, until=done), steps_per_epoch=4, logical_shards=2)
    expected = [rows for epoch in range(3) for rows in rows_of(alone.batches(epoch))]
    assert [one + other for one, other in zip(*found, strict=True)] == expected


def test_several_ranks_do_not_end_by_time(path: pathlib.Path) -> None:
    for source in (mps.follow(path, timeout=5), mps.mix([(mps.follow(path, timeout=5), 1), (ROWS, 1)])):
        with pytest.raises(mps.OptionError, match=r"ends after a time without data, and 2 ranks would not agree"):
            stream(source, 2, 0, steps_per_epoch=3)
        stream(source, steps_per_epoch=3)


def test_bad_rows_are_counted_in_every_epoch(path: pathlib.Path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    lines[1] = lines[21] = "{broken\n"
    path.write_text("".join(lines) + '{"prompt_ids": [1')
    done = path.with_name("DONE")
    done.touch()
    quarantine = path.with_name("bad.jsonl")
    run = stream(mps.follow(path, until=done), steps_per_epoch=4, on_bad_row="drop", quarantine=quarantine)
    for epoch in range(3):
        list(run.batches(epoch))
    assert (run.report.read, run.report.dropped) == (48, {"bad_json": 2})
    assert run.report.origins["bad_json"] == [f"{path}:2", f"{path}:22"]
    with pytest.raises(mps.RowError, match=r"pairs\.jsonl:2: the line is not valid JSON"):
        list(stream(mps.follow(path, until=done), steps_per_epoch=4).batches())


def test_several_writers_are_followed_with_a_mix(tmp_path: pathlib.Path) -> None:
    writers = [json_lines(tmp_path / f"{name}.jsonl", ROWS[24 * k : 24 * k + 24]) for k, name in enumerate("ab")]
    old = token_pairs(5, 2)
    made = mps.mix(
        [
            mps.Part(mps.follow(writers[0]), 1, name="first"),
            mps.Part(mps.follow(writers[1]), 1, name="second"),
            mps.Part([{**row, "prompt_ids": list(b"#9%d#" % k)} for k, row in enumerate(old)], 2, name="old"),
        ],
        stop="all",
    )
    run = stream(made, steps_per_epoch=4)
    steps = [rows for epoch in range(3) for rows in rows_of(run.batches(epoch))]
    assert all(sum(row < 24 for row in step) == 1 and sum(row >= 90 for row in step) == 2 for step in steps)
    rows = [row for step in steps for row in step]
    assert sorted(row for row in rows if row < 90) == [*range(12), *range(24, 36)]
    assert {row for row in rows if row >= 90} == {90, 91, 92, 93, 94}
    assert {name: part.read for name, part in run.report.parts.items()} == {"first": 12, "second": 12, "old": 24}
    state = run.state(6)
    resumed = stream(made, steps_per_epoch=4).resume(state)
    assert rows_of(resumed.batches()) + rows_of(resumed.batches(2)) == steps[6:]


def test_bad_rows_of_later_epochs_are_counted_for_their_part(path: pathlib.Path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    lines[6] = lines[9] = "{broken\n"
    path.write_text("".join(lines))
    old = [{**row, "prompt_ids": list(b"#99#")} for row in token_pairs(5, 2)]
    made = mps.mix([mps.Part(mps.follow(path), 2, name="new"), mps.Part(old, 3, name="old")], stop="all")
    run = stream(made, steps_per_epoch=2, on_bad_row="drop")
    for epoch in range(4):
        list(run.batches(epoch))
    new, old_part = run.report.parts["new"], run.report.parts["old"]
    assert (new.dropped, old_part.dropped) == ({"bad_json": 2}, {})
    assert abs(new.read - 32 * 2 / 5) < 1
    assert new.read + old_part.read == 32
