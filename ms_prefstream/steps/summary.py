"""What a stream is, in at most eight lines: for the log when it is made, and for `print`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ms_prefstream.errors import printable
from ms_prefstream.lines import COLUMNS, counted, cut
from ms_prefstream.load.loader import Recipe
from ms_prefstream.report.findings import NO_TEMPLATE
from ms_prefstream.sources.mix import Mix
from ms_prefstream.steps.data import StreamData
from ms_prefstream.steps.open import AnySteps, StepOpener
from ms_prefstream.tasks import Task
from ms_prefstream.tasks.base import stated_options

_MOST_WIDTHS = 8
_MOST_WARNINGS = 3


def summary(opener: StepOpener, steps: AnySteps) -> list[str]:
    """Returns lines about data, tokens, steps and rank."""
    data, unit = opener.data, opener.batching.unit
    size = opener.batching.batch_size
    size = getattr(opener.batching, "max_tokens", None) if size is None else size
    batch = f"{size:,} {unit} a step"
    widths = [str(width) for width in opener.widths]
    if len(widths) > _MOST_WIDTHS:
        widths = [*widths[:2], "…", widths[-1], f"({len(opener.widths)})"]
    shapes = f"width{'s' * (len(widths) > 1)} {' '.join(widths)}"
    padding = f"padding {100 * data.report.padding:.1f} %" if data.report.cells else ""
    index = (
        "no length index"
        if data.index is None
        else f"length index {cut(os.path.basename(data.index.path), COLUMNS // 2)}"
    )
    ranks = f"rank {opener.ranks.rank} of {opener.ranks.world}"
    order = f"seed {opener.order.seed}" if opener.order.shuffle else "source order"
    if opener.order.order_by is not None:
        order = f"ordered by {opener.order.order_by}"
    return [
        *data_lines(data),
        _line("", batch, f"{counted(steps.steps_per_epoch, 'step')} an epoch", shapes, padding),
        _line("", ranks, order, index),
    ]


def data_lines(data: StreamData) -> list[str]:
    """Returns three lines: the rows, how they become tokens, and the limits of the task."""
    task, report = data.task, data.report
    lost = []
    if report.truncated:
        lost.append(f"{100 * report.truncated / report.read:.1f} % of rows cut")
        questions = f"{100 * report.question_cut / report.read:.1f} % of rows without their question"
        lost.append(questions if report.question_cut else "no question lost")
    carried = ", ".join(f"{name} {dtype}" for name, dtype in data.carried.items())
    return [
        rows_line(task, data.source, report.rows, data.look.formats),
        *encoding_lines(data.recipe, report.tokenizer),
        _line("", *stated_options(task), f"carries {carried}" if carried else "", *lost),
    ]


def rows_line(task: Task, source: Any, rows: int | None, formats: Sequence[str]) -> str:
    """Returns the first line: task, source, number of rows and formats."""
    count = "" if rows is None else counted(rows)
    name = f"mix of {', '.join(map(_last, source.parts))}" if isinstance(source, Mix) else _last(source)
    return _line(type(task).__name__, cut(name, COLUMNS // 2), count, ", ".join(formats))


def _last(source: Any) -> str:
    """Returns the last component of the name of a source or of a part of a mix."""
    return os.path.basename(str(source.name).rstrip("/")) or str(source.name)


def encoding_lines(recipe: Recipe, of_cache: str = "") -> list[str]:
    """Returns the line about `encoding_parts`."""
    return [_line("", *encoding_parts(recipe, of_cache))]


def encoding_parts(recipe: Recipe, of_cache: str = "") -> list[str]:
    """Returns what makes tokens of text: tokenizer, backend, boundary and template.

    Args:
        recipe: What rows become.
        of_cache: What is known about the tokenizer of a cache.
    """
    tokenizer = recipe.tokenizer
    if tokenizer is None:
        of_cache = " ·".join(of_cache.split("\n "))
        return [f"tokenizer {of_cache}" if recipe.ready and of_cache else "rows are tokenized already"]
    template = NO_TEMPLATE if recipe.template is None else "chat template"
    return [os.path.basename(tokenizer.name.rstrip("/")), tokenizer.backend, f"boundary {recipe.boundary}", template]


def warning_lines(data: StreamData) -> list[str]:
    """Returns the first warnings, each on a line."""
    warnings = data.report.warnings
    lines = [_short(f"  !  {one}") for one in warnings[:_MOST_WARNINGS]]
    if len(warnings) > _MOST_WARNINGS:
        lines[-1] = f"  !  and {len(warnings) - _MOST_WARNINGS + 1} more, see stream.report"
    return lines


def _line(head: str, *parts: Any) -> str:
    return _short(f"{head:<4} {' · '.join(filter(None, parts))}".rstrip())


def _short(line: str) -> str:
    return cut(printable(line.replace("\n", " "), most=None), COLUMNS)
