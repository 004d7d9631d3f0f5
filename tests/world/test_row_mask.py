"""`drop_remainder="mask"`: with row_mask 1 every usable row is in an epoch exactly once, on any number of ranks."""

from __future__ import annotations

import pathlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ms_prefstream as mps
from ms_prefstream.plan import BudgetOptions, BudgetPlan, IndexedPlan, PlanOptions, WindowedPlan
from tests.helpers import (
    Batch,
    Row,
    assert_resumes_everywhere,
    assert_same_batches,
    json_lines,
    pairs,
    rows_in,
    through_mindspore,
    token_pairs,
)
from tests.kinds import ONE_PASS, source_of

CHEAP = settings(settings.get_profile("costly"), suppress_health_check=[HealthCheck.too_slow])
RULES = {"pad": mps.Pad, "bucket": lambda size: mps.Bucket(size, multiple_of=4)}


def with_bad(rows: list[Row], bad: Iterable[int]) -> list[Row]:
    """The rows, of which some can never be used."""
    found = list(rows)
    for row in bad:
        found[row] = {**found[row], "rejected_ids": found[row]["chosen_ids"]}
    return found


def make(source: Any, rule: str, batch: int, world: int = 1, rank: int = 0, **options: Any) -> mps.Stream:
    settings: dict[str, Any] = {"task": mps.DPO(20), "tokenizer": None, "pad_token_id": 0, "verbose": False} | options
    settings = {"drop_remainder": "mask", "num_shards": world, "shard_id": rank} | settings
    return mps.stream(source, batching=RULES[rule](batch // world), **settings)


def counted(batches: Iterable[Batch], rows: Any = rows_in) -> Counter[int]:
    """The rows with a mask of 1, after a check of the column."""
    found: Counter[int] = Counter()
    for batch in batches:
        mask = batch["row_mask"]
        assert list(batch)[-1] == "row_mask"
        assert mask.dtype == np.int32
        assert set(mask.tolist()) <= {0, 1}
        names = np.array(rows(batch))
        assert mask.shape == names.shape
        found.update(names[mask == 1].tolist())
    return found


@CHEAP
@given(
    st.integers(1, 40),
    st.sets(st.integers(0, 39)),
    st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8]),
    st.integers(1, 3),
    st.sampled_from([True, False, "window"]),
    st.integers(1, 4),
    st.integers(0, 2),
    st.sampled_from(sorted(RULES)),
)
def test_every_usable_row_counts_once(
    count: int, bad: set[int], world: int, size: int, shuffle: Any, window: int, epoch: int, rule: str
) -> None:
    bad = {row for row in bad if row % 3 == 0 and row < count}  # any window has a good row
    good = Counter(set(range(count)) - bad)
    if not good:
        return
    rows, options = with_bad(token_pairs(count), bad), {"shuffle": shuffle, "window": max(window, 3)}
    ranks = [make(rows, rule, world * size, world, rank, **options) for rank in range(world)]
    assert len({stream.steps_per_epoch for stream in ranks}) == 1
    assert sum((counted(stream.batches(epoch)) for stream in ranks), Counter()) == good


@pytest.mark.parametrize("world", range(1, 9))
@pytest.mark.parametrize("rule", RULES)
def test_with_a_length_index_and_workers(tmp_path: pathlib.Path, world: int, rule: str) -> None:
    bad = range(4, 50, 7)
    path = json_lines(tmp_path / "rows.jsonl", with_bad(token_pairs(50), bad))
    mps.build_index(path, task=mps.DPO(20), tokenizer=None, verbose=False)
    good = Counter(set(range(50)) - set(bad))
    for shuffle in (True, False, "window"):
        options = {"shuffle": shuffle, "window": 2, "seed": 5, "workers": 2 if world == 2 and shuffle is True else 0}
        ranks = [make(path, rule, 2 * world, world, rank, **options) for rank in range(world)]
        assert all(stream.data.index is not None for stream in ranks)
        for epoch in range(2):
            assert sum((counted(stream.batches(epoch)) for stream in ranks), Counter()) == good


def test_the_batches_are_those_of_false_with_one_more_column(tmp_path: pathlib.Path) -> None:
    rows = with_bad(token_pairs(21), [3, 4, 11])
    path = json_lines(tmp_path / "rows.jsonl", rows)
    for index in (None, "build"):
        for rule in RULES:
            masked, filled = (make(path, rule, 4, drop_remainder=how, index=index, window=2) for how in ("mask", False))
            assert masked.steps_per_epoch == filled.steps_per_epoch
            assert masked.report.repeats_per_epoch == filled.report.repeats_per_epoch > 0
            for one, other in zip(masked.batches(1), filled.batches(1), strict=True):
                assert_same_batches([{name: one[name] for name in other}], [other])
            assert masked.report.repeats == filled.report.repeats


