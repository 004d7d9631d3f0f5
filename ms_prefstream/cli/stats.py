"""The command `stats`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click
import cloup

from ms_prefstream.cli.options import CARRY, ENGINE, FORMAT, TASKS, TEMPLATE, command, run_group, source_argument
from ms_prefstream.cli.terminal import styled
from ms_prefstream.cli.values import Count, Suggested
from ms_prefstream.html import SAMPLES

if TYPE_CHECKING:
    from ms_prefstream.tasks import Task

_COLOURS = {"prompt": "bright_black", "chosen": "green", "rejected": "red", "attention": "yellow"}


@command(
    example="""
ms-prefstream stats train.jsonl --tokenizer Qwen2.5 --against eval.jsonl
zcat train.jsonl.gz | ms-prefstream stats - --json
"""
)
@source_argument
@cloup.option_group(
    "Task",
    cloup.option("--task", type=click.Choice(TASKS), help="What rows become, with --max-length; dpo for pairs."),
    cloup.option("--max-length", type=int, help="Tokens of one side. Padding is computed with it."),
)
@cloup.option_group(
    "Rows",
    *FORMAT,
    CARRY,
    cloup.option("--against", type=click.Path(), multiple=True, help="Count prompts shared with this file, too."),
)
@cloup.option_group(
    "Tokens",
    cloup.option(
        "--tokenizer",
        type=Suggested("bytes", "none"),
        help="Directory, tokenizer.json, .model file or 'bytes'; counts tokens and padding too.",
    ),
    *TEMPLATE,
    cloup.option("--limit", "limits", type=int, multiple=True, help="Count rows cut at so many tokens; repeatable."),
)
@run_group(
    cloup.option("--batch-size", type=int, default=8, show_default=True, help="Rows of a step, for padding and steps."),
    cloup.option("--workers", "--processes", "workers", type=int, default=0, show_default=True, help="Processes."),
    *ENGINE,
    cloup.option("--json", "as_json", is_flag=True, help="Print JSON."),
    cloup.option("--html", type=click.Path(), help="Write a report with a page of samples to this file, too."),
    cloup.option("--samples", type=Count(min=1), default=SAMPLES, show_default=True, help="Rows of that page."),
)
def stats(source: tuple[Any, ...], as_json: bool, html: str | None, samples: int, **options: Any) -> None:
    """Count lengths, duplicates, drops and padding of SOURCE.

    "-" reads standard input.
    """
    from ms_prefstream.cli.building import one_or_list, or_none, source_of
    from ms_prefstream.progress import progress_on
    from ms_prefstream.sources import open_source
    from ms_prefstream.stats.run import LIMITS
    from ms_prefstream.stats.run import stats as count

    rows = source_of(source, options)
    again = None if "-" in source else rows  # standard input is consumed
    if html is not None:
        from ms_prefstream.html.page import check_report

        check_report(html, None if again is None else open_source(again))
    encoding = {
        "tokenizer": or_none(options["tokenizer"]),
        "task": _task(options["task"], options["max_length"]),
        "format": options["format_"],
        "fields": options["fields"],
        "template": or_none(options["template"]),
        "template_variables": options["template_variables"],
        "carry": options["carry"],
    }
    if options["template_limit_s"] is not None:
        encoding["template_limit_s"] = options["template_limit_s"]
    found = count(
        rows,
        **encoding,
        against=one_or_list(options["against"], options) if options["against"] else None,
        limits=options["limits"] or LIMITS,
        batch_size=options["batch_size"],
        workers=options["workers"],
        engine=options["engine"],
        ray_address=options["ray_address"],
        progress=True,
    )
    if html is not None:
        from ms_prefstream.html.build import stats_report

        stats_report(html, found.to_dict(), again, encoding, rows=samples, progress=progress_on(label="report"))
    if as_json:
        click.echo(_safe_json(found.to_dict()))
        return
    for line in found.lines(flags=True):
        click.echo("".join(styled(text, _COLOURS[style]) if style else text for style, text in line).rstrip())


def _task(name: str | None, max_length: int | None) -> Task | None:
    """Returns the task that the options describe; None without them."""
    from ms_prefstream.checks import LONGEST, whole_number
    from ms_prefstream.tasks import RLHF, TASKS

    if max_length is None:
        if name is not None:
            raise click.UsageError(f"--task {name} needs --max-length: a number of tokens.")
        return None
    whole_number("max_length", max_length, 2, LONGEST)
    if name == RLHF.name:
        return RLHF(max_length - 1, max_length)
    task: Task = TASKS[name or "dpo"](max_length)
    return task


def _safe_json(value: Any) -> str:
    """Returns JSON whose text is readable, with escapes for what could command a terminal."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    return "".join(one if one == "\n" or one.isprintable() else json.dumps(one)[1:-1] for one in text)
