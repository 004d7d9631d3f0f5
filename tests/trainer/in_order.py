"""One small DPO model trained four ways on the same steps: rows in the order of their source, all of one length.

The fourth way is the files that today's trainers read: a MindRecord cache through MindSpore's own `MindDataset`.
"""

from __future__ import annotations

import pathlib
from typing import Any

import mindspore as ms

import ms_prefstream as mps
from tests.trainer.configs import BATCH, dpo_config, loader
from tests.trainer.network import Log, PairedDPO, by_function, by_model, by_trainer

LENGTH = 128
COLUMNS = [
    f"{side}_{kind}"
    for side in ("chosen", "rejected")
    for kind in ("input_ids", "labels", "attention_mask", "loss_mask")
]


def ordered() -> mps.Stream:
    """The stream."""
    return mps.stream(
        "rows.jsonl", task=mps.DPO(LENGTH), tokenizer="bytes", batching=mps.Pad(BATCH, length=LENGTH), shuffle=False
    )


def _log() -> Log:
    return Log(column="chosen_input_ids")


def ordered_functional() -> Any:
    """A functional loop on `stream.batches()`."""
    return by_function(PairedDPO(), ordered())


def ordered_model_train() -> Any:
    """`Model.train` on `stream.dataset()`."""
    return by_model(PairedDPO(), ordered().dataset(), _log())


def ordered_from_yaml() -> Any:
    """MindFormers' trainer, everything from YAML."""
    config = dpo_config()
    section = loader(
        task={"type": "DPO", "max_length": LENGTH}, batching={"type": "Pad", "length": LENGTH}, shuffle=False
    )
    dataset = {"data_loader": section, "input_columns": COLUMNS}
    config["train_dataset"], config["train_dataset_task"]["dataset_config"] = dataset, dataset
    config["model"]["arch"]["type"] = "PairedDPO"
    return by_trainer(config, _log())


def ordered_mindrecord() -> Any:
    """`Model.train` on MindSpore's `MindDataset` over the files of a cache; nothing of ours reads them."""
    manifest = mps.write_cache(ordered(), "mindrecord", layout="mindrlhf", rows_per_part=5)
    files = sorted(str(path) for path in pathlib.Path("mindrecord").glob("*.mindrecord*") if path.suffix != ".db")
    assert len(files) == 4, manifest.files
    dataset = ms.dataset.MindDataset(files, columns_list=COLUMNS, shuffle=False)
    return by_model(PairedDPO(), dataset.batch(BATCH, drop_remainder=True), _log())


IN_ORDER = {
    made.__name__: made for made in (ordered_functional, ordered_model_train, ordered_from_yaml, ordered_mindrecord)
}
