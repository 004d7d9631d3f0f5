"""Chosen columns, and single samples: the same arrays as in the batches, in any order of reading, resumed or not."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

import ms_prefstream as mps
from ms_prefstream.errors import OptionError
from ms_prefstream.mindspore.dataset import to_dataset
from ms_prefstream.mindspore.samples import Samples
from ms_prefstream.steps.collate import select_columns
from tests.helpers import assert_same_batches, pairs, rows_of, through_mindspore
from tests.kinds import source_of

pytestmark = pytest.mark.mindspore
COLUMNS = ["rejected_loss_mask", "chosen_input_ids"]


def make(source: Any = None, **options: Any) -> mps.Stream:
    settings = {"task": mps.DPO(128), "tokenizer": "bytes", "batching": mps.Bucket(2, multiple_of=64), "window": 2}
    return mps.stream(pairs(10) if source is None else source, **settings | options)


def some(batches: Any) -> list[dict[str, Any]]:
    return [{name: batch[name] for name in COLUMNS} for batch in batches]


@pytest.mark.parametrize("kind", ["json lines", "generator function"])
def test_chosen_columns_are_all_that_a_dataset_delivers(kind: str, tmp_path: pathlib.Path) -> None:
    stream = make(source_of(kind, tmp_path, pairs(10)))
    dataset = stream.dataset(columns=COLUMNS)
    assert dataset.get_col_names() == COLUMNS
    found = [{name: batch[name] for name in batch} for batch in through_mindspore(dataset, 2)]
    assert_same_batches(some(found), some([*stream.batches(0), *stream.batches(1)]))
    assert [sorted(batch) for batch in found] == [sorted(COLUMNS)] * 10


@pytest.mark.parametrize("kind", ["json lines", "gz"])
def test_chosen_columns_of_a_resumed_stream(kind: str, tmp_path: pathlib.Path) -> None:
    source = source_of(kind, tmp_path, pairs(10))
    stream = make(source)
    expected = some(stream.batches(0, 3))
    dataset = make(source).resume(stream.state(3)).dataset(columns=COLUMNS)
    assert_same_batches(some(through_mindspore(dataset)), expected)


@pytest.mark.parametrize("kind", ["json lines", "gz"])
def test_the_view_itself_holds_the_chosen_columns_alone(kind: str, tmp_path: pathlib.Path) -> None:
    steps = make(source_of(kind, tmp_path, pairs(10)))._steps
    view = select_columns(steps, COLUMNS)
    batch = next(view.start(0, 1))
    assert list(batch) == view.column_names == COLUMNS


@pytest.mark.parametrize("columns", [[], ["chosen_input_ids"] * 2, ["tokens"]])
def test_columns_that_cannot_be_chosen(columns: list[str]) -> None:
    with pytest.raises(OptionError, match="chosen_input_ids, chosen_labels"):
        make().dataset(columns=columns)


@pytest.mark.parametrize("kind", ["json lines", "gz"])
def test_samples_batched_again_are_the_batches(kind: str, tmp_path: pathlib.Path) -> None:
    stream = make(source_of(kind, tmp_path, pairs(10)))
    expected = [*stream.batches(0), *stream.batches(1)]
    found = list(through_mindspore(to_dataset(Samples(stream)).batch(2), 2))
    assert_same_batches([{name: batch[name] for name in stream.column_names} for batch in found], expected)
    skipped = to_dataset(Samples(stream)).batch(2)
    skipped.set_init_step(3)
    assert rows_of(through_mindspore(skipped)) == rows_of(expected[3:5])


def test_carried_strings_and_masks_of_samples_are_batched_again() -> None:
    rows = [{**row, "answer": "é" * number, "id": number} for number, row in enumerate(pairs(9))]
    stream = make(rows, carry=["answer", "id"], drop_remainder="mask")
    found = list(through_mindspore(to_dataset(Samples(stream)).batch(2)))
    for one, other in zip(found, stream.batches(), strict=True):
        assert [one[name].tolist() for name in ("answer", "id", "row_mask")] == [
            other[name].tolist() for name in ("answer", "id", "row_mask")
        ]


@pytest.mark.parametrize("number", [0, 1, 5, 6, 9])
def test_samples_start_at_any_number(number: int) -> None:
    stream = make()
    rows = [{name: batch[name][row] for name in batch} for batch in stream.batches(1) for row in range(2)]
    assert_same_batches(list(Samples(make()).start(1, number)), rows[number:])


@pytest.mark.parametrize("margin", [False, True])
def test_training_without_reference_adds_zeros_after_each_side(margin: bool) -> None:
    samples = Samples(make(task=mps.DPO(128, margin=margin)), reference_free=True)
    side = ["input_ids", "labels", "attention_mask", "loss_mask", "ref_logps"]
    expected = [f"{name}_{column}" for name in ("chosen", "rejected") for column in side]
    assert samples.column_names == expected + ["margin"] * margin
    for name in ("chosen_ref_logps", "rejected_ref_logps"):
        array = next(samples.start(0, 3))[name]
        assert (array.dtype, array.tolist()) == (np.float32, [0.0])


@pytest.mark.parametrize(
    "options",
    [
        {"task": mps.DPO(128, layout="concat")},
        {"task": mps.Reward(128)},
        {"batching": mps.Pack(256), "steps_per_epoch": 2},
    ],
)
def test_batches_that_cannot_be_taken_apart_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="cannot be taken apart into single samples"):
        Samples(make(**options))


def test_no_reference_columns_for_other_layouts() -> None:
    with pytest.raises(OptionError, match="DPO layout 'paired'"):
        Samples(make(task=mps.RLHF(64, 128)), reference_free=True)
