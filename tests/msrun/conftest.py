"""The data, and a run on two ranks that nothing interrupts."""

from __future__ import annotations

import pathlib

import pytest

from tests.helpers import json_lines, pairs
from tests.msrun.runs import N, Steps, running


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return json_lines(tmp_path_factory.mktemp("data") / "rows.jsonl", pairs(N))


@pytest.fixture(scope="session")
def whole(source: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Steps:
    """The steps of both ranks."""
    with running(source, tmp_path_factory.mktemp("whole")) as run:
        run.wait()
        assert [run.entries(rank)[0]["rank"] for rank in range(2)] == [0, 1]
        assert {run.entries(rank)[0]["world"] for rank in range(2)} == {2}
        return run.all_steps()
