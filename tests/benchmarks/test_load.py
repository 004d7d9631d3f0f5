"""Streams under load, at sizes at which what grows is seen: by the figures of ``benchmarks/load.py``."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.long

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "load.py"


def figures(part: str, folder: pathlib.Path, *words: str) -> dict[str, float]:
    """What a part measured, by name."""
    command = [sys.executable, str(SCRIPT), "--parts", part, "--folder", str(folder), "--json", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {figure["what"]: figure["values"][0] for figure in found}


def of(found: dict[str, float], word: str) -> dict[str, float]:
    """The figures whose name holds a word; there are some."""
    some = {what: value for what, value in found.items() if word in what}
    assert some, found
    return some


def check_flat(found: dict[str, float], megabytes: float) -> None:
    """Checks that neither memory nor open files grow."""
    assert all(value < megabytes for value in of(found, "MB that grow").values()), found
    assert all(abs(value) < 0.5 for value in of(found, "open files that grow").values()), found
    assert all(value < 20 for value in of(found, "open files, at most").values()), found


def test_every_row_of_a_large_file(tmp_path: pathlib.Path) -> None:
    found = figures("k", tmp_path, "--rows", "300000")
    check_flat(found, megabytes=3)
    assert set(of(found, "not accounted for").values()) == {0}
    assert set(of(found, "dropped").values()) == {300_000 // 200}


def test_plans_of_many_rows(tmp_path: pathlib.Path) -> None:
    found = figures("l", tmp_path, "--index-rows", "3000000", "--look-ups", "50")
    assert all(value < 15 for what, value in of(found, "look-up of a random step").items() if "no index" not in what)
    assert all(value < 14 * 3 + 25 for value in of(found, "as a rank").values()), found


def test_a_run_of_many_steps(tmp_path: pathlib.Path) -> None:
    check_flat(figures("m", tmp_path, "--steps", "100000", "--run-rows", "20000"), megabytes=2)


@pytest.mark.parametrize("part", "no")
def test_many_streams_and_many_sources(part: str, tmp_path: pathlib.Path) -> None:
    found = figures(part, tmp_path, "--stream-rows", "3000")
    assert set(of(found, "with other bytes").values()) == {0}
    assert all(
        value == 0 for what, value in found.items() if "threads beyond" in what or "threads that are left" in what
    )
    assert all(value < 64 for what, value in found.items() if "open files" in what)


def test_slow_and_fast_consumers(tmp_path: pathlib.Path) -> None:
    found = figures("p", tmp_path, "--consumer-rows", "20000", "--slow-steps", "60")
    assert set(of(found, "with other bytes").values()) == {0}
    first, most = of(found, "after half").values(), of(found, "at most after that").values()
    assert all(later < before + 40 for before, later in zip(first, most, strict=True)), found
