"""Carried fields through whole streams: every task and rule, workers, indexes, caches, resume, MindSpore, YAML."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest

import ms_prefstream as mps
from ms_prefstream.adapters.yaml_keys import stream_from
from tests.helpers import (
    Batch,
    Row,
    assert_resumes_everywhere,
    assert_same_batches,
    json_lines,
    pairs,
    rest_through_mindspore,
    through_mindspore,
)
from tests.kinds import SOURCES, source_of

N = 40
CARRY = {"answer": "text", "extra.weight": ["float32", 2.5], "id": "int64"}
NAMES = ["answer", "weight", "id"]
TASKS = {
    "dpo": mps.DPO(128, margin=True),
    "concat": mps.DPO(128, layout="concat"),
    "reward": mps.Reward(128),
    "reward_token": mps.Reward(128, layout="reward_token", reward_token=300),
    "rlhf": mps.RLHF(64, 128),
}
RULES = {"pad": mps.Pad(4), "bucket": mps.Bucket(4, max_shapes=3), "pack": mps.Pack(512, max_segments=9, batch_size=2)}


def rows(count: int = N) -> list[Row]:
    found: list[Row] = []
    for number, row in enumerate(pairs(count)):
        extra = {"weight": number / 4} if number % 3 else {}
        found.append({**row, "answer": f"答 {number}" * (number % 4), "id": number - 2**60, "extra": extra})
    return found


def value_of(row: int) -> tuple[str, float, int]:
    """What row `row` carries."""
    return f"答 {row}" * (row % 4), row / 4 if row % 3 else 2.5, row - 2**60


def make(source: Any, task: Any = TASKS["dpo"], batching: Any = RULES["bucket"], **options: Any) -> mps.Stream:
    options = {
        "tokenizer": "bytes",
        "carry": CARRY,
        "seed": 3,
        "window": 3,
        "verbose": False,
        "vocab_size": 320,
    } | options
    if isinstance(batching, mps.Pack):
        options.setdefault("steps_per_epoch", 9)
    return mps.stream(source, task=task, batching=batching, **options)


def carried_in(batch: Batch) -> list[tuple[Any, ...]]:
    """The carried values of a batch, of packs one row after the other, after a check of their form."""
    texts, weights, ids = (batch[name] for name in NAMES)
    assert texts.dtype.kind == "U"
    assert (weights.dtype, ids.dtype) == (np.float32, np.int64)
    if texts.ndim == 1:
        return list(zip(texts.tolist(), weights.tolist(), ids.tolist(), strict=True))
    counts = batch["pair_ids"].max(axis=1)
    assert texts.shape == weights.shape == ids.shape == batch["actual_seq_len"].shape
    found = []
    for row, count in enumerate(counts):
        assert not any(texts[row, count:])
        assert not weights[row, count:].any()
        assert not ids[row, count:].any()
        found += zip(texts[row, :count].tolist(), weights[row, :count].tolist(), ids[row, :count].tolist(), strict=True)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("workers", [0, 2])
def test_every_sample_has_the_values_of_its_row(tmp_path: pathlib.Path, task: str, rule: str, workers: int) -> None:
    if rule == "pack" and task in ("concat", "reward"):
        pytest.skip("packs have a layout of their own")
    path = json_lines(tmp_path / "rows.jsonl", rows())
    stream = make(path, TASKS[task], RULES[rule], workers=workers)
    plain = make(path, TASKS[task], RULES[rule], carry=None)
    assert stream.column_names == [*plain.column_names, *NAMES]
    for step, (batch, without) in enumerate(zip(stream.batches(), plain.batches(), strict=True)):
        assert list(batch) == stream.column_names
        assert carried_in(batch) == [value_of(row) for row in stream.rows(0, step).tolist()]
        assert_same_batches([{name: batch[name] for name in without}], [without])
    mps.write_cache(stream, tmp_path / "cache", rows_per_part=16)
    cached = make(tmp_path / "cache", TASKS[task], RULES[rule], carry=None, tokenizer=None, index=None, workers=workers)
    assert_same_batches(list(cached.batches(1)), list(stream.batches(1)))


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_of_source(tmp_path: pathlib.Path, kind: str) -> None:
    whole = [{**row, "extra": {"weight": number / 4}} for number, row in enumerate(rows())]
    stream = make(source_of(kind, tmp_path, whole))
    seen = [value for batch in stream.batches() for value in carried_in(batch)]
    assert sorted(seen, key=lambda value: value[2]) == [(value_of(row)[0], row / 4, row - 2**60) for row in range(N)]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["json lines", "gz"])
def test_runs_resume_at_every_step(tmp_path: pathlib.Path, rule: str, kind: str) -> None:
    folder = iter(range(1000))

    def one() -> mps.Stream:
        (here := tmp_path / str(next(folder))).mkdir()
        return make(source_of(kind, here, rows()), batching=RULES[rule], seed=1)

    assert_resumes_everywhere(one)


def test_through_a_dataset_of_mindspore(tmp_path: pathlib.Path) -> None:
    path = json_lines(tmp_path / "rows.jsonl", rows())
    batches = list(make(path).batches())
    found = list(through_mindspore(make(path).dataset()))
    for one, other in zip(found, batches, strict=True):
        assert carried_in(one) == carried_in(other)
    dataset = make(path).dataset()
    assert [np.dtype(one).kind for one in dataset.output_types()[-3:]] == ["U", "f", "i"]
    first = next(dataset.create_dict_iterator(num_epochs=1))
    assert first["answer"].tolist() == batches[0]["answer"].tolist()  # strings are no tensors
    assert first["id"].asnumpy().tolist() == batches[0]["id"].tolist()
    only = next(iter(through_mindspore(make(path).dataset(columns=["id", "answer"]))))
    assert list(only) == ["id", "answer"]
    assert_resumes_everywhere(lambda: make(path, carry=["id"]), 2, rest_through_mindspore)


def test_with_a_length_index(tmp_path: pathlib.Path) -> None:
    bad = [
        *rows(),
        {**rows()[0], "id": "no number"},
        {key: value for key, value in rows()[1].items() if key != "answer"},
    ]
    path = json_lines(tmp_path / "rows.jsonl", bad)
    options: dict[str, Any] = {"task": TASKS["dpo"], "tokenizer": "bytes", "vocab_size": 320}
    with pytest.raises(
        mps.RowError, match=r"rows\.jsonl:41: field 'id', which is carried as int64, is str 'no number'"
    ):
        mps.build_index(path, carry=CARRY, verbose=False, **options)
    index = mps.build_index(path, carry=CARRY, on_bad_row="drop", verbose=False, workers=2, **options)
    assert (index.usable, index.rows) == (N, N + 2)
    stream = make(path, on_bad_row="drop")
    assert stream.data.index is not None
    for step, batch in enumerate(stream.batches()):
        assert carried_in(batch) == [value_of(row) for row in stream.rows(0, step).tolist()]
    assert stream.report.dropped == {"bad_type": 1, "missing_field": 1}
    assert make(path, on_bad_row="drop", carry=None).data.index is None  # its rows are other ones
    other = make(path, on_bad_row="drop", carry=dict(reversed(CARRY.items())))
    assert other.data.index is not None


def test_states_name_what_is_carried_if_anything_is(tmp_path: pathlib.Path) -> None:
    path = json_lines(tmp_path / "rows.jsonl", rows())
    state = make(path).state(2)
    assert json.loads(state["carry"]) == {"answer": "text", "extra.weight": ["float32", 2.5], "id": "int64"}
    plain = make(path, carry=None)
    assert "carry" not in plain.state(0)
    with pytest.raises(mps.StateError, match="carry was None and is"):
        make(path).resume(plain.state(2))
    with pytest.raises(mps.StateError, match=r"carry was .* and is None now"):
        plain.resume(state)


def test_dtypes_are_guessed_alike_on_every_rank(tmp_path: pathlib.Path) -> None:
    path = json_lines(tmp_path / "rows.jsonl", [{**row, "at": number / 2} for number, row in enumerate(rows())])
    for rank in range(2):
        stream = make(path, carry=["answer", "id", "at"], num_shards=2, shard_id=rank)
        batch = next(stream.batches())
        assert [batch[name].dtype.kind for name in ("answer", "id", "at")] == ["U", "i", "f"]
    assert " · carries answer text, id int64, at float32" in repr(stream)
    by_hand = make(path, carry={"answer": "text", "id": "int64", "at": "float32"})
    assert by_hand.state(0)["carry"] == make(path, carry=["id", "at", "answer"]).state(0)["carry"]


def test_what_can_be_read_only_once_needs_dtypes() -> None:
    with pytest.raises(mps.OptionError, match=r"can be read only once. State them, as carry="):
        make(iter(rows()), batching=mps.Pad(4), carry=["id"], steps_per_epoch=3)
    batch = next(make(iter(rows()), batching=mps.Pad(4), carry={"id": "int64"}, steps_per_epoch=3).batches())
    assert batch["id"].dtype == np.int64


def test_rows_that_give_several_records() -> None:
    ranked = [
        {"prompt": f"#{row}#", "responses": ["a" * n for n in (1, 2, 3)], "scores": [1, 2, 3], "id": row}
        for row in range(9)
    ]
    stream = make(ranked, format="ranked", carry=["id"], batching=mps.Pad(3))
    found = [row for batch in stream.batches() for row in batch["id"].tolist()]
    assert sorted(found) == sorted(3 * [*range(9)])


def test_the_parts_of_a_mix_and_a_cache_among_them(tmp_path: pathlib.Path) -> None:
    path = json_lines(tmp_path / "rows.jsonl", rows())
    mps.write_cache(make(path), tmp_path / "cache")
    for second in (path, tmp_path / "cache"):
        mixed = mps.mix([(str(path), 1), (str(second), 1)])
        batches = list(make(mixed, carry=["id", "answer"]).batches())
        assert {batch["id"].dtype for batch in batches} == {np.dtype(np.int64)}
        seen = [row for batch in batches for row in batch["id"].tolist()]
        assert len(set(seen)) > N // 2
    with pytest.raises(
        mps.OptionError, match=r"carry has 'float32' for 'id', but the cache .* was written with 'int64'"
    ):
        make(mixed, carry={"id": "float32"})
    with pytest.raises(mps.OptionError, match=r"carry names 'ok', but the cache .* carries answer \(text\), extra"):
        make(mixed, carry=["ok"])


def test_a_cache_gives_what_it_carries_or_a_part_of_it(tmp_path: pathlib.Path) -> None:
    path = json_lines(tmp_path / "rows.jsonl", rows())
    manifest = mps.write_cache(make(path), tmp_path / "cache")
    assert list(manifest.columns)[-3:] == NAMES
    cached = make(tmp_path / "cache", carry=["id"], tokenizer=None)
    assert cached.column_names[-2:] == ["margin", "id"]
    mps.write_cache(cached, tmp_path / "second")
    assert make(tmp_path / "second", carry=None, tokenizer=None).column_names[-2:] == ["margin", "id"]
    assert_resumes_everywhere(lambda: make(tmp_path / "cache", carry=None, tokenizer=None))
    with pytest.raises(mps.OptionError, match=r"the cache .*second carries id"):
        make(tmp_path / "second", carry=["answer"], tokenizer=None)
    with pytest.raises(mps.OptionError, match=r"\['float32', 1.0\] for 'weight', but .* with \['float32', 2.5\]"):
        make(tmp_path / "cache", carry={"weight": ["float32", 1.0]}, tokenizer=None)
    unlike = mps.mix([(str(tmp_path / "cache"), 1), (str(tmp_path / "second"), 1)])
    assert make(unlike, carry=None, tokenizer=None).column_names[-2:] == ["margin", "id"]


@pytest.mark.parametrize(
    ("layout", "task"), [("mindrlhf", mps.DPO(128)), ("mindrlhf", TASKS["rlhf"]), ("mindformers", TASKS["reward"])]
)
def test_files_for_other_readers_have_the_columns(tmp_path: pathlib.Path, layout: str, task: Any) -> None:
    from mindspore.dataset import MindDataset

    mps.write_cache(make(rows(), task), tmp_path / "files", layout=layout)
    files = sorted(map(str, (tmp_path / "files").glob("*.mindrecord")))
    found = list(MindDataset(files, shuffle=False).create_dict_iterator(num_epochs=1, output_numpy=True))
    values = [(row["answer"][0].decode(), row["weight"].item(), row["id"].item()) for row in found]
    assert values == [value_of(row) for row in range(N)]


def test_a_cache_has_no_room_for_some_names_and_texts(tmp_path: pathlib.Path) -> None:
    some = [{**row, "row_id": 1, "a b": 1, "long": "x" * (2**18 + 1)} for row in rows(4)]
    for name, said in (("row_id", "MindRecord files have already"), ("a b", "files cannot have")):
        with pytest.raises(mps.OptionError, match=said):
            mps.write_cache(make(some, carry=[name]), tmp_path / "cache")
    with pytest.raises(mps.OptionError, match="row 0: field 'long', which is carried, has 262,145 bytes of text"):
        mps.write_cache(make(some, carry=["long"]), tmp_path / "cache")


@pytest.mark.parametrize(
    ("carry", "task", "said"),
    [
        (["margin"], mps.DPO(64), "column 'margin', which is one of DPO.*Pass margin=True"),
        (["labels"], TASKS["concat"], "column 'labels'"),
        (["end_ind"], TASKS["reward"], "column 'end_ind'"),
        ({"row_mask": ["int64", 1]}, mps.DPO(64), "column 'row_mask', which is one of drop_remainder='mask' already"),
    ],
)
def test_names_that_the_task_has(carry: Any, task: Any, said: str) -> None:
    with pytest.raises(mps.OptionError, match=said):
        make([{**row, "labels": 1, "end_ind": 1} for row in rows()], task, carry=carry)
    assert "margin" in make(rows(), TASKS["rlhf"], carry=["margin"]).column_names


def test_one_row_and_yaml(tmp_path: pathlib.Path) -> None:
    path = json_lines(tmp_path / "rows.jsonl", rows())
    one = mps.encode(rows()[1], task=TASKS["dpo"], tokenizer="bytes", carry=["answer", "id"])
    assert one.sample is not None
    assert dict(one.sample.columns) == {"margin": 0.5, "answer": "答 1", "id": 1 - 2**60}
    assert f"  carried     answer 答 1 · id {1 - 2**60}" in str(one).splitlines()
    section = {
        "source": str(path),
        "tokenizer": "bytes",
        "task": {"type": "DPO", "max_length": 128},
        "batching": {"type": "Pad", "batch_size": 4},
        "verbose": False,
    }
    for carry in (["answer", "id"], {"answer": "text", "extra.weight": ["float32", 2.5]}):
        assert_same_batches(
            list(stream_from({**section, "carry": carry}).batches()),
            list(make(path, mps.DPO(128), mps.Pad(4), carry=carry, seed=0, vocab_size=None, window=64).batches()),
        )
