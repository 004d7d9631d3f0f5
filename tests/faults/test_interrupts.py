"""Ctrl-C and SIGTERM at any moment of every command of the command line, in a pipe and at a terminal.

The command ends within seconds with exit code 130, without a traceback; SIGTERM ends it like any program. It leaves no
process behind, and the terminal as it was. Out of reach are the first moments (Python needs some 50 ms before it comes
to this library) and the last (when the command is done, and Python has given up its own handling of signals).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import pty
import random
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.cache.places import rows_with_bad
from tests.helpers import json_lines
from tests.pools import SECONDS, until
from tests.processes import ROOT

DPO = ("--task", "dpo", "--max-length", "128", "--tokenizer", "bytes")
WORDS: dict[str, tuple[str, ...]] = {
    "--help": ("--help",),
    "formats": ("formats", "--detect", "rows.jsonl"),
    "inspect": ("inspect", "rows.jsonl", *DPO),
    "doctor": ("doctor", "rows.jsonl", *DPO),
    "stats": ("stats", "rows.jsonl", *DPO, "--workers", "2"),
    "init": ("init", "rows.jsonl", "--task", "dpo", "--tokenizer", "bytes", "--out", "made", "--overwrite"),
    "index": ("index", "rows.jsonl", *DPO, "--out", "x.mprefidx", "--workers", "2", "--on-bad-row", "drop"),
    "cache": ("cache", "rows.jsonl", "out", *DPO, "--rows-per-part", "50", "--workers", "2", "--overwrite"),
    "verify": ("verify", "cache"),
    "merge": ("merge", "ranges"),
    "bench": ("bench", "rows.jsonl", *DPO, "--repeats", "1000"),
    "demo": ("demo",),
}
PROGRAM = "import os; os.write(2, b'{begun}\\n'); from ms_prefstream.__main__ import main; main()"
MARK = "<begun>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with rows."""
    made = tmp_path_factory.mktemp("commands")
    json_lines(made / "rows.jsonl", rows_with_bad(2000))
    return made


@pytest.fixture(scope="module")
def prepared(folder: pathlib.Path) -> pathlib.Path:
    """The same, with what commands read."""
    made = folder
    options = (*DPO, "--rows-per-part", "50")
    for more in (("cache",), ("ranges", "--part-range", "1/2"), ("ranges", "--part-range", "2/2")):
        command = [sys.executable, "-m", "ms_prefstream", "cache", "rows.jsonl", *more, *options]
        subprocess.run(command, cwd=made, env=_environment(), check=True)
    shutil.move(made / "ranges.writing", made / "written")
    return made


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@dataclass
class Command:
    """A command that runs."""

    process: subprocess.Popen[bytes]
    terminal: int | None
    output: bytes = b""

    def read(self, seconds: float) -> None:
        """Reads what it prints at a terminal, for some time or until it ends."""
        end = time.monotonic() + seconds
        while self.terminal is not None and time.monotonic() < end:
            with contextlib.suppress(BlockingIOError, OSError):
                self.output += os.read(self.terminal, 1 << 16)
            if self.process.poll() is not None:
                return
            time.sleep(0.005)
        if self.terminal is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)


@contextlib.contextmanager
def started(words: tuple[str, ...], folder: pathlib.Path, at_terminal: bool) -> Iterator[Command]:
    """Starts a command in a session of its own; it has said that Python has begun with it."""
    options: dict[str, Any] = {"cwd": folder, "env": _environment(), "start_new_session": True}
    code = [sys.executable, "-c", PROGRAM.replace("{begun}", MARK), *words]
    ours = theirs = None
    if at_terminal:
        ours, theirs = pty.openpty()
        os.set_blocking(ours, False)
        options["preexec_fn"] = lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # where Ctrl-C comes from
        process = subprocess.Popen(code, stdin=theirs, stdout=theirs, stderr=theirs, **options)
    else:
        log = open(folder / "log", "w+b")  # noqa: SIM115
        process = subprocess.Popen(code, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **options)
    command = Command(process, ours)
    try:
        if at_terminal:
            assert until(lambda: command.read(0.01) or MARK.encode() in command.output)  # type: ignore[func-returns-value]
        else:
            assert until(lambda: MARK in (folder / "log").read_text())
        yield command
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for file in (ours, theirs):
            if file is not None:
                os.close(file)


