"""Bad rows are decided, never lost: raised or counted, written aside once, and replaced exactly as defined."""

from __future__ import annotations

import gc
import json
import pathlib
import weakref
from collections import Counter
from typing import Any

import numpy as np
import pytest

import ms_prefstream as mps
from ms_prefstream.errors import NoUsableRowsError, Reason, RowError
from ms_prefstream.plan import PlanOptions, WindowedPlan
from tests.helpers import json_lines, pairs, rows_of
from tests.kinds import source_of

N = 24
BAD: dict[int, Any] = {
    2: {"prompt": "#2# why?", "chosen": "yes"},
    5: {"prompt": "#5# why?", "chosen": "same", "rejected": "same"},
    9: {"prompt": "#9# why?", "chosen": "", "rejected": "no"},
    10: {"prompt": 10, "chosen": "yes", "rejected": "no"},
    17: {"prompt": [{"role": "wizard", "content": "#17#"}], "chosen": "yes", "rejected": "no"},
    22: '{"prompt": "#22#", ',
}
REASONS = {
    2: "missing_field",
    5: "identical",
    9: "empty_response",
    10: "bad_type",
    17: "unknown_role",
    22: "bad_json",
}
UNUSABLE = [5, 9]
MULTIPLE: dict[str, Any] = {"sorted": lambda size: mps.Bucket(size, multiple_of=16), "not sorted": mps.Pad}
MODES = {mode: make(4) for mode, make in MULTIPLE.items()}


def spoiled(bad: Any = tuple(BAD)) -> list[Any]:
    rows: list[Any] = list(pairs(N))
    for row in bad:
        rows[row] = BAD[row]
    return rows


def make(source: Any, **options: Any) -> mps.Stream:
    settings = {"task": mps.DPO(128), "tokenizer": "bytes", "batching": MODES["sorted"], "window": 3, "seed": 1}
    return mps.stream(source, **settings | {"on_bad_row": "drop"} | options)


def epochs(stream: mps.Stream, count: int = 2) -> list[list[list[int]]]:
    return [rows_of(stream.batches(epoch)) for epoch in range(count)]


@pytest.mark.parametrize("row", sorted(set(BAD) - set(UNUSABLE)))
@pytest.mark.parametrize("kind", ["json lines", "gz"])
def test_a_malformed_row_is_an_error_that_names_its_line(kind: str, row: int, tmp_path: pathlib.Path) -> None:
    stream = make(source_of(kind, tmp_path, spoiled([row])), on_bad_row="raise")
    with pytest.raises(RowError) as caught:
        list(stream.batches())
    assert caught.value.reason == REASONS[row]
    sentence = str(caught.value)
    assert sentence.startswith(f"{tmp_path}/rows.jsonl{'.gz' if kind == 'gz' else ''}:{row + 1}: ")
    assert f"[{REASONS[row]}]. " in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence


@pytest.mark.parametrize("policy", ["raise", "drop"])
def test_unusable_rows_are_dropped_whatever_the_policy(policy: str) -> None:
    stream = make(spoiled(UNUSABLE), on_bad_row=policy)
    assert all(row not in UNUSABLE for epoch in epochs(stream) for step in epoch for row in step)
    assert stream.report.dropped == {"identical": 1, "empty_response": 1}


def test_a_malformed_row_is_raised_even_when_it_comes_after_unusable_ones() -> None:
    with pytest.raises(RowError, match="row 10 of list"):
        list(make(spoiled([5, 9, 10]), on_bad_row="raise", shuffle=False).batches())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["json lines", "gz"])
def test_dropped_rows_are_counted_once_by_reason(kind: str, mode: str, tmp_path: pathlib.Path) -> None:
    stream = make(source_of(kind, tmp_path, spoiled()), batching=MODES[mode])
    epochs(stream, 3)
    assert stream.report.read == N
    assert stream.report.dropped == Counter(REASONS.values())
    name = "rows.jsonl" + (".gz" if kind == "gz" else "")
    assert stream.report.origins == {REASONS[row]: [f"{tmp_path / name}:{row + 1}"] for row in BAD}
    text = str(stream.report)
    assert "rows read 24" in text
    assert "dropped 6 (25.0 %)" in text
    assert all(reason in text for reason in REASONS.values())
    assert json.loads(json.dumps(stream.report.as_dict()))["dropped"] == dict(stream.report.dropped)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["json lines", "generator function"])
