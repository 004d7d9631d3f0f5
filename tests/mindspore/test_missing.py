"""Without MindSpore or MindFormers, a feature that needs them names the package; everything else works."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
import ms_prefstream as mps
from ms_prefstream.adapters.mindformers import PrefStreamDataset, PrefStreamReport

rows = [dict(prompt=f"a{{i}}", chosen="x" * (i + 1), rejected="y z") for i in range(9)]
stream = mps.stream(rows, task=mps.DPO(64), tokenizer="bytes", batching=mps.Pad(2))
assert len(list(stream.batches())) == 4
section = dict(source=rows, tokenizer="bytes", task=dict(type="DPO", max_length=64), batching=dict(type="Pad"))
try:
    {call}
except mps.PrefStreamError as error:
    print(error)
"""
CALLS = {
    "stream.dataset()": ("stream.dataset()", "mindspore"),
    "StreamCheckpoint": ("mps.StreamCheckpoint(stream, 'states')", "mindspore"),
    "PrefStreamReport": ("PrefStreamReport()", "mindspore"),
    "PrefStreamDataset": ("PrefStreamDataset(data_loader=section, batch_size=2)", "mindformers"),
}


CACHE = """mps.write_cache(stream, "cache")
    mps.write_cache(stream, "padded", layout="mindrlhf")
    cached = mps.stream("cache", task=mps.DPO(64), tokenizer=None, batching=mps.Pad(2))
    pairs = list(zip(cached.batches(), stream.batches()))
    same = [all((ours[name] == theirs[name]).all() for name in ours) for ours, theirs in pairs]
    print(len(same), all(same), "mindspore" in sys.modules)"""


def ran(missing: list[str], call: str, folder: pathlib.Path) -> str:
    """What the program prints."""
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    command = [sys.executable, "-c", PROGRAM.format(missing=missing, call=call)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("what", CALLS)
def test_the_error_names_the_package_and_the_feature(what: str, tmp_path: pathlib.Path) -> None:
    call, package = CALLS[what]
    said = ran(["mindspore", "mindformers"] if package == "mindspore" else ["mindformers"], call, tmp_path)
    version = {"mindspore": "2.9.0", "mindformers": "1.9.0"}[package]
    assert said.startswith(
        f"{what} needs the package {package}, which is not installed here. Install it: pip install {package}=={version}"
    )
    assert said.count("\n") == 1


def test_caches_are_written_and_read_without_mindspore(tmp_path: pathlib.Path) -> None:
    assert ran(["mindspore", "mindformers"], CACHE, tmp_path) == "4 True False\n"
