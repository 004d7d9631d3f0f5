"""Today's trainers read our files with their own, unmodified dataset classes.

Needs checkouts, named by environment variables; skipped without them:

    MS_PREFSTREAM_MINDRLHF        mindrlhf with mindrlhf/utils/dpo_dataset.py
    MS_PREFSTREAM_MINDFORMERS_1_3 MindFormers 1.3.2 with mindformers/dataset/reward_model_dataset.py
"""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np
import pytest

import ms_prefstream as mps
from tests.cache.places import PAD, source, stream_of
from tests.cache.test_reference import logps
from tests.compat.readers import BATCH, DPO_OUT, REWARD_OUT
from tests.helpers import Batch
from tests.processes import run_python

pytestmark = [pytest.mark.mindspore, pytest.mark.training]


def checkout(variable: str, file: str) -> str:
    root = os.environ.get(variable)
    if not root:
        pytest.skip(f"needs a checkout named by {variable}")
    path = pathlib.Path(root, file)
    assert path.is_file(), f"{variable} is {root}, where {file} is not"
    return str(path)


def read_by(kind: str, path: str, cache: pathlib.Path, folder: pathlib.Path) -> dict[str, Any]:
    batches = folder / "batches.npz"
    run_python("-m", "tests.compat.readers", kind, path, cache, str(PAD), batches, folder=folder)
    return dict(np.load(batches))


def batches_of(path: str, task: Any) -> list[Batch]:
    """The stream's own batches in the order of the source, without dropped rows."""
    stream_of(path, task, index=None).build_index()
    stream = stream_of(path, task, mps.Pad(BATCH), shuffle=False)
    assert stream.data.index is not None
    return list(stream.batches())


@pytest.mark.parametrize("labels", ["unshifted", "shifted"])
def test_mindrlhf_reads_dpo_files(labels: str, tmp_path: pathlib.Path) -> None:
    reader = checkout("MS_PREFSTREAM_MINDRLHF", "mindrlhf/utils/dpo_dataset.py")
    path, task = source(tmp_path), mps.DPO(128, labels=labels)
    mps.write_cache(stream_of(path, task), tmp_path / "ragged", reference=logps, reference_id="sft")
    ragged = stream_of(str(tmp_path / "ragged"), task, tokenizer=None)
    mps.write_cache(ragged, tmp_path / "out", layout="mindrlhf", rows_per_part=12)
    found, expected = read_by("dpo", reader, tmp_path / "out", tmp_path), batches_of(path, task)
    assert len(expected) == 10
    assert len(found) == len(expected) * len(DPO_OUT)
    for step, batch in enumerate(expected):
        for name, side in zip(("chosen_ref_logps", "rejected_ref_logps"), logps(batch), strict=True):
            batch[name] = side.astype(np.float32)[:, None]
        for name in DPO_OUT:
            theirs = found[f"{step}/{name}"]
            assert theirs.shape == batch[name].shape == (BATCH, 1 if name.endswith("logps") else 128), name
            assert theirs.dtype == batch[name].dtype, name
            assert (theirs == batch[name]).all(), name


def test_mindformers_reads_reward_files(tmp_path: pathlib.Path) -> None:
    file = "mindformers/dataset/reward_model_dataset.py"
    reader = checkout("MS_PREFSTREAM_MINDFORMERS_1_3", file)
    path, task = source(tmp_path), mps.Reward(128)
    mps.write_cache(stream_of(path, task), tmp_path / "out", layout="mindformers", rows_per_part=12)
    found, expected = read_by("reward", reader, tmp_path / "out", tmp_path), batches_of(path, task)
    assert len(expected) == 10
    assert len(found) == len(expected) * len(REWARD_OUT)
    for step, batch in enumerate(expected):
        for name in REWARD_OUT:
            theirs = found[f"{step}/{name}"]
            assert theirs.dtype == batch[name].dtype, name
            assert theirs.shape == batch[name].shape, name
            assert (theirs == batch[name]).all(), name
