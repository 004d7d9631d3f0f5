"""The first run on a device: one command that checks what cannot be tested without one.

    python examples/ascend_check.py                  # on Ascend, two ranks for msrun
    python examples/ascend_check.py --ranks 8
    python examples/ascend_check.py --device CPU     # tries the script itself; the CPU has no sink mode

NOT RUN ON A DEVICE YET. It was written without one and tested with ``--device CPU``, where it prints:

    ✓ environment       mindspore 2.9.0, ms_prefstream 0.1.0, CPU
    ✓ dataset           10 steps equal those of stream.batches()
    ✓ Pad               10 steps, 1 width, 1 compilation; loss 0.6931 -> 0.3652
    ✓ Pad, sink         the same losses; 1 compilation
    ✓ Bucket            10 steps, 3 widths, 3 compilations; loss 0.6931 -> 0.5868
    ✓ Bucket, sink      the same losses; 3 compilations
    ✓ msrun             2 ranks share each of 5 steps; weights are equal on all ranks

Expected on Ascend: the same lines, other versions and losses that agree to three digits. Two results are open and worth
a report either way: whether sink mode takes the several widths of Bucket (MindSpore may want `set_inputs` for that;
then train Bucket with ``dataset_sink_mode=False``), and how many compilations sink mode makes.

What to report: the lines, and ascend_check.json, which holds the errors in full, the losses, the seconds of every step
and the versions.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import shutil
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn

import ms_prefstream as mps
from ms_prefstream.demo import data_path
from ms_prefstream.demo.losses import DPOLoss
from ms_prefstream.demo.model import CausalLM, ModelOptions

MAX_LENGTH, BATCH, STEPS, RANK_STEPS = 256, 8, 10, 5
RULES = {"Pad": mps.Pad(BATCH), "Bucket": mps.Bucket(BATCH, multiple_of=64)}


class Loss(nn.Cell):
    """A small DPO: the loss of the columns of ``mps.DPO(layout="concat")``."""

    def __init__(self, stream: mps.Stream) -> None:
        super().__init__(auto_prefix=False)
        size = ModelOptions(vocab_size=stream.tokenizer.vocab_size, max_length=MAX_LENGTH, hidden=32, layers=1)
        self.loss = DPOLoss(CausalLM(size), beta=0.1)

    def construct(self, input_ids: Any, labels: Any, attention_mask: Any, loss_mask: Any) -> Any:
        return self.loss(input_ids, labels, attention_mask, loss_mask)[0]


class Log(ms.train.Callback):
    """The loss and the time of every step; with a sink of one step the callback is called for each."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self._begin = time.perf_counter()

    def on_train_step_end(self, run_context: Any) -> None:
        self.losses.append(float(run_context.original_args().net_outputs.asnumpy()))
        self.seconds.append(round(time.perf_counter() - self._begin, 4))
        self._begin = time.perf_counter()


def open_stream(batching: Any, **options: Any) -> mps.Stream:
    return mps.stream(
        data_path(),
        task=mps.DPO(max_length=MAX_LENGTH, layout="concat"),
        tokenizer="bytes",
        batching=batching,
        seed=0,
        index=None,
        verbose=False,
        **options,
    )


def count_compilations() -> list[str]:
    """Returns a list that gets the name of each graph that MindSpore compiles from now on."""
    from mindspore.graph import api

    compile_cell, phases = api._CellGraphExecutor.compile, []

    def counted(self: Any, cell: Any, *args: Any, **options: Any) -> Any:
        phase, is_new = compile_cell(self, cell, *args, **options)
        if is_new:
            phases.append(phase)
        return phase, is_new

    api._CellGraphExecutor.compile = counted
    return phases


