"""Every benchmark runs, on few rows and once."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

from ms_prefstream.demo import data_path

pytestmark = pytest.mark.training

ROOT = pathlib.Path(__file__).parents[2]
DATA = ["--data", data_path(), "--tokenizer", "bytes"]


@pytest.mark.parametrize(
    "words",
    [
        ["throughput.py", *DATA, "--parts", "abc", "--rows", "500", "--repeats", "1"],
        ["families.py", *DATA, "--repeats", "1"],
        ["padding.py", *DATA, "--repeats", "1"],
        ["workers.py", *DATA, "--rows", "300", "--repeats", "1"],
        ["cache.py", *DATA, "--length", "320"],
        ["packing.py", "--rows", "400", "--index-rows", "2000", "--repeats", "1"],
        ["memory.py", "--rows", "2000", "4000", "--repeats", "1"],
        ["planning.py", "--rows", "120000", "--steps", "16", "--ranks", "8", "--times", "2"],
    ],
    ids=lambda words: words[0],
)
def test_it_runs(words: list[str]) -> None:
    run(words)


def test_start(chatml_dir: pathlib.Path) -> None:
    run(["start.py", "--data", data_path(), "--tokenizer", str(chatml_dir), "--repeats", "1"])


def test_load() -> None:
    sizes = {
        "rows": 3000, "index-rows": 20000, "look-ups": 5, "steps": 500, "run-rows": 500, "stream-rows": 64,
        "sources": 70, "consumer-rows": 500, "slow-steps": 5,
    }  # fmt: skip
    run(["load.py", *(word for name, size in sizes.items() for word in (f"--{name}", str(size)))])


def run(words: list[str]) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / words[0]), *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout
