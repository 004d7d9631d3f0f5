"""The stream's state lies beside MindFormers' checkpoints, and a run that would have other rows does not go on."""

from __future__ import annotations

from typing import Any

import pytest

import ms_prefstream as mps
from tests.helpers import pairs
from tests.trainer.configs import EPOCHS, ROWS, K
from tests.trainer.test_trainer import planned

pytestmark = [pytest.mark.mindspore, pytest.mark.training]


def test_each_checkpoint_has_its_state_and_no_other_has_one(steps: Any) -> None:
    found = steps("states_beside")
    assert found["checkpoints"] == ["tiny_rank_0-2_3", "tiny_rank_0-2_4"]
    assert list(found["states"]) == [f"{name}.stream_state.json" for name in found["checkpoints"]]
    stream = mps.stream(
        pairs(ROWS), task=mps.DPO(128, layout="concat"), tokenizer="bytes", seed=7, window=2,
        batching=mps.Bucket(4, boundaries=(96, 128)),
    )  # fmt: skip
    expected = [stream.state(step) for step in (EPOCHS * K - 1, EPOCHS * K)]
    # Here the rows are a list, there a file.
    assert [state | {"data": ""} for state in found["states"].values()] == [state | {"data": ""} for state in expected]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("seed", "seed was 7 and is 8 now"),
        ("rows", "data was '"),
        ("task", 'and is "DPO(max_length=127, '),
        ("batch", "global_batch was 4 and is 2 now"),
        ("shards", "logical_shards was 1 and is 2 now"),
        ("seed, latest", "seed was 7 and is 8 now"),
    ],
)
def test_a_run_with_other_rows_does_not_go_on(change: str, sentence: str, steps: Any) -> None:
    found = steps("resumed_with_changes")[change]
    assert sentence in found
    place = "2_4" if "latest" in change else "1_3"
    assert f"/rank_0/tiny_rank_0-{place}.stream_state.json: the state was saved with other settings" in found


def test_checkpoints_that_are_folders_have_states_as_well(steps: Any) -> None:
    found = steps("resumed_with_changes")
    if found["mindformers"] < "1.8":
        pytest.skip("MindFormers 1.7 does not load such checkpoints in a single process")
    assert found["nothing, newer form"] == planned()[3:]
    assert "/iteration_00000003/stream_state.json: the state was saved" in found["seed, newer form"]
    assert "seed was 7 and is 8 now" in found["seed, newer form"]


def test_who_says_so_goes_on_with_other_rows(steps: Any) -> None:
    found = steps("resumed_with_changes")
    assert found["seed, from the first row"] == planned(seed=8)
    assert found["seed, no state"] == planned(seed=8)[3:]  # nothing to compare with: as ever


def test_steps_that_were_skipped_before_are_counted(steps: Any) -> None:
    found = steps("resumed_behind_skipped_steps")
    assert "finished step 5 of the data, but this one would go on behind step 2" in found["silent"]
    assert "Set data_skip_steps: 5." in found["silent"]
    assert found["said"] == planned()[5:]


def test_steps_are_skipped_past_the_first_epoch_but_not_all(steps: Any) -> None:
    found = steps("skipped_past_the_first_epoch")
    assert found["more"] == planned()[K + 1 :]
    assert f"{EPOCHS * K} steps are to be skipped, but {EPOCHS} times {K} steps are all there are" in found["all"]