def children_of(session: int) -> list[int]:
    """The processes of a session, and those that workers began, by their parents."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                status = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(status[1]) == session and status[0] != "Z":
                    found.append(int(entry.name))
    return found


def interrupt(
    words: tuple[str, ...], folder: pathlib.Path, seconds: float, number: int = signal.SIGINT, at_terminal: bool = False
) -> tuple[bool, float]:
    """Sends a signal so many seconds after the begin. Returns whether it met the command, and how long that took."""
    if words[0] == "merge":
        shutil.rmtree(folder / "ranges", ignore_errors=True)
        shutil.rmtree(folder / "ranges.writing", ignore_errors=True)
        shutil.copytree(folder / "written", folder / "ranges.writing")
    with started(words, folder, at_terminal) as command:
        attributes = None if command.terminal is None else termios.tcgetattr(command.terminal)
        command.read(seconds)
        process = command.process
        workers = children_of(process.pid)
        if process.poll() is not None:
            return False, 0.0
        begin = time.monotonic()
        if command.terminal is not None and number == signal.SIGINT:
            os.write(command.terminal, b"\x03")  # to all processes at the terminal
        else:
            process.send_signal(number)
        command.read(SECONDS)
        took = time.monotonic() - begin
        code = process.poll()
        if attributes is not None and command.terminal is not None:
            command.read(0.05)
            assert termios.tcgetattr(command.terminal) == attributes
            said = command.output.decode(errors="replace")
        else:
            said = (folder / "log").read_text(errors="replace")
        assert code is not None, f"{words} still runs {SECONDS} s after the signal: {said[-2000:]}"
        assert "Traceback" not in said, said[-3000:]
        assert "Exception ignored" not in said, said[-3000:]
        assert until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers))
        if code in (0, -signal.SIGINT):  # it had ended, and only Python was still at work
            return False, took
        assert code == (130 if number == signal.SIGINT else -number), said[-2000:]
        assert number != signal.SIGINT or "ms-prefstream: interrupted" in said
        return True, took


@pytest.mark.parametrize("name", ["cache", "inspect"])
def test_a_few_moments(name: str, folder: pathlib.Path) -> None:
    draw = random.Random(name)
    for _ in range(2):
        interrupt(WORDS[name], folder, draw.uniform(0, 1.0), at_terminal=name == "inspect")
    interrupt(WORDS[name], folder, 0.2, signal.SIGTERM)


LOST = """
import os, signal, sys, time
class Closing:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
from ms_prefstream.cli import main as cli
def run():
    Closing()
    time.sleep(5)
cli.commands = lambda **_: run()
from ms_prefstream.__main__ import main
main()
"""
IN_IMPORT = """
import os, sys
from ms_prefstream.cli import main as cli
def run():
    try:
        import interrupted
    except BaseException as error:
        raise ImportError("initialization failed") from error
cli.commands = lambda **_: run()
from ms_prefstream.__main__ import main
main()
"""


@pytest.mark.parametrize("code", [LOST, IN_IMPORT], ids=["destructor", "import"])
def test_an_interrupt_that_python_or_a_package_would_drop(code: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "interrupted.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "ms-prefstream: interrupted.\n")
    assert time.monotonic() - begin < 5


@pytest.mark.long
@pytest.mark.parametrize("name", WORDS)
def test_fifty_moments(name: str, prepared: pathlib.Path) -> None:
    draw, met, longest, seconds = random.Random(name), 0, 0.0, 3.0
    for at in range(60):
        number = signal.SIGTERM if at >= 50 else signal.SIGINT
        found, took = interrupt(WORDS[name], prepared, draw.uniform(0, seconds), number, at_terminal=at % 3 == 0)
        met, longest = met + found, max(longest, took)
        seconds = max(0.3, seconds * (1.02 if found else 0.8))
    print(f"\n{name}: {met} of 60 met it, back after {longest:.2f} s at most")
    assert met >= 30
