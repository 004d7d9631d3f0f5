"""mindrlhf's own `DPODataset`, unmodified, fed by our loader. Runs where MINDRLHF_CHECKOUT names a checkout of it.

The class is loaded from its file: the package around it imports parts of MindFormers that newer versions have moved.
"""

from __future__ import annotations

import json
import os
import pathlib

import pytest

import ms_prefstream as mps
from tests.helpers import pairs, rows_of
from tests.processes import run_python

CHECKOUT = os.environ.get("MINDRLHF_CHECKOUT", "")
FILE = pathlib.Path(CHECKOUT, "mindrlhf", "utils", "dpo_dataset.py")
pytestmark = [
    pytest.mark.mindspore,
    pytest.mark.training,
    pytest.mark.skipif(not (CHECKOUT and FILE.exists()), reason="needs MINDRLHF_CHECKOUT, a checkout of mindrlhf"),
]

CODE = """
import importlib.util, json, sys
import ms_prefstream.adapters.mindformers
from mindformers.dataset import build_dataset
from tests.helpers import rows_in, pairs

spec = importlib.util.spec_from_file_location("dpo_dataset", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)

side = ["input_ids", "labels", "attention_mask", "loss_mask", "ref_logps"]
columns = [f"{name}_{column}" for name in ("chosen", "rejected") for column in side]
kept = [name for name in columns if "attention" not in name]
config = {
    "data_loader": {
        "type": "PrefStreamDataLoader", "dataset_dir": "", "source": pairs(17), "tokenizer": "bytes",
        "task": {"type": "DPO", "max_length": 128}, "batching": {"type": "Bucket", "batch_size": 4, "multiple_of": 32},
        "window": 2, "seed": 3, "reference_free": True,
    },
    "input_columns": columns, "output_columns": kept, "batch_size": 4, "drop_remainder": True,
    "num_parallel_workers": 1, "repeat": 1, "seed": 0, "eod_reset": False,
}
found = {}
for skipped in (0, 3, 5):
    dataset = build_dataset({"type": "DPODataset", "dataset_config": config})
    dataset.set_init_step(skipped)
    batches = list(dataset.create_dict_iterator(output_numpy=True, num_epochs=2))
    found[skipped] = [rows_in(batch) for batch in batches]
    shapes = [[list(batch[name].shape) for name in kept] for batch in batches]
print(json.dumps({"rows": found, "kept": list(batches[0]), "shapes": shapes[-1], "steps": dataset.get_dataset_size()}))
"""


def test_the_loader_feeds_the_dpo_dataset_of_mindrlhf(tmp_path: pathlib.Path) -> None:
    found = json.loads(run_python("-c", CODE, FILE.absolute(), folder=tmp_path).splitlines()[-1])
    stream = mps.stream(
        pairs(17),
        task=mps.DPO(128),
        tokenizer="bytes",
        batching=mps.Bucket(4, multiple_of=32),
        window=2,
        seed=3,
    )
    planned = [*rows_of(stream.batches(0)), *rows_of(stream.batches(1))]
    assert found["steps"] == 4
    assert len(found["kept"]) == 8
    assert found["shapes"][3] == [4, 1]
    assert found["shapes"][0][0] == 4
    # One iterator over two epochs, read once: MindSpore hands out the epoch in which the step lies.
    assert found["rows"] == {"0": planned[:4], "3": planned[3:4], "5": planned[5:]}
