"""Killed at any moment, ranges and their merge go on where they were, and the cache is the same, byte for byte."""

from __future__ import annotations

import pathlib
import random
import subprocess
import sys
import time

import pytest

import ms_prefstream as mps
from tests.cache.places import rows_with_bad, source, stream_of, tree
from tests.cache.test_kill import ROOT, Writer
from tests.cache.writer import PART, TASK

pytestmark = pytest.mark.mindspore


class RangeWriter(Writer):
    """`tests.cache.range_writer`, as a process."""

    def __init__(self, path: str, out: pathlib.Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.cache.range_writer", path, str(out)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("times", [3, pytest.param(50, marks=pytest.mark.long)])
def test_ranges_and_their_merge(times: int, tmp_path: pathlib.Path) -> None:
    path, out, moments, met = source(tmp_path, rows_with_bad(120)), tmp_path / "out", random.Random(times), 0
    mps.write_cache(stream_of(path, TASK), tmp_path / "whole", rows_per_part=PART)
    expected, writer = tree(tmp_path / "whole"), RangeWriter(path, out)
    try:
        seconds = writer.run()
        while met < times:
            assert tree(out) == expected
            left = sorted(entry.name for entry in tmp_path.iterdir() if not entry.name.startswith("old-"))
            assert left == ["out", "rows.jsonl", "whole"]
            out.rename(tmp_path / f"old-{time.monotonic_ns()}")
            if writer.run_killed(moments.uniform(0, seconds)):
                seconds *= 0.8  # it had ended before
            else:
                met += 1
            assert not out.exists() or tree(out) == expected
            writer.run()
        assert tree(out) == expected
    finally:
        writer.close()
