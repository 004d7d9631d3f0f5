"""Files that another process writes, slowly and in pieces, or until it is killed."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from ms_prefstream.errors import Reason, RowError
from ms_prefstream.sources.follow import follow

WRITER = """
import json, os, random, sys, time

folder, rows, kind, done = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
chance = random.Random(5)
name = "pairs.jsonl" if kind != "folder" else "part-000.jsonl"
file = open(os.path.join(folder, name), "ab", buffering=0)
for row in range(rows):
    text = json.dumps({"n": row, "text": "好" * chance.randrange(2000)}, ensure_ascii=False).encode() + b"\\n"
    while text:  # pieces end anywhere, also inside a character
        cut = chance.randrange(1, len(text) + 1)
        file.write(text[:cut])
        text = text[cut:]
        if chance.random() < 0.2:
            time.sleep(0.003)
    if kind == "folder" and row % 7 == 6:
        file = open(os.path.join(folder, f"part-{row:03}.jsonl"), "ab", buffering=0)
    if kind == "stuck" and row == 20:
        file.write(b'{"n": 21, "text": "')
        print("in mid-line", flush=True)
        time.sleep(60)
file.close()
if done:
    open(done, "w").close()
"""


def writer(folder: pathlib.Path, rows: int, kind: str, done: Any = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(folder), str(rows), kind, str(done)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def target(folder: pathlib.Path, kind: str) -> pathlib.Path:
    return folder if kind == "folder" else folder / "pairs.jsonl"


@pytest.mark.parametrize("kind", ["plain", "folder"])
def test_two_readers_get_every_row_once_in_the_same_order(tmp_path: pathlib.Path, kind: str) -> None:
    folder, done = tmp_path / "data", tmp_path / "DONE"
    folder.mkdir()
    source = follow(target(folder, kind), until=done, timeout=20, poll=0.002)
    with writer(folder, 60, kind, done) as process:
        early = source.start()
        first = [row["n"] for (_, row), _ in zip(early, range(10), strict=False)]
        assert process.poll() is None, "the writer was done before anything was read"
        late = source.start(5)  # like a rank that begins, or a run that resumes, in the middle
        assert [row["n"] for _, row in late] == list(range(5, 60))
        # `zip` took one row more than it gave
        assert first + [10] + [row["n"] for _, row in early] == list(range(60))
    assert process.returncode == 0


def test_rows_come_while_the_writer_is_still_at_work(tmp_path: pathlib.Path) -> None:
    with writer(tmp_path, 60, "stuck") as process:
        rows = follow(tmp_path / "pairs.jsonl", until=21, timeout=20, poll=0.002).start()
        assert [row["n"] for _, row in rows] == list(range(21))
        assert process.poll() is None
        process.kill()


def test_a_line_that_a_killed_writer_left_unfinished_is_one_bad_row(tmp_path: pathlib.Path) -> None:
    done = tmp_path / "DONE"
    source = follow(tmp_path / "pairs.jsonl", until=done, timeout=20, poll=0.002)
    with writer(tmp_path, 60, "stuck", done) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in mid-line\n"
        process.send_signal(signal.SIGKILL)
    done.touch()  # whoever watches the writer
    rows = [row for _, row in source.start()]
    assert [row["n"] for row in rows[:-1]] == list(range(21))
    assert isinstance(rows[-1], RowError)
    assert rows[-1].reason is Reason.BAD_JSON
    assert rows[-1].origin == f"{tmp_path / 'pairs.jsonl'}:22"
    assert len(list(source.start(21))) == 1
    with open(tmp_path / "pairs.jsonl", encoding="utf-8") as file:
        assert sum(1 for _ in file) == len(rows)  # as many rows as a plain source finds in the finished file


def test_an_interrupt_is_heard_at_once(tmp_path: pathlib.Path) -> None:
    code = (
        "import sys; from ms_prefstream.sources.follow import follow\n"
        "print('waiting', flush=True)\n"
        "try: list(follow(sys.argv[1]).start())\n"
        "except KeyboardInterrupt: print('interrupted')"
    )
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    command = [sys.executable, "-c", code, str(tmp_path / "never.jsonl")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        time.sleep(0.3)
        before = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "interrupted\n"
        assert time.monotonic() - before < 2
