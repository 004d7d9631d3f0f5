"""Hostile cases of every target. `python -m tests.fuzz` runs more of them, or one again."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest

from tests.fuzz.targets import CASES, TARGETS
from tests.processes import ROOT, environment

QUICK, SECOND = 80, 600  # cases of a target in `make test` and in `make test-all`
_SAID = re.compile(r"([\d,]+) cases, ([\d,]+) past the parser")


def test_the_long_mode_has_enough_cases() -> None:
    assert CASES.keys() == TARGETS.keys()
    assert min(CASES.values()) >= 15_000
    assert sum(CASES.values()) >= 300_000


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "mode", ["quick", pytest.param("second", marks=pytest.mark.training), pytest.param("long", marks=pytest.mark.long)]
)
def test_hostile_cases(target: str, mode: str, tmp_path: pathlib.Path) -> None:
    first = {"quick": 0, "second": QUICK, "long": 0}[mode]
    count = {"quick": QUICK, "second": SECOND, "long": CASES[target]}[mode]
    words = [sys.executable, "-m", "tests.fuzz", target, f"--first={first}", f"--cases={count}"]
    done = subprocess.run(words, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True)
    said = _SAID.search(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert said
    assert int(said[1].replace(",", "")) == count
    assert int(said[2].replace(",", "")) >= 0.3 * count