def test_the_quarantine_file_holds_each_dropped_row_once(kind: str, mode: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "bad.jsonl"
    bad = [row for row in BAD if row != 22 or kind == "json lines"]
    stream = make(source_of(kind, tmp_path, spoiled(bad)), batching=MODES[mode], quarantine=path)
    assert not path.exists()  # made with the first bad row
    epochs(stream, 2)
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert all(list(line) == ["origin", "reason", "problem", "row"] for line in lines)
    assert len(lines) == len(bad)
    found = {line["origin"]: line for line in lines}
    for row in bad:
        (line,) = (found[o] for o in found if o.endswith(f":{row + 1}") or o.startswith(f"row {row} of"))
        assert line["reason"] == REASONS[row]
        assert line["problem"]
        assert line["row"] == (None if row == 22 else BAD[row])


def test_each_rank_writes_a_quarantine_file_of_its_own(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "bad.jsonl"
    lines = []
    for rank in range(2):
        source = json_lines(tmp_path / "rows.jsonl", spoiled())
        stream = make(source, batching=mps.Pad(2), quarantine=path, num_shards=2, shard_id=rank)
        epochs(stream, 1)
        lines += (tmp_path / f"bad.rank{rank}.jsonl").read_text("utf-8").splitlines()
    assert not path.exists()
    assert sorted(int(json.loads(line)["origin"].split(":")[1]) - 1 for line in lines) == sorted(BAD)


def test_rows_that_json_cannot_write_are_quarantined_all_the_same(tmp_path: pathlib.Path) -> None:
    odd = [
        {"prompt": "#0#", "chosen": "x", 5: {1, 2}},
        {"prompt": "#1#", "chosen": "x", "big": 2**70},
        {"prompt": "#2#", "chosen": "\udc80", "array": np.arange(3)},
    ]
    path = tmp_path / "bad.jsonl"
    stream = make([*odd, *pairs(5, 3)], batching=mps.Pad(2), window=64, quarantine=path)
    list(stream.batches())
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert sorted(line["origin"] for line in lines) == [f"row {row} of list" for row in range(3)]
    assert len({line["reason"] for line in lines}) == 1


def expected(stream: mps.Stream, rank: int, world: int, shards: int, epoch: int) -> tuple[Any, Any, int]:
    """The definition, written out: (planned rows, delivered rows) of each step of a rank, and the stand-ins' number."""
    sort = isinstance(stream.batching, mps.Bucket)
    size = stream.batching.batch_size * world
    plan = WindowedPlan(PlanOptions(rows=N, global_batch=size, logical_shards=shards, window=3, seed=1, sort=sort))
    planned: list[list[int]] = [[] for _ in range(plan.steps_per_epoch)]
    delivered: list[list[int]] = [[] for _ in range(plan.steps_per_epoch)]
    repeats = 0
    mine = range(rank * shards // world, (rank + 1) * shards // world)
    for window in range(plan.windows_per_epoch):
        for shard in mine:
            rows = plan.shard_rows(epoch, window, shard).tolist()
            good = sorted((row for row in rows if row not in BAD), key=lambda row: (length(row), row))
            bad = [row for row in rows if row in BAD]
            takes = {row: good[i % len(good)] for i, row in enumerate(bad)}
            slots = sorted(rows, key=lambda row: (length(takes.get(row, row)), row)) if sort else rows
            repeats += len(bad)
            share = size // shards
            for inside, batch in enumerate(plan.batch_order(epoch, window).tolist()):
                chosen = slots[batch * share : (batch + 1) * share]
                planned[window * 3 + inside] += chosen
                delivered[window * 3 + inside] += [takes.get(row, row) for row in chosen]
    return planned, delivered, repeats


def length(row: int) -> int:
    pair = pairs(1, row)[0]
    return max(len(pair["chosen"]), len(pair["rejected"])) + len(pair["prompt"])  # ChatML adds the same to each


@pytest.mark.parametrize(("rank", "world", "shards"), [(0, 1, 1), (0, 1, 2), (0, 2, 2), (1, 2, 2), (1, 2, 4)])
@pytest.mark.parametrize("mode", MODES)
def test_stand_ins_are_exactly_those_of_the_definition(
    mode: str, rank: int, world: int, shards: int, tmp_path: pathlib.Path
) -> None:
    stream = make(
        json_lines(tmp_path / "rows.jsonl", spoiled()),
        batching=MULTIPLE[mode](4 // world),
        num_shards=world,
        shard_id=rank,
        logical_shards=shards,
    )
    steps = range(stream.steps_per_epoch)
    for epoch in range(2):
        before = stream.report.repeats
        planned, delivered, repeats = expected(stream, rank, world, shards, epoch)
        assert rows_of(stream.batches(epoch)) == delivered
        assert stream.report.repeats - before == repeats > 0
        assert [stream.rows(epoch, step).tolist() for step in steps] == planned
        assert [stream.rows(epoch, step, resolved=True).tolist() for step in steps] == delivered


def test_shapes_hold_with_stand_ins() -> None:
    stream = make(spoiled(UNUSABLE))
    for epoch in range(2):
        assert all(batch["chosen_input_ids"].shape in stream.shapes for batch in stream.batches(epoch))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["list", "generator function"])
def test_a_window_without_a_good_row_is_an_error_that_says_why(kind: str, mode: str, tmp_path: pathlib.Path) -> None:
    rows = pairs(24)
    rows[12:] = [{"prompt": "x", "chosen": "same", "rejected": "same"}] * 12  # window 1 of 3 steps of 4 rows
    stream = make(source_of(kind, tmp_path, rows), batching=MODES[mode], shuffle="window")
    with pytest.raises(NoUsableRowsError, match=r"none of the 12 rows of a window can be used .*identical 12"):
        list(stream.batches())


@pytest.mark.parametrize("batching", [*MODES.values(), mps.Bucket(4, max_shapes=2)])
def test_everything_dropped_is_an_error_that_says_why(batching: Any) -> None:
    rows = [{"prompt": "x", "chosen": "same", "rejected": "same"}] * 8
    with pytest.raises(NoUsableRowsError, match=r"none of the .* can be used(.|\n)*identical"):
        list(make(rows, batching=batching).batches())


def test_too_long_rows_are_dropped_when_asked_and_counted() -> None:
    stream = make(pairs(N), task=mps.DPO(48, truncation="drop"), window=64)
    kept = {row for step in rows_of(stream.batches()) for row in step}
    fitting = {row for row in range(N) if length(row) + 21 <= 48}
    assert kept == fitting
    assert stream.report.dropped == {"too_long": N - len(fitting)}
    assert stream.report.truncated == 0


def test_cut_rows_are_counted_once() -> None:
    stream = make(pairs(N), task=mps.DPO(60, truncation="response_right"), window=64)
    epochs(stream, 2)
    # The newline behind the end of turn is not the response's: a row that loses only that is not cut.
    assert stream.report.truncated == sum(length(row) + 20 > 60 for row in range(N)) > 0


def test_malformed_reasons_are_those_of_the_design() -> None:
    malformed = {reason.value for reason in Reason if reason.malformed}
    named = {"bad_json", "missing_field", "bad_type", "unknown_role", "special_token", "history_differs"}
    assert named <= malformed
    unusable = {"identical", "tie", "empty_response", "no_response_tokens", "identical_after_truncation", "too_long"}
    assert {reason.value for reason in Reason if not reason.malformed} == unusable | {"duplicate", "contaminated"}


def failing(row: Any) -> Any:
    return row if row["prompt"] != "#4# why?" else 1 / 0


@pytest.mark.parametrize("kind", ["json lines", "gz"])
@pytest.mark.parametrize("format", ["auto", failing])
def test_a_stream_with_bad_rows_ends_with_its_last_reference(format: Any, kind: str, tmp_path: pathlib.Path) -> None:
    """Frames of kept errors would hold it, and with it worker processes, until the cyclic collector runs."""
    gc.collect()
    gc.disable()
    try:
        rows = [row for row in spoiled() if isinstance(row, dict)]
        stream = make(source_of(kind, tmp_path, rows), format=format)
        batches, ends = stream.batches(), weakref.ref(stream.report)
        next(batches)
        assert stream.report.dropped.total() > 0
        del stream, batches
        assert ends() is None
    finally:
        gc.enable()
