"""Program of each rank of `test_ranks`: the MindFormers trainer, data parallel, in a folder of its own.

With the word `alone`, and without `msrun`: one process that goes on behind the third step of the two.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
from typing import Any

import ms_prefstream as mps
from tests.trainer.configs import dpo_config, loader, ranks_config
from tests.trainer.network import Log, TinyDPO, by_function, by_trainer, prepare, stream


def rank() -> None:
    from mindspore.communication import get_rank

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


def resumed(**keys: Any) -> Any:
    """The rows of one rank with the whole batch behind the third step of two, or the sentence that refuses."""
    config = dpo_config()
    config["train_dataset"]["data_loader"] = loader(**keys)
    resume = {"resume_from_checkpoint": "rank0/output/checkpoint", "resume_training": "tiny_rank_0-1_3.ckpt"}
    try:
        return [step["rows"] for step in by_trainer(config, Log(1), train=resume)]
    except mps.PrefStreamError as error:
        return str(error)


if __name__ == "__main__":
    if sys.argv[1:] == ["alone"]:
        prepare(dpo_config())
        found = {"as one rank is": resumed(), "with the shards of two": resumed(logical_shards=2)}
        pathlib.Path("resumed.json").write_text(json.dumps(found))
    else:
        rank()
