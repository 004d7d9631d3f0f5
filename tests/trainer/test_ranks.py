"""The MindFormers trainer on two ranks under `msrun`, against one process with twice the batch."""

from __future__ import annotations

import json
import os
import pathlib
import signal
from typing import Any

import pytest

from tests.helpers import json_lines, pairs
from tests.processes import MSRUN, run_python, start_msrun
from tests.trainer.configs import BATCH, EPOCHS, ROWS, K

RANKS = pathlib.Path(__file__).with_name("ranks.py")
pytestmark = [
    pytest.mark.mindspore,
    pytest.mark.training,
    pytest.mark.skipif(MSRUN is None, reason="needs msrun"),
]


def run(folder: pathlib.Path) -> None:
    """Both ranks to their end."""
    process = start_msrun(RANKS, folder=folder)
    try:
        code = process.wait(240)
        said = "".join(path.read_text("utf-8", "replace")[-2000:] for path in folder.glob("msrun/worker*.log"))
        assert code == 0, said
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def go_on(folder: pathlib.Path) -> Any:
    """What one process says and trains that goes on behind the two."""
    run_python(RANKS, "alone", folder=folder)
    return json.loads((folder / "resumed.json").read_text())


def test_two_ranks_of_the_trainer_share_the_batches_and_one_goes_on_with_them(tmp_path: pathlib.Path) -> None:
    json_lines(tmp_path / "rows.jsonl", pairs(ROWS))
    run(tmp_path)
    found = [json.loads((tmp_path / f"rank{rank}" / "steps.json").read_text()) for rank in range(2)]
    alone = found[0]["alone"]
    assert len(alone) == EPOCHS * K
    for one, other, whole in zip(found[0]["steps"], found[1]["steps"], alone, strict=True):
        assert len(one["rows"]) == len(other["rows"]) == BATCH // 2
        assert sorted(one["rows"] + other["rows"]) == sorted(whole["rows"])
        # Only if gradients are averaged over the ranks do the weights stay those of one process.
        assert (one["loss"] + other["loss"]) / 2 == pytest.approx(whole["loss"], rel=1e-4)
    resumed = go_on(tmp_path)
    assert "logical_shards was 2 and is 1 now" in resumed["as one rank is"]  # it would repeat a row, and leave one out
    assert "logical_shards: 2 in data_loader" in resumed["as one rank is"]
    rest = [sorted(whole["rows"]) for whole in alone[3:]]
    assert [sorted(rows) for rows in resumed["with the shards of two"]] == rest
