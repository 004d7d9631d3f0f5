"""A MindFormers trainer does not pair columns with other arguments, nor count other rows, without a word."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.mindspore, pytest.mark.training]
SWAPPED = "the same names in another order, while MindFormers pairs the two by place"


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("one key too few", ["[input_ids, labels]", "has [input_ids]: of 2 columns and 1 names"]),
        ("one key too many", ["labels, margin]: of 4 columns and 5 names", "the first 4 and drop the rest"]),
        ("two swapped", ["has [labels, input_ids]", SWAPPED, "input_columns: [labels, input_ids]"]),
        ("another order", ["the columns are [input_ids, labels, attention_mask, loss_mask]", SWAPPED]),
        ("a word", ["construct_args_key is 'input_ids'; expected a list"]),
        ("a dataset without keys", [SWAPPED, "stream.dataset(columns=['loss_mask', 'input_ids', 'attention_mask'"]),
        ("a dataset with more rows", ["batches of 4 rows", "counts 16", "Set runner_config.batch_size: 4,"]),
        ("an evaluation", [SWAPPED]),
        ("an evaluation in between", ["eval_dataset under do_eval", SWAPPED]),
    ],
)
def test_what_mindformers_would_mistake_is_refused(case: str, parts: list[str], steps: Any) -> None:
    sentence = steps("trainings_refused")[case]
    assert [part for part in parts if part not in sentence] == [], sentence


def test_what_fits_together_trains(steps: Any) -> None:
    found, expected = steps("trainings_allowed"), steps("functional")
    rows = [step["rows"] for step in expected]
    for case in (
        "a dataset with its columns chosen",
        "a dataset without a size",
        "evaluated on other columns before",
        "evaluated in between",
    ):
        assert [step["rows"] for step in found[case]] == rows
        assert [step["loss"] for step in found[case]] == pytest.approx([step["loss"] for step in expected], rel=1e-5)


def test_a_token_budget_trains_from_yaml(steps: Any) -> None:
    found = steps("trainings_allowed")["a token budget"]
    assert [step["rows"] for step in found["trained"]] == found["planned"]
    assert {len(rows) for rows in found["planned"]} == {5}  # of 96 columns on both sides; runner_config says 4


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("mode", "every", "whole"),
    [
        ("data", "", "num_shards=4, shard_id=3."),
        ("full batch", "num_shards=1, shard_id=0.", ""),
        ("two by two", "num_shards=2, shard_id=1.", "num_shards=2, shard_id=1."),
        ("a word", "", "num_shards=4, shard_id=3."),
        ("a word, two stages", "num_shards=2, shard_id=1.", "num_shards=2, shard_id=1."),
    ],
)
def test_a_stream_for_other_shards_than_the_parallel_mode_is_refused(
    mode: str, every: str, whole: str, steps: Any
) -> None:
    for said, wanted in zip(steps("streams_on_several_ranks")[mode], (every, whole), strict=True):
        assert said.endswith(wanted), said
        assert bool(said) == bool(wanted), said
