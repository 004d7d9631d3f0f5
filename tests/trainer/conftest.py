"""Trainings are asked for by name; each is done once, in a process that all of them share."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.processes import environment

PATIENCE = 300  # seconds for one job; the first one waits for the imports as well


class Trainings:
    """The process that runs jobs (`tests.trainer.jobs`), and what it has written down."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        with open(folder / "said.txt", "wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.trainer.jobs", folder],
                cwd=folder,
                env=environment(folder),
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def result(self, name: str) -> Any:
        """The result of a job, which is run if it has none yet."""
        path = self.folder / "results" / f"{name}.json"
        deadline = time.monotonic() + PATIENCE
        if not path.exists():
            assert self.process.poll() is None, self.said()
            assert self.process.stdin is not None
            print(name, file=self.process.stdin, flush=True)
        while not path.exists():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)
        return json.loads(path.read_text())

    def said(self) -> str:
        """The end of what the process printed, for a failing test."""
        return (self.folder / "said.txt").read_text("utf-8", "replace")[-3000:]

    def end(self) -> None:
        """Ends the process; whoever waits for results has them."""
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainings]:
    """The process, started by the first test that asks for a job."""
    found = Trainings(tmp_path_factory.mktemp("trainings"))
    try:
        yield found
    finally:
        found.end()


@pytest.fixture
def steps(trainings: Trainings) -> Any:
    """The steps of a job by its name, or its traceback as a failure."""

    def of(name: str) -> Any:
        found = trainings.result(name)
        assert not isinstance(found, str), found
        return found

    return of