class Checks:
    """The checks, and what each of them found: a line to read, and everything for the report."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.compiled = count_compilations()
        self.found: dict[str, Any] = {}
        self.failed = False

    def run(self, name: str, check: Callable[[], str]) -> None:
        """Runs a check; an error is one more result."""
        before = len(self.compiled)
        try:
            mark, text = "✓", check()
        except Exception as error:
            self.failed = True
            mark, text = (
                "✗",
                f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}",
            )
            self.found.setdefault(name, {})["error"] = traceback.format_exc()
        self.found.setdefault(name, {}).update(line=text, compilations=len(self.compiled) - before)
        print(f"{mark} {name:16}  {text}", flush=True)

    def environment(self) -> str:
        versions = {"mindspore": ms.__version__, "ms_prefstream": mps.__version__, "python": platform.python_version()}
        self.found["environment"] = versions | {"device": self.options.device, "machine": platform.platform()}
        return f"mindspore {ms.__version__}, ms_prefstream {mps.__version__}, {self.options.device}"

    def dataset(self) -> str:
        stream = open_stream(RULES["Bucket"])
        read = stream.dataset().create_dict_iterator(num_epochs=1, output_numpy=True)
        steps = 0
        for found, expected in zip(read, stream.batches(0), strict=True):
            for name, array in expected.items():
                assert found[name].dtype == array.dtype, f"{name} is {found[name].dtype}, expected {array.dtype}"
                np.testing.assert_array_equal(found[name], array, err_msg=f"step {steps}, {name}")
            steps += 1
        return f"{steps} steps equal those of stream.batches()"

    def train(self, rule: str, sink: bool) -> str:
        """Trains an epoch from the same weights; in sink mode the losses must be those without it."""
        ms.set_seed(0)
        stream, log, before = open_stream(RULES[rule]), Log(), len(self.compiled)
        network = Loss(stream)
        model = ms.train.Model(network, loss_fn=None, optimizer=nn.SGD(network.trainable_params(), 0.05))
        sinking = {"dataset_sink_mode": True, "sink_size": 1} if sink else {"dataset_sink_mode": False}
        sinks = sink and self.options.device != "CPU"  # the CPU trains without a sink
        epochs = stream.steps_per_epoch if sinks else 1  # MindSpore counts sinks of `sink_size` steps
        model.train(epochs, stream.dataset(), callbacks=[log], **sinking)
        compilations = len(self.compiled) - before
        shapes = {batch["input_ids"].shape for batch in stream.batches(0)}
        name = f"{rule}, sink" if sink else rule
        self.found[name] = {"losses": log.losses, "seconds": log.seconds, "shapes": sorted(shapes)}
        widths = f"{len(shapes)} width{'s' * (len(shapes) > 1)}"
        graphs = f"{compilations} compilation{'s' * (compilations != 1)}"
        assert len(log.losses) >= STEPS, f"{len(log.losses)} steps were seen, expected {STEPS}"
        if not sink:
            assert compilations == len(shapes), f"{widths}, but {graphs}"
            return f"{len(log.losses)} steps, {widths}, {graphs}; loss {log.losses[0]:.4f} -> {log.losses[-1]:.4f}"
        np.testing.assert_allclose(log.losses[:STEPS], self.found[rule]["losses"][:STEPS], rtol=1e-3)
        return f"the same losses; {graphs}"

    def msrun(self) -> str:
        """Trains on several ranks; each writes its rows and its weights."""
        path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # msrun starts `python`
        program = shutil.which("msrun", path=path)
        assert program is not None, "msrun was not found; it comes with MindSpore"
        folder, ranks = pathlib.Path("ascend_check_ranks").absolute(), self.options.ranks
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        command = [program, f"--worker_num={ranks}", f"--local_worker_num={ranks}", "--join=True"]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            command += [f"--master_port={free.getsockname()[1]}"]
        command += [f"--log_dir={folder}", os.path.abspath(__file__)]
        command += ["--device", self.options.device, "--rank-of", str(folder)]
        done = subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=900)
        files = sorted(folder.glob("rank*.json"))
        found = [json.loads(path.read_text()) for path in files]
        self.found["msrun"] = {"ranks": found, "said": (done.stdout + done.stderr)[-3000:]}
        assert len(found) == ranks, f"{len(found)} of {ranks} ranks finished; {folder}/worker_*.log say why"
        steps = len(found[0]["rows"])
        whole = open_stream(mps.Bucket(BATCH, multiple_of=64), num_shards=1, shard_id=0, logical_shards=ranks)
        for step in range(steps):
            shares = [row for rank in found for row in rank["rows"][step]]
            assert len(set(shares)) == len(shares) == BATCH, f"step {step}: the ranks hold rows {shares}"
            assert set(shares) == set(whole.rows(0, step).tolist()), f"step {step} is not that of a single rank"
        weights = {rank["weights"] for rank in found}
        assert len(weights) == 1, f"weights differ between ranks: {sorted(weights)}"
        return f"{ranks} ranks share each of {steps} steps; weights are equal on all ranks"


def run_rank(options: argparse.Namespace) -> None:
    """What each rank of `Checks.msrun` does."""
    from mindspore.communication import get_group_size, get_rank, init

    init()
    ms.set_auto_parallel_context(parallel_mode=ms.ParallelMode.DATA_PARALLEL, gradients_mean=True)
    ms.set_seed(0)
    stream = open_stream(mps.Bucket(BATCH // get_group_size(), multiple_of=64))
    network, log = Loss(stream), Log()
    model = ms.train.Model(network, loss_fn=None, optimizer=nn.SGD(network.trainable_params(), 0.05))
    model.train(1, stream.dataset(), callbacks=[log], dataset_sink_mode=False)
    rows = [stream.rows(0, step).tolist() for step in range(min(RANK_STEPS, stream.steps_per_epoch))]
    weights = sum(float(np.abs(weight.asnumpy()).sum()) for weight in network.trainable_params())
    found = {"rank": get_rank(), "rows": rows, "losses": log.losses, "weights": f"{weights:.5f}"}
    pathlib.Path(options.rank_of, f"rank{get_rank()}.json").write_text(json.dumps(found))


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--device", choices=["Ascend", "CPU"], default="Ascend")
    made.add_argument("--ranks", type=int, choices=[2, 4, 8], default=2, help="processes of msrun")
    made.add_argument("--rank-of", help=argparse.SUPPRESS)
    options = made.parse_args()
    ms.set_device(options.device)
    ms.set_context(mode=ms.GRAPH_MODE)
    if options.rank_of is not None:
        run_rank(options)
        return
    checks = Checks(options)
    checks.run("environment", checks.environment)
    checks.run("dataset", checks.dataset)
    for rule in RULES:
        checks.run(rule, lambda rule=rule: checks.train(rule, sink=False))
        checks.run(f"{rule}, sink", lambda rule=rule: checks.train(rule, sink=True))
    checks.run("msrun", checks.msrun)
    pathlib.Path("ascend_check.json").write_text(json.dumps(checks.found, indent=1), encoding="utf-8")
    print("Please report these lines and ascend_check.json.")
    raise SystemExit(1 if checks.failed else 0)


if __name__ == "__main__":
    main()
