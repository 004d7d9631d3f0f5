"""A training from a YAML file gives its report through a callback in the file, and through the dataset."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.trainer.reports import BAD, ROWS

pytestmark = [pytest.mark.mindspore, pytest.mark.training]


def test_a_callback_in_the_yaml_file_logs_and_writes_the_report(steps: Any) -> None:
    found = steps("report_from_yaml")
    heads = re.findall(r"data after .*", found["log"])
    ahead, over = "read a few steps ahead", "the training is over"
    assert heads == [
        f"data after 3 steps ({ahead}):", f"data after 6 steps ({ahead}):", f"data after 8 steps ({over}):"
    ]  # fmt: skip
    end = found["log"].split(heads[-1])[1]
    assert f"rows read {ROWS} of {ROWS}, dropped {BAD}" in end
    assert f"identical: {BAD} (17.6 %), first at some_bad.jsonl:" in end
    assert found["file"]["steps"] == 8
    assert found["file"]["dropped"] == {"identical": BAD}


def test_the_dataset_that_the_trainer_holds_has_the_stream(steps: Any) -> None:
    assert f"rows read {ROWS} of {ROWS}, dropped {BAD}" in steps("report_from_yaml")["held"]


@pytest.mark.smoke
def test_datasets_built_from_sections_and_their_operations_have_the_stream(steps: Any) -> None:
    assert steps("report_of_datasets") == {"finished": 16, "taken": 16, "batched": 16}


@pytest.mark.smoke
def test_each_rank_writes_a_file_of_its_own(steps: Any) -> None:
    assert steps("report_of_a_rank") == {"of_ranks.rank1.json": 2}


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("case", "part"),
    [
        ("every", "PrefStreamReport: every is 0; expected a whole number of at least 1"),
        ("folder", "'no/such/report.json', and its folder does not exist"),
        ("dataset", "a NumpySlicesDataset without a stream of ms_prefstream"),
    ],
)
def test_what_cannot_be_honoured_is_refused_in_a_sentence(case: str, part: str, steps: Any) -> None:
    sentence = steps("report_refused")[case]
    assert sentence.startswith("PrefStreamReport: ")
    assert part in sentence
