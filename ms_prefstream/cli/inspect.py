"""The command `inspect`: rows, or the batch of a step, as the trainer gets them."""

from __future__ import annotations

import functools
from typing import Any

import click
import cloup

from ms_prefstream.cli.options import command, run_group, source_argument, stream_options, verbose_option
from ms_prefstream.cli.terminal import show, with_flags
from ms_prefstream.cli.values import Count
from ms_prefstream.errors import OptionError
from ms_prefstream.html import SAMPLES

_ROWS = 3


@command(
    example="""
ms-prefstream inspect train.jsonl --task dpo --max-length 1024 --tokenizer Qwen2.5 --row 17 --tokens
ms-prefstream inspect train.jsonl --task dpo --max-length 1024 --tokenizer Qwen2.5 --html report.html
"""
)
@source_argument
@stream_options
@run_group(
    cloup.option("--row", "numbers", type=int, multiple=True, help="Number of a row, from 0; may be repeated."),
    cloup.option("--rows", type=Count(min=1), help=f"Or so many first rows ({_ROWS} if nothing is given)."),
    cloup.option("--step", type=click.IntRange(min=0), help="Or the batch of this step, counted over all epochs."),
    cloup.option("--rank", type=click.IntRange(min=0), help="With --step and --num-shards: of this rank."),
    cloup.option("--index", help="With --step: auto (default), build, none, or the path of a length index."),
    cloup.option(
        "--tokens", "with_tokens", is_flag=True, help="Each token with its id; a bar under those in the loss."
    ),
    cloup.option("--full", is_flag=True, help="Whole texts; long ones are shortened otherwise."),
    cloup.option("--html", type=click.Path(), help=f"Write a report to this file ({SAMPLES:,} rows if not given)."),
    verbose_option,
)
def inspect(
    source: tuple[Any, ...],
    numbers: tuple[int, ...],
    rows: int | None,
    step: int | None,
    rank: int | None,
    with_tokens: bool,
    full: bool,
    html: str | None,
    **options: Any,
) -> None:
    """Show what rows of SOURCE become, or why they are dropped.

    With --step it shows the batch of a step: each row of its arrays to scale.
    """
    from ms_prefstream.cli.building import make_encoding, make_stream, source_of
    from ms_prefstream.inspection import rows_of, steps
    from ms_prefstream.inspection.terminal import View, console, row_lines, step_lines, write  # imports rich

    if html is not None:
        if step is not None:
            raise OptionError("--html writes a report of rows. Leave --step out, or --html.")
        _report(html, source, numbers or rows or SAMPLES, with_tokens, options)
        return
    out = console()
    view = View(out, full=full, tokens=with_tokens, said=with_flags)
    if step is None:
        if rank is not None:
            raise OptionError("--rank is the rank whose batch is shown. Give --step as well, or leave it out.")
        wanted, encoding = numbers or rows or _ROWS, make_encoding(options)
        found = rows_of(source_of(source, options), wanted, encoding, with_tokens=with_tokens)
        for row in found:
            write(out, row_lines(row, view))
        return
    if numbers or rows is not None:
        raise OptionError("--step shows the rows of a batch. Leave --row and --rows out, or --step.")
    if rank is not None:
        if options["shard_id"] is not None:
            raise OptionError("--rank and --shard-id are the same. Give only one of them.")
        options["shard_id"] = rank
    stream = make_stream(source, options)
    write(out, step_lines(steps.step_of(stream, step), view, functools.partial(steps.parts_of, stream)))


def _report(
    path: str, source: tuple[Any, ...], rows: int | tuple[int, ...], with_tokens: bool, options: dict[str, Any]
) -> None:
    from ms_prefstream.cli.building import make_encoding, source_of
    from ms_prefstream.html.build import inspect_report  # imports jinja2's environment and the template
    from ms_prefstream.lines import counted
    from ms_prefstream.progress import progress_on

    encoding = make_encoding(options)
    progress = progress_on(label="report")
    found = inspect_report(path, source_of(source, options), rows, encoding, with_tokens=with_tokens, progress=progress)
    show(f"{counted(found.rows)}; written to {path}")
