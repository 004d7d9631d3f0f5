"""Every training is done once, in a process of its own; the tests look at what it wrote down."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.processes import run_python


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every training, done once in a process of its own."""
    folder = tmp_path_factory.mktemp("trainings")
    run_python("-m", "tests.trainer.jobs", folder, folder=folder, timeout=500)
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


@pytest.fixture
def steps(results: dict[str, Any]) -> Any:
    """The steps of a job, or its traceback as a failure."""

    def of(name: str) -> Any:
        assert not isinstance(results[name], str), results[name]
        return results[name]

    return of
