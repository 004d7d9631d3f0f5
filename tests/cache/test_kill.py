"""Killed at any moment, a write goes on where it was, and the cache is the same, byte for byte."""

from __future__ import annotations

import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import time

import pytest

import ms_prefstream as mps
from ms_prefstream import CacheError, PrefStreamError
from ms_prefstream.cache.verify import verify
from tests.cache.places import rows_with_bad, source, stream_of, tree
from tests.cache.writer import PART, TASK

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = [pytest.mark.mindspore, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]


class Writer:
    """`tests.cache.writer`, as a process."""

    def __init__(self, path: str, out: pathlib.Path, workers: int, layout: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.cache.writer", path, str(out), str(workers), layout],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def say(self, word: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self.line()

    def run(self) -> float:
        """An undisturbed run; its seconds."""
        begin = time.monotonic()
        self.say("go")
        assert self.say("wait") == "0"
        return time.monotonic() - begin

    def run_killed(self, seconds: float) -> bool:
        """A run that is killed after some seconds; whether it had ended before."""
        pid = int(self.say("go"))
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)  # it stays a zombie until the writer asks for it, so the number is its own
        return self.say("wait") == "0"

    def close(self) -> None:
        self.process.communicate()


def kill_at_random(
    folder: pathlib.Path, times: int, workers: int, before: bool = False, layout: str = "ragged"
) -> None:
    """Kill a write so many times, each time finish it, and compare.

    Args:
        folder: Where all is.
        times: Kills that must meet a run.
        workers: The writer's.
        before: Whether a cache is there that the run replaces.
        layout: Of the cache.
    """
    path = source(folder, rows_with_bad(120))
    whole, out = folder / "whole", folder / "out"
    mps.write_cache(stream_of(path, TASK), whole, layout=layout, rows_per_part=PART)
    expected, moments, met = tree(whole), random.Random(times), 0
    writer = Writer(path, out, workers, layout)
    try:
        seconds = writer.run()
        while met < times:
            former = tree(out)
            if not before:
                out.rename(folder / f"old-{time.monotonic_ns()}")
            if writer.run_killed(moments.uniform(0, seconds)):
                seconds *= 0.8  # it had ended before
            else:
                met += 1
            assert not out.exists() or tree(out) in (expected, former)
            writer.run()
            assert tree(out) == expected
            left = [entry.name for entry in folder.iterdir() if not entry.name.startswith("old-")]
            assert sorted(left) == ["out", "rows.jsonl", "whole"]
    finally:
        writer.close()


@pytest.mark.parametrize("layout", ["ragged", "megatron"])
def test_a_few_moments(layout: str, tmp_path: pathlib.Path) -> None:
    kill_at_random(tmp_path, 3, 0, layout=layout)


@pytest.mark.slow
def test_a_run_that_replaces_a_cache(tmp_path: pathlib.Path) -> None:
    kill_at_random(tmp_path, 2, 0, before=True)


@pytest.mark.long
@pytest.mark.parametrize("layout", ["ragged", "megatron"])
@pytest.mark.parametrize("workers", [0, 2])
def test_fifty_moments(workers: int, layout: str, tmp_path: pathlib.Path) -> None:
    kill_at_random(tmp_path, 50, workers, layout=layout)


@pytest.mark.parametrize(
    ("room", "layout"), [(3_000, "ragged"), (20_000, "ragged"), (40_000, "ragged"), (9_001, "megatron")]
)
def test_a_file_that_may_not_grow(room: int, layout: str, tmp_path: pathlib.Path) -> None:
    """What a full disk does to a write: the system refuses in the middle of a file, even of a number."""
    path, out = source(tmp_path), tmp_path / "out"
    mps.write_cache(stream_of(path, TASK), tmp_path / "whole", layout=layout, rows_per_part=PART)
    stream, before = stream_of(path, TASK), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(PrefStreamError, match="MB are free there") as caught:
            mps.write_cache(stream, out, layout=layout, rows_per_part=PART)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "Traceback" not in str(caught.value)
    assert not out.exists()
    mps.write_cache(stream, out, layout=layout, rows_per_part=PART)
    assert tree(out) == tree(tmp_path / "whole")
    assert not any(one.problem for one in verify(str(out)))


def exits(row: object) -> object:
    if isinstance(row, dict) and row["prompt"].startswith("#33#"):
        os.kill(os.getpid(), signal.SIGKILL)
    return row


def test_a_killed_worker_ends_the_run_with_a_sentence(tmp_path: pathlib.Path) -> None:
    path, out = source(tmp_path), tmp_path / "out"
    with pytest.raises(PrefStreamError, match=r"was killed by SIGKILL while it worked on part 4 \(rows 32 to 39\)"):
        mps.write_cache(stream_of(path, TASK, format=exits), out, rows_per_part=PART, workers=2)
    assert not out.exists()
    assert not issubclass(CacheError, OSError)
