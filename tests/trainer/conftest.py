"""Every training is done once, in a process of its own; the tests look at what it wrote down."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every training, done once in a process of its own."""
    folder = tmp_path_factory.mktemp("trainings")
    done = subprocess.run(
        [sys.executable, "-m", "tests.trainer.jobs", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "GLOG_v": "3"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


@pytest.fixture
def steps(results: dict[str, Any]) -> Any:
    """The steps of a job, or its traceback as a failure."""

    def of(name: str) -> Any:
        assert not isinstance(results[name], str), results[name]
        return results[name]

    return of
