"""How a command ends: 0 done, 1 a problem was found, 2 wrong usage, 130 interrupted; in a process of its own."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys

import orjson
import pytest

from ms_prefstream.demo import data_path

ROOT = pathlib.Path(__file__).parents[2]
DPO = ("--task", "dpo", "--max-length", "320", "--tokenizer", "bytes")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def start(*words: object, cwd: pathlib.Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ms_prefstream", *map(str, words)]
    return subprocess.Popen(
        command, cwd=cwd, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--version",), 0),
        (("inspect", data_path(), *DPO), 0),
        (("doctor", data_path(), *DPO), 0),
        (("formats", "--detect", data_path()), 0),
        (("formats", "--detect", data_path(), "--rows", 10**30), 0),
        (("doctor", "bad.jsonl", *DPO), 1),  # it must be mended
        (("formats", "--detect", "bad.jsonl"), 1),
        (("verify", "."), 1),
        (("index", "bad.jsonl", *DPO), 1),
        (("bench", "missing.jsonl", *DPO), 1),
        (("bench", data_path(), *DPO, "--batch-size", "0"), 2),
        (("bench", data_path(), *DPO, "--nothing"), 2),
        (("nothing",), 2),
        (("inspect", data_path()), 2),
    ],
)
def test_exit_codes(words: tuple[object, ...], code: int, tmp_path: pathlib.Path) -> None:
    (tmp_path / "bad.jsonl").write_bytes(orjson.dumps({"question": "a", "good": "b", "bad": "c"}) + b"\n")
    process = start(*words, cwd=tmp_path)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert "Traceback" not in err


def test_a_closed_pipe_is_no_problem_that_was_found(tmp_path: pathlib.Path) -> None:
    process = start("inspect", data_path(), *DPO, "--rows", "80", "--full", cwd=tmp_path)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(timeout=120) == 141
    assert "Broken" not in process.stderr.read()


def test_an_interrupt_ends_with_130(tmp_path: pathlib.Path) -> None:
    row = orjson.dumps({"prompt": "p" * 300, "chosen": "a" * 900, "rejected": "b" * 900}) + b"\n"
    (tmp_path / "rows.jsonl").write_bytes(row * 50_000)
    process = start("bench", "rows.jsonl", *DPO, "--repeats", "1000", cwd=tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("first batch")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.endswith("ms-prefstream: interrupted.\n")


@pytest.mark.parametrize("name", ["click", "cloup", "ms_prefstream.cli.main", "ms_prefstream.cli.stats"])
def test_an_interrupt_while_commands_are_loaded_is_one_sentence(name: str, tmp_path: pathlib.Path) -> None:
    code = (
        "import builtins, os, signal, sys\n"
        "load = builtins.__import__\n"
        "def interrupted(name, *more):\n"
        f"    if name == {name!r} or name == 'ms_prefstream.cli' and {name!r}.startswith(name):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return load(name, *more)\n"
        "builtins.__import__ = interrupted\n"
        "sys.argv[1:] = ['stats', 'missing.jsonl']\n"
        "from ms_prefstream.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "ms-prefstream: interrupted.\n")
