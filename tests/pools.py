"""Rows, recipes and comparisons that the tests of worker processes and of the length index share."""

from __future__ import annotations

import os
import pathlib
import random
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import orjson

from ms_prefstream import DPO
from ms_prefstream.encode.tokenizer import load_tokenizer
from ms_prefstream.formats import resolve_format
from ms_prefstream.formats.expand import Expanded
from ms_prefstream.load.loader import Recipe
from ms_prefstream.load.records import FormattedRows
from ms_prefstream.load.workers.pool import LoaderPool
from ms_prefstream.sample import Loaded
from ms_prefstream.sources import open_source
from ms_prefstream.sources.jsonl import dump_row

SECONDS = 10.0  # what "within seconds" means on a machine that is busy


def pairs(count: int, seed: int = 0, bad: bool = True) -> list[dict[str, Any]]:
    """Rows of prompt, chosen and rejected; some identical, too long, incomplete or of a wrong type if `bad`."""
    draw = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        row: dict[str, Any] = {
            side: f"{side} {number} " + "".join(draw.choices("abc 你好é\n", k=draw.randint(1, 60)))
            for side in ("prompt", "chosen", "rejected")
        }
        row["margin"] = number / 7
        if bad and number % 19 == 5:
            row["rejected"] = row["chosen"]
        if bad and number % 23 == 7:
            del row["chosen"]
        if bad and number % 29 == 11:
            row["prompt"] = 17
        rows.append(row)
    return rows


def write(path: pathlib.Path, rows: Sequence[Any]) -> str:
    """Rows as a JSON Lines file."""
    path.write_bytes(b"".join(dump_row(row) + b"\n" for row in rows))
    return str(path)


def recipe(source: Any, task: Any = None, format: Any = "auto", tokenizer: Any = "bytes") -> Recipe:
    """How a stream would load the rows of a source."""
    found, fmt = open_source(source), resolve_format(format)
    records = Expanded(found, fmt) if hasattr(fmt, "count") else FormattedRows(found, fmt)
    return Recipe(
        records=records,
        task=task or DPO(100),
        tokenizer=None if tokenizer is None else load_tokenizer(tokenizer),
    )


def plain(loaded: Sequence[Loaded]) -> list[Any]:
    """Loaded rows as values that can be compared, dtypes and types included."""
    return [
        None
        if one.sample is None
        else (
            [(s.ids.dtype.str, s.ids.tolist(), s.spans, s.truncated, s.question_cut) for s in one.sample.sequences],
            None if one.sample.prompt is None else (one.sample.prompt.dtype.str, one.sample.prompt.tolist()),
            (type(one.sample.margin), one.sample.margin, one.sample.ref_logps),
        )
        for one in loaded
    ] + [
        (one.notes, type(one.notes), one.unread, one.error and (one.error.reason, one.error.args, one.error.origin))
        for one in loaded
    ]


def gone(pids: Sequence[int]) -> bool:
    """Whether all of these processes end soon."""
    return until(lambda: not any(map(_alive, pids)))


def until(condition: Callable[[], bool]) -> bool:
    """Whether a condition holds within seconds."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def wait_ready(pool: LoaderPool) -> None:
    """Starts the workers and waits until one can work, so that this process runs no task.

    Raises:
        PrefStreamError: A worker could not start.
    """
    pool._start()
    while not pool._tasks.ready:
        pool._tasks.check()
        time.sleep(0.02)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = pathlib.Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def as_json(value: Any) -> Any:
    return orjson.loads(orjson.dumps(value))


def shuffled(count: int, seed: int = 1) -> list[int]:
    rows: list[int] = np.random.default_rng(seed).permutation(count).tolist()
    return rows


def together(_: Any, argument: tuple[str, int, int]) -> int:
    """How many calls are in work at a time: each waits for the others, but not for ever."""
    folder, number, of = argument
    pathlib.Path(folder, str(number)).touch()
    end = time.monotonic() + 20
    while len(os.listdir(folder)) < of and time.monotonic() < end:
        time.sleep(0.01)
    return len(os.listdir(folder))
