"""Two ranks train as one process with twice the batch does, and a run may go on with another number of ranks."""

from __future__ import annotations

import os
import pathlib
import random
import shutil
import signal
import time

import pytest

import ms_prefstream as mps
from tests.helpers import flat
from tests.msrun.runs import K, Steps, running
from tests.processes import MSRUN

pytestmark = [
    pytest.mark.mindspore,
    pytest.mark.training,
    pytest.mark.skipif(MSRUN is None, reason="needs msrun"),
]
SAVED = 2 * K - 4  # a step whose state is among the last five


@pytest.fixture(scope="module")
def alone(source: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, Steps]:
    """One process with twice the batch, planned for two: the folder of the run, and its steps."""
    folder = tmp_path_factory.mktemp("alone")
    with running(source, folder, "--logical-shards=2", world=1) as run:
        run.wait()
        assert run.entries(0)[0]["world"] == 1
        return folder, run.all_steps()


def assert_same_training(found: Steps, expected: Steps) -> None:
    """The same rows in each global step, and the same weight behind it, however many ranks share them."""
    assert {len(rank) for rank in [*found, *expected]} == {len(expected[0])}
    for ours, theirs in zip(zip(*found, strict=True), zip(*expected, strict=True), strict=True):
        assert {one["step"] for one in [*ours, *theirs]} == {theirs[0]["step"]}
        assert sorted(flat(one["rows"] for one in ours)) == sorted(flat(one["rows"] for one in theirs))
        assert [one["weight"] for one in ours] == pytest.approx([theirs[0]["weight"]] * len(ours), rel=1e-5)


def test_two_ranks_train_as_one_with_twice_the_batch(whole: Steps, alone: tuple[pathlib.Path, Steps]) -> None:
    assert len({step["weight"] for step in whole[0]}) == 2 * K  # every step has changed it
    assert_same_training(whole, alone[1])


def test_a_run_goes_on_with_other_ranks(
    source: pathlib.Path, alone: tuple[pathlib.Path, Steps], tmp_path: pathlib.Path
) -> None:
    """From one rank to two, in the second epoch; the two then finish what the one would have done."""
    folder, steps = alone
    (tmp_path / "states").mkdir()
    shutil.copy(folder / "states" / f"stream_state-{SAVED}.json", tmp_path / "states" / "stream_state.json")
    (tmp_path / "logs" / "killed").mkdir(parents=True)
    shutil.copy(folder / "logs" / "rank0.jsonl", tmp_path / "logs" / "killed" / "rank0.jsonl")
    with running(source, tmp_path, "--resume") as run:
        run.wait()
        assert_same_training(run.all_steps(), [steps[0][SAVED:]])


def test_two_killed_ranks_go_on_as_one(source: pathlib.Path, whole: Steps, tmp_path: pathlib.Path) -> None:
    """From two ranks to one, which takes the batches of both: the rows and weights of the run that nobody killed."""
    step = random.Random().randint(2, 2 * K - 3)
    print(f"killed behind step {step}")
    with running(source, tmp_path) as run:
        run.wait_for(step)
        os.kill(run.pid(0), signal.SIGKILL)
        time.sleep(0.3)  # the other rank waits for the dead one
        run.end()
        for rank in range(2):
            assert run.steps(rank) == whole[rank][: len(run.steps(rank))]
        finished = mps.load_state(run.states)["step"]
    assert step - 1 <= finished < 2 * K  # the log of a step is written before its state
    run.put_away()
    with running(source, tmp_path, "--resume", world=1) as run:
        run.wait()
        assert run.entries(0)[0]["world"] == 1
        assert_same_training(run.all_steps(), [found[finished:] for found in whole])
        assert mps.load_state(run.states)["step"] == 2 * K
