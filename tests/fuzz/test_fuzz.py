"""Hostile cases of every target. `python -m tests.fuzz` runs more of them, or one again."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest

from tests.fuzz.targets import CASES, TARGETS
from tests.processes import ROOT, environment

QUICK, SECOND = 60, 500  # cases of each target in `make test` and in `make test-all`
_SAID = re.compile(r"^([\w.]+): ([\d,]+) cases, ([\d,]+) past the parser", re.MULTILINE)


def number(text: str) -> int:
    return int(text.replace(",", ""))


def check(target: str, first: int, count: int, folder: pathlib.Path) -> None:
    """Runs cases of a target, or of all, in a process that has no threads."""
    words = [sys.executable, "-m", "tests.fuzz", target, f"--first={first}", f"--cases={count}"]
    done = subprocess.run(words, cwd=ROOT, env=environment(folder), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {
        name: (int(cases.replace(",", "")), int(past.replace(",", "")))
        for name, cases, past in _SAID.findall(done.stdout)
    }
    assert found.keys() == ({*TARGETS} if target == "all" else {target})
    for cases, past in found.values():
        assert cases == count
        assert past >= 0.3 * count


def test_the_long_mode_has_enough_cases() -> None:
    assert CASES.keys() == TARGETS.keys()
    assert min(CASES.values()) >= 15_000
    assert sum(CASES.values()) >= 300_000


def test_some_cases_of_every_target(tmp_path: pathlib.Path) -> None:
    check("all", 0, QUICK, tmp_path)


@pytest.mark.training  # takes as long
@pytest.mark.parametrize("target", TARGETS)
def test_more_cases(target: str, tmp_path: pathlib.Path) -> None:
    check(target, QUICK, SECOND, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("target", TARGETS)
def test_hostile_cases(target: str, tmp_path: pathlib.Path) -> None:
    check(target, 0, CASES[target], tmp_path)
