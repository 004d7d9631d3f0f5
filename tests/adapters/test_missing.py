"""Where MindSpore or MindFormers is not installed, what needs them says so in a sentence; the rest works."""

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
    "write_cache": ("mps.write_cache(stream, 'cache')", "mindspore"),
    "PrefStreamReport": ("PrefStreamReport()", "mindspore"),
    "PrefStreamDataset": ("PrefStreamDataset(data_loader=section, batch_size=2)", "mindformers"),
}


@pytest.mark.parametrize("what", CALLS)
def test_it_says_what_is_missing_and_what_for(what: str, tmp_path: pathlib.Path) -> None:
    call, package = CALLS[what]
    missing = ["mindspore", "mindformers"] if package == "mindspore" else ["mindformers"]
    program = PROGRAM.format(missing=missing, call=call)
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    version = {"mindspore": "2.9.0", "mindformers": "1.9.0"}[package]
    assert done.stdout.startswith(
        f"{what} needs the package {package}, which is not installed here. Install it: pip install {package}=={version}"
    )
    assert done.stdout.count("\n") == 1
