"""The command `formats`."""

from __future__ import annotations

import sys
from collections import Counter
from typing import cast

import click
import cloup

from ms_prefstream.cli.options import command
from ms_prefstream.cli.terminal import show, styled
from ms_prefstream.cli.values import Count, JsonObject, SourcePath
from ms_prefstream.errors import RowError, printable


@command(
    example="""
ms-prefstream formats --list
ms-prefstream formats --detect train.jsonl
"""
)
@cloup.option("--list", "listed", is_flag=True, help="List the presets and the fields that each of them reads.")
@cloup.option("--detect", metavar="FILE", type=SourcePath(), help="Say which preset reads the rows of FILE.")
@cloup.option("--rows", type=Count(min=1), default=1000, show_default=True, help="First rows of FILE.")
@cloup.option("--fields", type=JsonObject(), help='Standard name -> the row\'s field: {"prompt": "question"}.')
def formats(listed: bool, detect: str | None, rows: int, fields: dict[str, str] | None) -> None:
    """List the presets that read rows, or find the one for a file.

    The exit code is 1 if there are rows that no preset reads.
    """
    if not listed and detect is None:
        raise click.UsageError("Give --list or --detect FILE.")
    if listed:
        _list()
    if detect is not None and not _detect(detect, rows, fields):
        sys.exit(1)


def _list() -> None:
    from ms_prefstream.formats import PRESETS

    for name, preset in sorted(PRESETS.items()):
        summary = (preset.factory.__doc__ or "").partition("\n")[0].replace("`", "")
        show(f"{name:15}{summary}")
        fields = dict.fromkeys(", ".join(pattern.fields) for pattern in preset.patterns)
        show(" " * 15 + ("; ".join(fields) if fields else "only by name: --format " + name))


def _detect(path: str, rows: int, fields: dict[str, str] | None) -> bool:
    """Prints the presets of the first rows, and returns whether each row has one."""
    from ms_prefstream.formats.reader import RowReader
    from ms_prefstream.lines import counted
    from ms_prefstream.load.records import formats_of
    from ms_prefstream.sources import open_source
    from ms_prefstream.sources.cached import only_caches
    from ms_prefstream.steps.look import first_rows

    source = open_source(path)
    if only_caches(source):
        show(f"{source.name} · a cache, whose rows are tokenized: no format reads it. Pass it to mps.stream as it is.")
        return True
    readers = formats_of(source, "auto", fields)
    found: Counter[tuple[str, tuple[str, ...]]] = Counter()
    problems: dict[str, list[str]] = {}
    read = 0
    for origin, raw, record in first_rows(source, readers, rows):
        read += 1
        try:
            if isinstance(record, RowError):
                raise record
            found[cast(RowReader, readers[0]).preset_of(raw), tuple(raw)] += 1
        except RowError as error:
            problems.setdefault(str(error.reason), []).append(f"{origin}: {error}")
    show(f"{source.name} · {counted(read)} read")
    for (name, keys), count in found.most_common():
        _line("✓", "green", f"{name} · {counted(count)} with {', '.join(keys)} · --format {name}")
    for reason, texts in problems.items():
        _line("✗", "red", f"{reason} · {counted(len(texts))}, first: {texts[0]}")
    return not problems


def _line(mark: str, colour: str, text: str) -> None:
    click.echo(f"{styled(mark, colour)} {printable(text, most=600)}")
