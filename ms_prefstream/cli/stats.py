"""The command `stats`."""

from __future__ import annotations

import json
from typing import Any

import click

from ms_prefstream.cli.options import one_or_list, source_argument, styled
from ms_prefstream.html import SAMPLES
from ms_prefstream.progress import progress_on
from ms_prefstream.sources import open_source
from ms_prefstream.stats.run import LIMITS
from ms_prefstream.stats.run import stats as count
from ms_prefstream.tasks import RLHF, TASKS, Task

_COLOURS = {"prompt": "bright_black", "chosen": "green", "rejected": "red", "attention": "yellow"}


def _object(context: click.Context, parameter: click.Parameter, text: str | None) -> dict[str, Any] | None:
    """Returns the object that an option states as JSON."""
    try:
        found = None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        found = text
    if found is None or isinstance(found, dict):
        return found
    raise click.BadParameter(f'{text!r} is no JSON object; expected such as \'{{"prompt": "question"}}\'.')


@click.command()
@source_argument
@click.option("--tokenizer", help="Directory, tokenizer.json, .model file or 'bytes'; counts tokens and padding too.")
@click.option("--task", type=click.Choice(list(TASKS)), help="What rows become, with --max-length; dpo for pairs.")
@click.option("--max-length", type=int, help="Tokens of one side. Padding is computed with it.")
@click.option("--format", "format_", default="auto", show_default=True, help="Preset that reads the rows.")
@click.option("--fields", metavar="JSON", callback=_object, help="Standard name -> the row's field.")
@click.option("--template", default="auto", show_default=True, help="auto, chat, none, Jinja text or .jinja file.")
@click.option("--template-variables", metavar="JSON", callback=_object, help="Variables of the template.")
@click.option("--against", type=click.Path(), multiple=True, help="Count prompts shared with this file, too.")
@click.option("--limit", "limits", type=int, multiple=True, help="Count rows cut at so many tokens; may be repeated.")
@click.option("--batch-size", type=int, default=8, show_default=True, help="Rows of a step, for padding and steps.")
@click.option("--workers", "--processes", "workers", type=int, default=0, show_default=True, help="Processes.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--html", type=click.Path(), help="Write a report with a page of samples to this file, too.")
@click.option("--samples", type=click.IntRange(min=1), default=SAMPLES, show_default=True, help="Rows of that page.")
def stats(source: tuple[str, ...], as_json: bool, html: str | None, samples: int, **options: Any) -> None:
    """Count what the rows of SOURCE are: lengths, duplicates, drops, padding. "-" reads standard input.

    Example: ms-prefstream stats train.jsonl --tokenizer Qwen2.5-7B-Instruct --against eval.jsonl
    """
    template, tokenizer = options["template"], options["tokenizer"]
    again = None if "-" in source else one_or_list(source)  # standard input is consumed
    if html is not None:
        from ms_prefstream.html.page import check_report

        check_report(html, None if again is None else open_source(again))
    encoding = {
        "tokenizer": None if tokenizer is None or tokenizer.lower() == "none" else tokenizer,
        "task": _task(options["task"], options["max_length"]),
        "format": options["format_"],
        "fields": options["fields"],
        "template": None if template.lower() == "none" else template,
        "template_variables": options["template_variables"],
    }
    found = count(
        one_or_list(source),
        **encoding,
        against=one_or_list(options["against"]) if options["against"] else None,
        limits=options["limits"] or LIMITS,
        batch_size=options["batch_size"],
        workers=options["workers"],
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
    if max_length is None:
        if name is not None:
            raise click.UsageError(f"--task {name} needs --max-length: a number of tokens.")
        return None
    if name == RLHF.name:
        return RLHF(max(1, max_length - 1), max_length)
    task: Task = TASKS[name or "dpo"](max_length)
    return task


def _safe_json(value: Any) -> str:
    """Returns JSON whose text is readable, with escapes for what could command a terminal."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    return "".join(one if one == "\n" or one.isprintable() else json.dumps(one)[1:-1] for one in text)
