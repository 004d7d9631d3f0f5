"""One start of `msrun` and what its ranks write down."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import time
from collections.abc import Iterator
from typing import Any

from tests.processes import start_msrun

TRAIN = pathlib.Path(__file__).with_name("train.py")
N, K, G = 35, 8, 4  # 8 steps of 4 rows over all ranks, two epochs
Steps = list[list[dict[str, Any]]]  # of each rank
PATIENCE = 180  # seconds; a slow machine takes half a minute for a run


class Run:
    """One start of `msrun` on the CPU, in a folder of its own; four rows a step over all ranks."""

    def __init__(self, source: pathlib.Path, folder: pathlib.Path, *options: str, world: int = 2) -> None:
        self.world = world
        self.states, self.logs = folder / "states", folder / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        words = [TRAIN, source, self.states, self.logs]
        self.process = start_msrun(*words, f"--batch-size={G // world}", *options, folder=folder, world=world)
        self.output = folder / "msrun"

    def entries(self, rank: int) -> list[dict[str, Any]]:
        """The log of a rank so far; a line that is being written is left out."""
        path = self.logs / f"rank{rank}.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def steps(self, rank: int) -> list[dict[str, Any]]:
        return [entry for entry in self.entries(rank) if "step" in entry]

    def all_steps(self) -> list[list[dict[str, Any]]]:
        """The steps of every rank."""
        return [self.steps(rank) for rank in range(self.world)]

    def put_away(self) -> None:
        """Moves the logs to where a resumed run looks for the weight it goes on with."""
        (self.logs / "killed").mkdir()
        for path in self.logs.glob("*.jsonl"):
            path.rename(self.logs / "killed" / path.name)

    def pid(self, rank: int) -> int:
        return int(self.entries(rank)[0]["pid"])

    def wait(self) -> None:
        """Until the run has ended by itself, as it should."""
        assert self.process.wait(PATIENCE) == 0, self.said()

    def wait_for(self, step: int) -> None:
        """Until every rank has finished that step."""
        deadline = time.monotonic() + PATIENCE
        while min(len(self.steps(rank)) for rank in range(self.world)) < step:
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.01)

    def said(self) -> str:
        """The end of what the workers printed, for a failing test."""
        return "\n".join(path.read_text("utf-8", "replace")[-1500:] for path in self.output.glob("worker*.log"))

    def end(self) -> None:
        """Leave no process of this run behind: its ranks, then msrun with the scheduler."""
        for pid in [self.pid(rank) for rank in range(self.world) if self.entries(rank)]:
            with contextlib.suppress(OSError):
                if str(self.states) in pathlib.Path(f"/proc/{pid}/cmdline").read_text():  # still the same process
                    os.kill(pid, signal.SIGKILL)
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@contextlib.contextmanager
def running(*args: Any, **options: Any) -> Iterator[Run]:
    """A run that leaves no process behind."""
    run = Run(*args, **options)
    try:
        yield run
    finally:
        run.end()
