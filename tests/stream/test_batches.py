"""Columns, dtypes and shapes of every task and layout, the same with and without MindSpore."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

import ms_prefstream as mps
from ms_prefstream.errors import OptionError
from tests.helpers import PAD, Batch, assert_same_batches, pairs, rows_of, through_mindspore, token_pairs

B = 4
INT, HALF, FLOAT = np.dtype("int32"), np.dtype("float16"), np.dtype("float32")
PAIRED = {
    f"{side}_{array}": (INT, B)
    for side in ("chosen", "rejected")
    for array in ("input_ids", "labels", "attention_mask", "loss_mask")
}
CONCAT = {name: (INT, 2 * B) for name in ("input_ids", "labels", "attention_mask", "loss_mask")}
REWARD = {
    "input_ids": (INT, 2 * B),
    "position_id": (INT, 2 * B),
    "attention_mask": (HALF, 2 * B),
    "loss_mask": (HALF, B),
}
TASKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "dpo": (mps.DPO(100), PAIRED),
    "dpo shifted": (mps.DPO(100, labels="shifted"), PAIRED),
    "dpo margin": (mps.DPO(100, margin=True), PAIRED | {"margin": (FLOAT, None)}),
    "dpo concat": (mps.DPO(100, layout="concat"), CONCAT),
    "dpo concat shifted": (mps.DPO(100, layout="concat", labels="shifted"), CONCAT),
    "reward": (mps.Reward(100), REWARD | {"end_ind": (INT, None)}),
    "reward token": (
        mps.Reward(100, layout="reward_token", reward_token=256),
        {name: (INT, 2 * B) for name in ("input_ids", "attention_mask", "labels")},
    ),
    "rlhf": (mps.RLHF(50, 100), {"prompt_ids": (INT, "prompt"), "pretrain_ids": (INT, B), "loss_mask": (INT, B)}),
}
BATCHINGS: dict[str, tuple[Any, set[int]]] = {
    "pad": (mps.Pad(B), {100}),
    "pad to more": (mps.Pad(B, length=128), {128}),
    "bucket": (mps.Bucket(B, multiple_of=32), {32, 64, 96, 128}),
    "bucket of 64": (mps.Bucket(B), {64, 128}),
    "boundaries": (mps.Bucket(B, boundaries=(50, 80, 100)), {50, 80, 100}),
    "extra": (mps.Bucket(B, multiple_of=32, extra=1), {33, 65, 97, 129}),
}
needs_mindspore = pytest.mark.skipif(importlib.util.find_spec("mindspore") is None, reason="needs mindspore")


def make(task: Any, batching: Any, **options: Any) -> mps.Stream:
    return mps.stream(pairs(30), **{"task": task, "tokenizer": "bytes", "batching": batching, "window": 3} | options)


def check(batch: Batch, columns: dict[str, Any], widths: set[int]) -> int:
    """Names, order, dtypes and shapes of one batch; returns its width."""
    assert list(batch) == list(columns)
    width = next(array.shape[1] for name, array in batch.items() if name != "prompt_ids" and array.ndim == 2)
    assert width in widths
    for name, (dtype, rows) in columns.items():
        array = batch[name]
        assert array.dtype == dtype, name
        if rows is None:  # one value a row, or a sequence
            assert array.shape == (B if name == "margin" else 2 * B,), name
        else:
            assert array.shape == ((B, 50) if rows == "prompt" else (rows, width)), name
        assert array.flags.c_contiguous
    return width


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("task", TASKS)
def test_batches_have_the_columns_types_and_shapes_that_are_promised(task: str, batching: str) -> None:
    (options, columns), (mode, widths) = TASKS[task], BATCHINGS[batching]
    stream = make(options, mode)
    assert stream.column_names == list(columns)
    rows = B if task.startswith("rlhf") or columns is PAIRED or "chosen_input_ids" in columns else 2 * B
    assert stream.shapes == [(rows, width) for width in sorted(widths)]
    used = {check(batch, columns, widths) for epoch in range(2) for batch in stream.batches(epoch)}
    assert len(used) > 1 or len(widths) == 1  # a single width would prove nothing
    assert set(stream.report.widths) == used


def test_the_widths_of_max_shapes_are_few_and_chosen_from_the_rows(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "ms_prefstream"):
        stream = make(mps.DPO(128), mps.Bucket(B, max_shapes=3, round_to=8))
    widths = [width for _, width in stream.shapes]
    assert f"widths {' '.join(map(str, widths))}\n" in caplog.messages[0]
    assert f"widths chosen for the data: {', '.join(map(str, widths))}" in str(stream.report)
    caplog.clear()
    with caplog.at_level("INFO", "ms_prefstream"):
        make(mps.DPO(128), mps.Bucket(B, max_shapes=3, round_to=8), verbose=False)
        make(mps.DPO(128), mps.Bucket(B, max_shapes=3, round_to=8), num_shards=2, shard_id=1)
    assert not caplog.messages
    assert "widths chosen" not in str(make(mps.DPO(128), mps.Bucket(B, multiple_of=64)).report)
    assert len(widths) == 3
    assert widths[-1] == 128
    assert all(width % 8 == 0 for width in widths)
    used = {batch["chosen_input_ids"].shape for epoch in range(3) for batch in stream.batches(epoch)}
    assert used <= set(stream.shapes)
    assert len(used) > 1
    for rank in range(2):  # every rank chooses the same, and so does any number of them with the same global batch
        again = make(mps.DPO(128), mps.Bucket(B // 2, max_shapes=3, round_to=8), num_shards=2, shard_id=rank)
        assert [width for _, width in again.shapes] == widths


def test_a_batch_gets_the_smallest_width_that_holds_it() -> None:
    for batch in make(mps.DPO(100), mps.Bucket(B, multiple_of=16)).batches():
        longest = max(batch[f"{side}_attention_mask"].sum(1).max() for side in ("chosen", "rejected"))
        assert batch["chosen_input_ids"].shape[1] == -(-longest // 16) * 16


@needs_mindspore
@pytest.mark.mindspore
@pytest.mark.parametrize("task", TASKS)
def test_mindspore_hands_out_the_same_batches_bit_by_bit(task: str) -> None:
    options, columns = TASKS[task]
    stream = make(options, mps.Bucket(B, multiple_of=32))
    dataset = stream.dataset()
    assert dataset.get_dataset_size() == len(dataset) == stream.steps_per_epoch == 7
    assert dataset.get_col_names() == stream.column_names == list(columns)
    expected = [*stream.batches(0), *stream.batches(1)]
    assert_same_batches(list(through_mindspore(dataset, 2)), expected)


def test_a_batch_belongs_to_the_reader() -> None:
    stream = make(mps.DPO(100), mps.Pad(B))
    first = next(stream.batches())
    for array in first.values():
        array[:] = -1
    again = next(stream.batches())
    assert all((array >= 0).all() for array in again.values())


def test_padding_is_the_pad_id_and_can_be_chosen() -> None:
    for given, used in ((None, PAD), (7, 7)):
        batch = next(make(mps.DPO(128), mps.Pad(B), pad_token_id=given).batches())
        padding = batch["chosen_attention_mask"] == 0
        assert padding.any()
        assert set(batch["chosen_input_ids"][padding].tolist()) == {used}


def test_tokenized_rows_need_no_tokenizer() -> None:
    stream = mps.stream(
        token_pairs(8), task=mps.DPO(20), tokenizer=None, pad_token_id=0, batching=mps.Pad(2), shuffle=False
    )
    batch = next(stream.batches())
    assert rows_of([batch]) == [[0, 1]]
    assert batch["chosen_input_ids"][0].tolist() == [*b"#0#", 120] + [0] * 16
    assert batch["chosen_loss_mask"][0].tolist() == [0, 0, 0, 1] + [0] * 16
    limited = mps.stream(
        token_pairs(8), task=mps.DPO(8), tokenizer=None, pad_token_id=0, batching=mps.Pad(8), shuffle=False
    )
    assert next(limited.batches())["chosen_input_ids"].shape == (8, 8)
    assert limited.report.truncated > 0


def test_the_report_counts_tokens_and_padding() -> None:
    stream = make(mps.DPO(128), mps.Bucket(B, multiple_of=16))
    batches = list(stream.batches())
    masks = [batch[f"{side}_attention_mask"] for batch in batches for side in ("chosen", "rejected")]
    assert stream.report.tokens == sum(int(mask.sum()) for mask in masks)
    assert stream.report.cells == sum(mask.size for mask in masks)
    assert stream.report.padding == pytest.approx(1 - stream.report.tokens / stream.report.cells)
    assert sum(stream.report.widths.values()) == len(batches)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True, "8"])
@pytest.mark.parametrize("kind", [mps.Pad, mps.Bucket])
def test_a_batch_size_that_is_no_number_of_rows(kind: Any, batch_size: Any) -> None:
    with pytest.raises(OptionError, match=rf"{kind.__name__}: batch_size is {batch_size!r}"):
        kind(batch_size)


@pytest.mark.parametrize(
    "scores", [{"margin": 1e39}, {"margin": -3.5e38}, {"score_chosen": 2e38, "score_rejected": -2e38}]
)
def test_a_margin_that_its_column_cannot_hold_is_a_bad_row(scores: dict[str, float]) -> None:
    """It would be infinite in the batch."""
    row = {"prompt": "p", "chosen": "c", "rejected": "r"}
    rows = [{**row, **scores}, {**row, "margin": 3.4e38}]
    options: dict[str, Any] = {"task": mps.DPO(64, margin=True), "tokenizer": "bytes", "batching": mps.Pad(1)}
    with pytest.raises(mps.RowError, match=r"row 0 of list: .*margin is .*; expected a number that float32 can hold"):
        list(mps.stream(rows, shuffle=False, **options).batches())
    stream = mps.stream(rows, on_bad_row="drop", **options)
    assert {float(batch["margin"][0]) for batch in stream.batches()} == {float(np.float32(3.4e38))}
    assert stream.report.dropped == {"bad_type": 1}
