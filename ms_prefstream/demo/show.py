"""Output of the demo: a live progress bar on a terminal, plain lines elsewhere, and a table at the end."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

_LINES = 6  # about as many plain lines for a phase


class Bar(Protocol):
    """Display of a phase of training."""

    def advance(self, loss: float, accuracy: float) -> None:
        """Shows the figures of a finished step."""


@contextmanager
def progress(console: Console, title: str, steps: int, *, smooth: int = 10) -> Iterator[Bar]:
    """Shows the progress of a phase of training.

    Args:
        console: Where to print. A bar is drawn only on a terminal.
        title: The name of the phase.
        steps: Steps of the phase.
        smooth: How many of the last steps the shown loss and accuracy are means of.

    Yields:
        The display; call its `advance` after every step.
    """
    if not console.is_terminal:
        yield _Lines(console, title, steps, smooth)
        return
    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as live:
        yield _Live(live, title, steps, smooth)


class _Means:
    def __init__(self, smooth: int) -> None:
        self._recent: deque[tuple[float, float]] = deque(maxlen=smooth)

    def figures(self, loss: float, accuracy: float) -> str:
        self._recent.append((loss, accuracy))
        count = len(self._recent)
        mean_loss = sum(one for one, _ in self._recent) / count
        mean_accuracy = sum(one for _, one in self._recent) / count
        return f"loss {mean_loss:.3f}  pair accuracy {100 * mean_accuracy:3.0f} %"


class _Live:
    def __init__(self, live: Progress, title: str, steps: int, smooth: int) -> None:
        self._live = live
        self._means = _Means(smooth)
        self._task = live.add_task(title, total=steps, figures="compiling")

    def advance(self, loss: float, accuracy: float) -> None:
        self._live.update(self._task, advance=1, figures=self._means.figures(loss, accuracy))


class _Lines:
    def __init__(self, console: Console, title: str, steps: int, smooth: int) -> None:
        self._console, self._title, self._steps = console, title, steps
        self._means = _Means(smooth)
        self._done = 0

    def advance(self, loss: float, accuracy: float) -> None:
        figures = self._means.figures(loss, accuracy)
        self._done += 1
        due = self._done * _LINES // self._steps > (self._done - 1) * _LINES // self._steps
        if due or self._done == 1:
            line = f"{self._title}: step {self._done}/{self._steps}  {figures}"
            self._console.print(line, highlight=False, soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The figures of a finished demo.

    Attributes:
        pairs: Pairs in the data.
        tokens: Tokens of all sequences that were trained on, without padding.
        padding: Share of padding in the batches that were trained on, 0 to 1.
        padding_to_max: The share it would have been with every row padded to `max_length`.
        max_length: The longest row allowed.
        shapes: (rows, columns) of the batches that occurred.
        seconds: From start to end, loading and compilation included.
        accuracy: Pair accuracy of the reward model on its training pairs, before and after.
        reward_loss: Its loss, first step and mean of the last epoch.
        dpo_loss: DPO's loss, first step and mean of the last epoch.
    """

    pairs: int
    tokens: int
    padding: float
    padding_to_max: float
    max_length: int
    shapes: Sequence[tuple[int, int]]
    seconds: float
    accuracy: tuple[float, float]
    reward_loss: tuple[float, float]
    dpo_loss: tuple[float, float]


def summary_table(summary: Summary) -> Table:
    """Returns the closing table."""
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    rows = (
        ("pairs", f"{summary.pairs:,}"),
        ("tokens trained", f"{summary.tokens:,} in {summary.seconds:.0f} s"),
        (
            "padding",
            f"{_percent(summary.padding)}; {_percent(summary.padding_to_max)} if padded to {summary.max_length}",
        ),
        ("shapes used", ", ".join(f"{rows} x {columns}" for rows, columns in sorted(set(summary.shapes)))),
        ("reward loss", f"{summary.reward_loss[0]:.3f} -> {summary.reward_loss[1]:.3f}"),
        ("pair accuracy", f"{_percent(summary.accuracy[0])} -> {_percent(summary.accuracy[1])} on the training pairs"),
        ("DPO loss", f"{summary.dpo_loss[0]:.3f} -> {summary.dpo_loss[1]:.3f} (0.693 = no preference)"),
    )
    for row in rows:
        table.add_row(*row)
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
