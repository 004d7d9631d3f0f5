"""Two real processes under `msrun`: ranks find themselves, and a run killed at a random step goes on exactly."""

from __future__ import annotations

import os
import pathlib
import random
import signal
import time

import pytest

import ms_prefstream as mps
from tests.helpers import rows_of
from tests.msrun.runs import K, Steps, running
from tests.processes import MSRUN

pytestmark = [
    pytest.mark.mindspore,
    pytest.mark.training,
    pytest.mark.skipif(MSRUN is None, reason="needs msrun"),
]


@pytest.mark.slow
@pytest.mark.smoke
def test_the_ranks_of_a_run_find_themselves(source: pathlib.Path, whole: Steps) -> None:
    for rank in range(2):
        stream = mps.stream(
            source,
            task=mps.DPO(128),
            tokenizer="bytes",
            batching=mps.Bucket(2, multiple_of=64),
            window=3,
            seed=11,
            num_shards=2,
            shard_id=rank,
        )
        assert stream.steps_per_epoch == K
        planned = [rows for epoch in range(2) for rows in rows_of(stream.batches(epoch))]
        assert [entry["rows"] for entry in whole[rank]] == planned
        assert [entry["step"] for entry in whole[rank]] == list(range(1, 2 * K + 1))
    for left, right in zip(*whole, strict=True):
        assert left["weight"] == right["weight"]  # gradients were exchanged
        assert set(left["rows"]).isdisjoint(right["rows"])


def test_a_run_killed_at_a_random_step_goes_on_exactly(
    source: pathlib.Path, whole: Steps, tmp_path: pathlib.Path
) -> None:
    numbers = random.Random()
    # Not behind the first step: its state may not be written yet.
    step, victim = numbers.randint(2, 2 * K - 3), numbers.randrange(2)
    print(f"rank {victim} is killed behind step {step}")
    with running(source, tmp_path) as run:
        run.wait_for(step)
        os.kill(run.pid(victim), signal.SIGKILL)
        time.sleep(0.3)  # the other rank waits for the dead one, or would go on
        run.end()  # msrun itself notices half a minute later
        killed = [run.steps(rank) for rank in range(2)]
        finished = mps.load_state(run.states)["step"]
    assert step - 1 <= finished < 2 * K  # the log of a step is written before its state
    for rank in range(2):
        assert killed[rank] == whole[rank][: len(killed[rank])]
    run.put_away()
    with running(source, tmp_path, "--resume") as run:
        run.wait()
        for rank in range(2):
            assert run.steps(rank) == whole[rank][finished:]
        assert mps.load_state(run.states)["step"] == 2 * K
