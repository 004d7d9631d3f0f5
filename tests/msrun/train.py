"""What each rank of the test runs: a tiny model trained data-parallel from one stream, ranks found by themselves.

Each rank appends ``{"step": ..., "rows": [...], "weight": ...}`` to its log once a step is finished. A run that is
resumed takes the weight of the saved step from the log of rank 0, as it would from a model's checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import time
from typing import Any

import mindspore as ms
import pytest
from mindspore import nn
from mindspore.communication import get_group_size, get_rank, init

import ms_prefstream as mps
from tests.helpers import rows_in

EPOCHS = 2


class Network(nn.Cell):
    """One weight; its loss depends on the rows of a batch, so that ranks agree only if gradients are exchanged.

    Padding does not count, so the mean over two ranks is the loss of one process with both batches.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = ms.Parameter(ms.Tensor([1.0], ms.float32), name="weight")

    def construct(self, ids: Any, labels: Any, attention: Any, mask: Any, *rejected: Any) -> Any:
        return (self.weight * mask.astype(ms.float32).sum(axis=-1) / 100.0).mean()


class Log(ms.train.Callback):
    """Writes down the rows of each finished step, and the weight behind it."""

    def __init__(self, path: pathlib.Path, step: int, network: Network) -> None:
        super().__init__()
        self.path, self.step, self.network = path, step, network

    def on_train_step_end(self, run_context: Any) -> None:
        ids = run_context.original_args().train_dataset_element[0].asnumpy()
        self.step += 1
        rows = rows_in({"chosen_input_ids": ids})
        self.write({"step": self.step, "rows": rows, "weight": float(self.network.weight.asnumpy()[0])})
        time.sleep(0.05)  # time for the test to strike

    def write(self, entry: Any) -> None:
        with open(self.path, "ab") as file:
            file.write(json.dumps(entry).encode() + b"\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("source")
    parser.add_argument("states")
    parser.add_argument("logs")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--logical-shards", type=int)
    options = parser.parse_args()
    ms.set_context(mode=ms.PYNATIVE_MODE)
    ms.set_device("CPU")
    if os.environ["MS_ROLE"] == "MS_WORKER" and int(os.environ["MS_WORKER_NUM"]) > 1:  # nobody knows the rank yet
        with pytest.raises(mps.OptionError, match="one of 2 ranks"):
            mps.stream(options.source, task=mps.DPO(128), tokenizer="bytes", batching=mps.Pad(1))
    init()
    ms.set_auto_parallel_context(parallel_mode=ms.ParallelMode.DATA_PARALLEL, gradients_mean=True)
    stream = mps.stream(
        options.source,
        task=mps.DPO(128),
        tokenizer="bytes",
        batching=mps.Bucket(options.batch_size, multiple_of=64),
        window=3,
        seed=11,
        logical_shards=options.logical_shards,
    )
    network, logs = Network(), pathlib.Path(options.logs)
    if options.resume:
        stream.resume(mps.load_state(options.states))
        done = [json.loads(line) for line in (logs / "killed" / "rank0.jsonl").read_text().splitlines()]
        weight = next(entry["weight"] for entry in done if entry.get("step") == stream.start_step)
        network.weight.set_data(ms.Tensor([weight], ms.float32))
    log = Log(logs / f"rank{get_rank()}.jsonl", stream.start_step, network)
    log.write({"rank": get_rank(), "world": get_group_size(), "pid": os.getpid()})
    model = ms.train.Model(network, loss_fn=None, optimizer=nn.SGD(network.trainable_params(), 0.1))
    model.train(
        EPOCHS - stream.start_step // stream.steps_per_epoch,
        stream.dataset(),
        callbacks=[log, mps.StreamCheckpoint(stream, options.states)],
        dataset_sink_mode=False,
    )


if __name__ == "__main__":
    main()
