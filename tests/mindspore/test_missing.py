"""Without MindSpore or MindFormers, a feature that needs them names the package; everything else works.

The packages are refused by an import hook here; `tests/packaging` installs the library without them.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from ms_prefstream.demo import data_path

HOOK = """
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""
PROGRAM = (
    HOOK
    + """
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
)
CALLS = {
    "stream.dataset()": ("stream.dataset()", "mindspore"),
    "StreamCheckpoint": ("mps.StreamCheckpoint(stream, 'states')", "mindspore"),
    "PrefStreamReport": ("PrefStreamReport()", "mindspore"),
    "PrefStreamDataset": ("PrefStreamDataset(data_loader=section, batch_size=2)", "mindformers"),
}
COMMAND = (
    HOOK
    + """
from ms_prefstream.cli.main import main

main()
"""
)
OPTIONS = ["--task", "dpo", "--max-length", "256", "--tokenizer", "bytes"]
COMMANDS = {
    "inspect": ["rows.jsonl", *OPTIONS],
    "stats": ["rows.jsonl", "--tokenizer", "bytes"],
    "doctor": ["rows.jsonl", *OPTIONS],
    "formats": ["--detect", "rows.jsonl"],
    "init": ["rows.jsonl", "--task", "dpo", "--tokenizer", "bytes", "--mindformers"],
    "index": ["rows.jsonl", *OPTIONS],
    "cache": ["rows.jsonl", "cache", *OPTIONS, "--part-range", "1/1"],
    "merge": ["cache"],
    "verify": ["cache"],
    "bench": ["rows.jsonl", *OPTIONS, "--batch-size", "2", "--repeats", "1"],
}
"""Command -> arguments, in an order in which each finds what it reads. `demo` is the one that needs MindSpore."""
EVERYTHING = ["mindspore", "mindformers", "transformers", "datasets", "pyarrow", "fastokens", "ray"]


CACHE = """mps.write_cache(stream, "cache")
    mps.write_cache(stream, "padded", layout="mindrlhf")
    cached = mps.stream("cache", task=mps.DPO(64), tokenizer=None, batching=mps.Pad(2))
    pairs = list(zip(cached.batches(), stream.batches()))
    same = [all((ours[name] == theirs[name]).all() for name in ours) for ours, theirs in pairs]
    print(len(same), all(same), "mindspore" in sys.modules)"""


def started(program: str, folder: pathlib.Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A program that has ended, run in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    command = [sys.executable, "-c", program, *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def ran(missing: list[str], call: str, folder: pathlib.Path) -> str:
    """What the program prints."""
    done = started(PROGRAM.format(missing=missing, call=call), folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def install_line(what: str, missing: str, extra: str) -> str:
    return (
        f"{what} needs the package {missing}, which is not installed here. Install it: "
        f'pip install "ms-prefstream[{extra}]".'
    )


@pytest.mark.parametrize("what", CALLS)
def test_the_error_names_the_package_and_the_feature(what: str, tmp_path: pathlib.Path) -> None:
    call, package = CALLS[what]
    said = ran(["mindspore", "mindformers"] if package == "mindspore" else ["mindformers"], call, tmp_path)
    assert said == f"{install_line(what, package, package)}\n"


def test_caches_are_written_and_read_without_mindspore(tmp_path: pathlib.Path) -> None:
    assert ran(["mindspore", "mindformers"], CACHE, tmp_path) == "4 True False\n"


@pytest.mark.slow
def test_commands_need_no_further_package(tmp_path: pathlib.Path) -> None:
    from ms_prefstream.cli.main import COMMANDS as SECTIONS

    assert {*COMMANDS, "demo"} == {name for names in SECTIONS.values() for name in names}
    shutil.copy(data_path(), tmp_path / "rows.jsonl")
    for name, words in COMMANDS.items():
        done = started(COMMAND.format(missing=EVERYTHING), tmp_path, name, *words)
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
    assert (tmp_path / "cache" / "manifest.json").exists()


@pytest.mark.slow
def test_the_demo_and_the_scripts_of_init_say_what_they_need(tmp_path: pathlib.Path) -> None:
    shutil.copy(data_path(), tmp_path / "rows.jsonl")
    demo = started(COMMAND.format(missing=EVERYTHING), tmp_path, "demo")
    line = install_line("ms-prefstream demo", "mindspore", "mindspore")
    assert (demo.returncode, demo.stderr) == (1, f"ms-prefstream: {line}\n")
    assert started(COMMAND.format(missing=[]), tmp_path, "init", *COMMANDS["init"]).returncode == 0
    for name, missing, extra in (
        ("train.py", "mindspore", "mindspore"),
        ("train_mindformers.py", "mindformers", "mindformers"),
    ):
        program = HOOK.format(missing=EVERYTHING) + f"import runpy\nrunpy.run_path({name!r})"
        said = started(program, tmp_path).stderr.splitlines()[-1]
        assert said == f"ms_prefstream.errors.PrefStreamError: {install_line(name, missing, extra)}"
