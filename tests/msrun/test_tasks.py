"""Two real processes under `msrun`: each rank gets its batches of tasks whose rows depend on the rank."""

from __future__ import annotations

import pathlib
import pickle

import pytest

import ms_prefstream as mps
from tests.helpers import assert_same_batches, json_lines, pairs
from tests.processes import MSRUN, start_msrun

pytestmark = [
    pytest.mark.mindspore,
    pytest.mark.training,
    pytest.mark.skipif(MSRUN is None, reason="needs msrun"),
]


@pytest.mark.parametrize("task", [mps.KTO(128), mps.Prompts(64, padding_side="left", repeat=2)], ids=repr)
def test_ranks_deliver_what_is_planned_for_them(task: mps.KTO | mps.Prompts, tmp_path: pathlib.Path) -> None:
    source = json_lines(tmp_path / "rows.jsonl", pairs(32))
    script = pathlib.Path(__file__).with_name("deliver.py")
    process = start_msrun(script, source, f"mps.{task!r}", tmp_path, folder=tmp_path, world=2)
    assert process.wait(180) == 0
    for rank in range(2):
        stream = mps.stream(
            source, task=task, tokenizer="bytes", batching=mps.Bucket(4, multiple_of=32), seed=5, num_shards=2,
            shard_id=rank,
        )  # fmt: skip
        expected = [batch for epoch in range(2) for batch in stream.batches(epoch)]
        assert_same_batches(pickle.loads((tmp_path / f"rank{rank}.pickle").read_bytes()), expected)