def test_masks_by_hand() -> None:
    # Five rows in batches of two: the third step repeats row 0. Row 2 is bad, and row 0, the shortest, stands in.
    rows = with_bad(token_pairs(5), [2])
    found = list(make(rows, "pad", 2, shuffle=False).batches())
    assert [rows_in(batch) for batch in found] == [[0, 1], [0, 3], [4, 0]]
    assert [batch["row_mask"].tolist() for batch in found] == [[1, 1], [0, 1], [1, 0]]


def test_masks_of_sorted_windows_by_hand() -> None:
    options: dict[str, Any] = {"rows": 3, "global_batch": 4, "drop_remainder": "mask", "shuffle": "window", "window": 2}
    plan = IndexedPlan(PlanOptions(**options), np.array([5, 3, 4], np.int32))
    assert plan.rows(0, 0, 0, 1)[:2].tolist() != [0, 0]
    rows, filling = plan.rows(0, 0, 0, 1).tolist(), plan.filling(0, 0, 0, 1).tolist()
    assert [row for row, fills in zip(rows, filling, strict=True) if not fills] == [1, 2, 0]  # by length
    again = next(row for row, fills in zip(rows, filling, strict=True) if fills)
    assert rows.index(again) < 3
    assert filling.index(True) == rows.index(again) + 1  # the repeat comes second


@given(st.integers(1, 60), st.integers(1, 6), st.integers(1, 3), st.booleans(), st.integers(0, 3))
def test_plans_fill_with_as_many_slots_as_they_say(rows: int, size: int, shards: int, sort: bool, epoch: int) -> None:
    batch = size * shards
    settings: dict[str, Any] = {
        "rows": rows,
        "global_batch": batch,
        "window": 2,
        "sort": sort,
        "drop_remainder": "mask",
    }
    plan = IndexedPlan(PlanOptions(**settings), np.arange(rows, dtype=np.int32) % 7)
    steps = range(plan.steps_per_epoch)
    kept = [plan.rows(epoch, step, 0, 1)[~plan.filling(epoch, step, 0, 1)] for step in steps]
    assert sorted(np.concatenate(kept).tolist()) == [*range(rows)]
    windowed = WindowedPlan(PlanOptions(**settings, logical_shards=shards))
    places = [(window, shard) for window in range(windowed.windows_per_epoch) for shard in range(shards)]
    real = [windowed.shard_rows(epoch, *place)[~windowed.shard_filling(epoch, *place)] for place in places]
    assert sorted(np.concatenate(real).tolist()) == [*range(rows)]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(0, 3), st.sampled_from([1, 2, 4]))
def test_with_a_token_budget(lengths: list[int], epoch: int, world: int) -> None:
    options = BudgetOptions(
        rows=len(lengths), tokens=240, sequences=1, widths=(8, 16, 30), logical_shards=4, drop_remainder="mask"
    )
    plan = BudgetPlan(options, np.array(lengths, np.int32))
    found: list[int] = []
    for step in range(plan.steps_per_epoch):
        for rank in range(world):
            rows, filling = plan.rows(epoch, step, rank, world), plan.filling(epoch, step, rank, world)
            found += rows[~filling].tolist()
    assert sorted(found) == [*range(len(lengths))]


def test_a_stream_by_a_token_budget(tmp_path: pathlib.Path) -> None:
    path = json_lines(tmp_path / "rows.jsonl", pairs(50))
    options: dict[str, Any] = {"task": mps.DPO(128), "tokenizer": "bytes", "drop_remainder": "mask", "index": "build"}
    stream = mps.stream(path, batching=mps.Bucket(max_tokens=2048), verbose=False, **options)
    assert counted(stream.batches()) == Counter(range(50))


@pytest.mark.parametrize("kind", [*ONE_PASS, "list"])
@pytest.mark.parametrize("world", [1, 3])
def test_sources_of_every_kind(tmp_path: pathlib.Path, kind: str, world: int) -> None:
    source = source_of(kind, tmp_path, with_bad(token_pairs(31), [0, 9, 20, 30]))
    ranks = [make(source, "bucket", 6, world, rank, window=2) for rank in range(world)]
    for epoch in range(2):
        good = Counter(set(range(31)) - {0, 9, 20, 30})
        assert sum((counted(stream.batches(epoch)) for stream in ranks), Counter()) == good


