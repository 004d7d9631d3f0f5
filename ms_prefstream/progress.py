"""Progress of a pass over rows, shown to people: a bar in a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from typing import IO

_LINE_SECONDS = 10.0


class Progress:
    """Progress of a pass; this class does not show it."""

    def begin(self, total: int | None, done: int) -> None:
        """Starts a pass over `total` rows (None if unknown), `done` of which an interrupted pass has done."""

    def advance(self, rows: int) -> None:
        """Adds rows that are done."""

    def end(self) -> None:
        """Ends the pass, finished or interrupted."""


class Lines(Progress):
    """Progress as a line every ten seconds, and one at the end; arguments as for `progress_on`."""

    def __init__(self, label: str, file: IO[str], unit: str = "rows") -> None:
        self._label, self._file, self._unit = label, file, unit

    def begin(self, total: int | None, done: int) -> None:
        self._total, self._first, self._done = total, done, done
        self._begin = time.monotonic()
        self._next = self._begin + _LINE_SECONDS
        if done:
            self._file.write(f"{self._label}: {done:,} of {total or 0:,} {self._unit} are done already\n")

    def advance(self, rows: int) -> None:
        self._done += rows
        if time.monotonic() >= self._next:
            self._next += _LINE_SECONDS
            self._write()

    def end(self) -> None:
        self._write()

    def _write(self) -> None:
        rate = (self._done - self._first) / max(1e-9, time.monotonic() - self._begin)
        left, done = "", f"{self._done:,} {self._unit}"
        if self._total is not None:
            left = f", {(self._total - self._done) / rate:,.0f} s left" if rate and self._done < self._total else ""
            share = 100 * self._done / max(1, self._total)
            done = f"{self._done:,} of {self._total:,} {self._unit} ({share:.0f} %)"
        self._file.write(f"{self._label}: {done}, {rate:,.0f} {self._unit}/s{left}\n")
        self._file.flush()


class Bar(Progress):
    """Progress as a bar with rows a second and the time left; arguments as for `progress_on`."""

    def __init__(self, label: str, file: IO[str], unit: str = "rows") -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._label = label
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(f"{{task.fields[rate]}} {unit}/s"),
            TimeRemainingColumn(),
            console=Console(file=file),
        )

    def begin(self, total: int | None, done: int) -> None:
        self._task = self._bar.add_task(self._label, total=total, completed=done, rate="-")
        self._bar.start()

    def advance(self, rows: int) -> None:
        self._bar.update(self._task, advance=rows)
        (task,) = self._bar.tasks
        self._bar.update(self._task, rate=f"{task.speed:,.0f}" if task.speed else "-")  # of the last seconds

    def end(self) -> None:
        self._bar.stop()


def progress_on(file: IO[str] | None = None, label: str = "length index", unit: str = "rows") -> Progress:
    """Returns a bar if the file is a terminal, else lines.

    Args:
        file: Where progress is shown; standard error if not given.
        label: What is done.
        unit: What is counted.
    """
    file = sys.stderr if file is None else file
    return Bar(label, file, unit) if file.isatty() else Lines(label, file, unit)
