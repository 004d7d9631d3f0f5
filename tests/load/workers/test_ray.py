"""Engine `ray`: caches, indexes and statistics of the local engine, also when a worker is lost."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pathlib
import signal
import subprocess
import sys
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream import OptionError, PrefStreamError
from tests.cache.places import PART, rows_with_bad, source, stream_of, tree

pytestmark = pytest.mark.mindspore
TASK = mps.DPO(128)
# Looked for, not imported: MindSpore cannot be imported behind a Ray that chose protobuf's implementation itself.
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the package ray")


class KillsItsProcessOnce:
    """A format that ends the process of the first worker that meets row 33."""

    def __init__(self, marker: pathlib.Path) -> None:
        self.marker = marker

    def __call__(self, row: Any) -> Any:
        if row["prompt"].startswith("#33#") and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return row

    def __repr__(self) -> str:
        return "same rows"


def fails(row: Any) -> Any:
    if row["prompt"].startswith("#33#"):
        raise ValueError("no such luck")
    return row


def index_of(path: str, out: pathlib.Path, **options: Any) -> bytes:
    mps.build_index(path, out, task=TASK, tokenizer="bytes", verbose=False, **options)
    return out.read_bytes()


def test_what_is_refused(tmp_path: pathlib.Path) -> None:
    path = source(tmp_path)
    with pytest.raises(OptionError, match="engine is 'spark'"):
        mps.write_cache(stream_of(path, TASK), tmp_path / "out", engine="spark")
    with pytest.raises(OptionError, match="engine='ray'"):
        mps.write_cache(stream_of(path, TASK), tmp_path / "out", ray_address="auto")
    with pytest.raises(OptionError, match="engine is 'spark'"):
        index_of(path, tmp_path / "x", engine="spark")
    with pytest.raises(OptionError, match="engine='ray'"):
        mps.stats(path, ray_address="auto")


@needs_ray
@pytest.mark.long
def test_four_workers_one_of_which_is_lost(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    path, lost = source(tmp_path, rows_with_bad(100)), KillsItsProcessOnce(tmp_path / "killed")
    ray = {"engine": "ray", "workers": 4, "rows_per_part": PART}
    mps.write_cache(stream_of(path, TASK, format=lost), tmp_path / "out", **ray)
    assert lost.marker.exists()
    assert "part 2 (rows 32 to 47): its Ray worker was lost (WorkerCrashedError" in caplog.text
    mps.write_cache(stream_of(path, TASK, format=lost), tmp_path / "local", rows_per_part=PART)
    assert tree(tmp_path / "out") == tree(tmp_path / "local")
    assert not (tmp_path / "out.writing").exists()


@needs_ray
@pytest.mark.long
def test_an_index_and_statistics(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ms_prefstream.lengths.build.CHUNK", 30)
    path, ray = source(tmp_path, rows_with_bad(100)), {"engine": "ray", "workers": 2}
    options = {"dedup": "prompt", "exclude": [{"prompt": "#33#"}]}
    assert index_of(path, tmp_path / "ray", **options, **ray) == index_of(path, tmp_path / "local", **options)
    local, cluster = (dataclasses.replace(mps.stats(path, **given), seconds=0.0) for given in ({}, ray))
    assert cluster == local


@needs_ray
@pytest.mark.long
def test_an_error_in_a_task_is_a_sentence(tmp_path: pathlib.Path) -> None:
    stream = stream_of(source(tmp_path), TASK, format=fails)
    with pytest.raises(PrefStreamError, match="no such luck"):
        mps.write_cache(stream, tmp_path / "out", engine="ray", workers=2, rows_per_part=PART)
    assert not (tmp_path / "out").exists()


@needs_ray
@pytest.mark.long
def test_a_ray_that_cannot_start_is_a_sentence(tmp_path: pathlib.Path) -> None:
    words = f"{sys.executable} -m ms_prefstream stats {source(tmp_path)} --engine ray"
    env = {**os.environ, "PYTHONPATH": str(pathlib.Path(mps.__file__).parents[1])}
    done = subprocess.run(["bash", "-c", f"ulimit -n 30; {words}"], env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Ray cannot be started on this machine: " in done.stderr
    assert "Traceback" not in done.stderr