def test_a_shard_without_a_good_row_takes_one_of_another_shard() -> None:
    rows = with_bad(token_pairs(8), [1, 3, 5, 7])
    for source in (rows, lambda: iter(rows)):
        second = make(source, "pad", 2, 2, 1, shuffle=False, workers=2)
        assert counted(second.batches()) == Counter()
        assert second.report.repeats == 4
    ranks = [make(rows, "pad", 2, 2, rank, shuffle=False) for rank in range(2)]
    assert [counted(stream.batches()) for stream in ranks] == [Counter([0, 2, 4, 6]), Counter()]
    assert ranks[1].report.dropped == {"identical": 4}
    assert rows_in(next(ranks[1].batches())) == ranks[1].rows(0, 0, resolved=True).tolist() == [0]
    with pytest.raises(mps.NoUsableRowsError):
        next(make(with_bad(rows, range(8)), "pad", 2, shuffle=False).batches())


@pytest.mark.parametrize("shuffle", [True, False, "window"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("is_indexed", [True, False])
def test_the_rows_of_a_mix_count_as_often_as_it_has_them(
    tmp_path: pathlib.Path, shuffle: Any, rule: str, world: int, is_indexed: bool
) -> None:
    parts = [
        json_lines(tmp_path / f"{name}.jsonl", rows)
        for name, rows in (("a", token_pairs(9)), ("b", token_pairs(31)[9:]))
    ]
    if is_indexed:
        mps.build_index(mps.mix([(path, 1) for path in parts]), task=mps.DPO(20), tokenizer=None, verbose=False)
    mixed = mps.mix([(path, 1) for path in parts], stop="all")
    for epoch in range(2):
        ranks = [make(mixed, rule, 4, world, rank, shuffle=shuffle, window=2) for rank in range(world)]
        assert all((stream.data.index is not None) == is_indexed for stream in ranks)
        found = sum((counted(stream.batches(epoch)) for stream in ranks), Counter())
        assert {row: found[row] for row in range(9, 31)} == dict.fromkeys(range(9, 31), 1)
        assert set(found) == set(range(31))
        assert max(found.values()) == 3
        assert found.total() == ranks[0].data.records.mixture.rows  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "task",
    [
        mps.DPO(128),
        mps.DPO(128, layout="concat"),
        mps.Reward(128),
        mps.Reward(128, layout="reward_token", reward_token=0),
    ],
    ids=repr,
)
def test_a_pair_has_one_entry(task: Any) -> None:
    stream = mps.stream(pairs(7), task=task, tokenizer="bytes", batching=mps.Pad(4), drop_remainder="mask")
    assert [int(batch["row_mask"].sum()) for batch in stream.batches()] == [4, 3]
    assert counted(stream.batches()) == Counter(range(7))


def test_runs_resume_at_every_step_and_caches_are_masked(tmp_path: pathlib.Path) -> None:
    path = json_lines(tmp_path / "rows.jsonl", pairs(22))
    options: dict[str, Any] = {"task": mps.DPO(128), "tokenizer": "bytes", "window": 2}
    assert_resumes_everywhere(lambda: make(path, "bucket", 4, **options))
    mps.write_cache(make(path, "bucket", 4, **options), tmp_path / "cache")
    assert_resumes_everywhere(lambda: make(tmp_path / "cache", "pad", 4, task=mps.DPO(128)))
    state = make(path, "bucket", 4, **options).state(1)
    assert state["drop_remainder"] == "mask"
    with pytest.raises(mps.StateError, match="drop_remainder was 'mask' and is False now"):
        make(path, "bucket", 4, **options, drop_remainder=False).resume(state)


def test_after_carried_columns_and_through_mindspore() -> None:
    rows = [{**row, "id": number} for number, row in enumerate(pairs(7))]
    options: dict[str, Any] = {"task": mps.DPO(128), "tokenizer": "bytes", "carry": ["id"]}
    stream = make(rows, "pad", 4, **options)
    assert stream.column_names[-2:] == ["id", "row_mask"]
    found = list(through_mindspore(stream.dataset()))
    assert counted(found, lambda batch: batch["id"]) == Counter(range(7))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"batching": mps.Pack(256), "steps_per_epoch": 2},
            "drop_remainder is 'mask', but a packed row has no row mask",
        ),
        ({"drop_remainder": "masked"}, "drop_remainder='masked' is not allowed; expected True, False or 'mask'"),
        ({"carry": ["row_mask"]}, "carry makes a column 'row_mask'"),
    ],
)
def test_what_is_refused(options: dict[str, Any], said: str) -> None:
    given = {"task": mps.DPO(128), "tokenizer": "bytes", "batching": mps.Pad(4), "drop_remainder": "mask"} | options
    with pytest.raises(mps.OptionError, match=said):
        mps.stream([{**row, "row_mask": 1} for row in pairs(9)], **given)
