"""What each rank of `test_ranks` runs: the MindFormers trainer, data parallel, in a folder of its own."""

from __future__ import annotations

import json
import os
import pathlib

from mindspore.communication import get_rank

from tests.trainer.configs import ranks_config
from tests.trainer.network import Log, TinyDPO, by_function, by_trainer, prepare, stream

if __name__ == "__main__":
    config = ranks_config()
    prepare(config)
    folder = pathlib.Path(f"rank{get_rank()}")
    folder.mkdir()
    os.chdir(folder)
    config["train_dataset"]["data_loader"]["source"] = "../rows.jsonl"
    steps = by_trainer(config, Log(1))
    os.chdir("..")
    alone = by_function(
        TinyDPO(), stream(num_shards=1, shard_id=0, logical_shards=2)
    )  # the whole batch, in this process by itself
    (folder / "steps.json").write_text(json.dumps({"steps": steps, "alone": alone}))
