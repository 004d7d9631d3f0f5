"""Two real processes under `msrun`: ranks find themselves, and a run killed at a random step goes on exactly."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

import ms_prefstream as mps
from tests.helpers import json_lines, pairs, rows_of

# Beside this interpreter, or on PATH.
MSRUN = shutil.which("msrun", path=f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
ROOT = pathlib.Path(__file__).parents[2]
N, K = 35, 8  # 8 steps of 2 rows on each of 2 ranks, two epochs
PATIENCE = 180  # seconds; a slow machine takes half a minute for a run

pytestmark = [pytest.mark.mindspore, pytest.mark.skipif(MSRUN is None, reason="needs msrun")]


class Run:
    """One start of `msrun` with two ranks on the CPU, in a folder of its own."""

    def __init__(self, source: pathlib.Path, folder: pathlib.Path, *options: str) -> None:
        self.states, self.logs = folder / "states", folder / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        binaries = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [str(MSRUN), "--worker_num=2", "--local_worker_num=2", "--join=True", f"--master_port={port}"]
        command += [f"--log_dir={folder / 'msrun'}", str(ROOT / "tests/msrun/train.py"), str(source)]
        self.process = subprocess.Popen(
            [*command, str(self.states), str(self.logs), *options],
            env={**os.environ, "PYTHONPATH": path, "PATH": binaries, "GLOG_v": "3"},
            cwd=folder,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.output = folder / "msrun"

    def entries(self, rank: int) -> list[dict[str, Any]]:
        """The log of a rank so far; a line that is being written is left out."""
        path = self.logs / f"rank{rank}.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def steps(self, rank: int) -> list[dict[str, Any]]:
        return [entry for entry in self.entries(rank) if "step" in entry]

    def pid(self, rank: int) -> int:
        return int(self.entries(rank)[0]["pid"])

    def wait(self) -> None:
        """Until the run has ended by itself, as it should."""
        assert self.process.wait(PATIENCE) == 0, self.said()

    def wait_for(self, step: int) -> None:
        """Until every rank has finished that step."""
        deadline = time.monotonic() + PATIENCE
        while min(len(self.steps(rank)) for rank in range(2)) < step:
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.01)

    def said(self) -> str:
        """The end of what the workers printed, for a failing test."""
        return "\n".join(path.read_text("utf-8", "replace")[-1500:] for path in self.output.glob("worker*.log"))

    def end(self) -> None:
        """Leave no process of this run behind: its ranks, then msrun with the scheduler."""
        for pid in [self.pid(rank) for rank in range(2) if self.entries(rank)]:
            with contextlib.suppress(OSError):
                if str(self.states) in pathlib.Path(f"/proc/{pid}/cmdline").read_text():  # still the same process
                    os.kill(pid, signal.SIGKILL)
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@contextlib.contextmanager
def running(*args: Any) -> Iterator[Run]:
    run = Run(*args)
    try:
        yield run
    finally:
        run.end()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return json_lines(tmp_path_factory.mktemp("data") / "rows.jsonl", pairs(N))


@pytest.fixture(scope="module")
def whole(source: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """The steps of both ranks of a run that nothing interrupts."""
    with running(source, tmp_path_factory.mktemp("whole")) as run:
        run.wait()
        assert [run.entries(rank)[0]["rank"] for rank in range(2)] == [0, 1]
        assert {run.entries(rank)[0]["world"] for rank in range(2)} == {2}
        return [run.steps(rank) for rank in range(2)]


def test_the_ranks_of_a_run_find_themselves(source: pathlib.Path, whole: list[list[dict[str, Any]]]) -> None:
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
    source: pathlib.Path, whole: list[list[dict[str, Any]]], tmp_path: pathlib.Path
) -> None:
    numbers = random.Random()
    step, victim = numbers.randint(1, 2 * K - 3), numbers.randrange(2)
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
    (run.logs / "killed").mkdir()
    for path in run.logs.glob("*.jsonl"):
        path.rename(run.logs / "killed" / path.name)
    with running(source, tmp_path, "--resume") as run:
        run.wait()
        for rank in range(2):
            assert run.steps(rank) == whole[rank][finished:]
        assert mps.load_state(run.states)["step"] == 2 * K
