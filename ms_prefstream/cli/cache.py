"""The command `cache`."""

from __future__ import annotations

import os
from typing import Any

import click
import cloup

from ms_prefstream.cli.options import (
    FILE_LAYOUTS,
    TASK_LAYOUTS,
    command,
    row_options,
    run_group,
    source_argument,
    verbose_option,
)
from ms_prefstream.cli.terminal import show, with_flags
from ms_prefstream.cli.values import FileLayout


@command(
    example="""
ms-prefstream cache train.jsonl cache/ --task dpo --max-length 1024 --tokenizer Qwen2.5
ms-prefstream cache train.jsonl mr/ --task dpo --max-length 1024 --tokenizer Qwen2.5 --layout mindrlhf
"""
)
@source_argument
@cloup.argument("out", type=click.Path())
@row_options
@cloup.option_group(
    "Files",
    cloup.option(
        "--layout",
        "file_layout",
        type=FileLayout(FILE_LAYOUTS, TASK_LAYOUTS),
        default="ragged",
        show_default=True,
        help="Layout of the files.",
    ),
    cloup.option("--length", type=int, help="Columns of mindrlhf and mindformers; the task's length if not given."),
    cloup.option("--rows-per-part", type=int, default=8192, show_default=True, help="Rows of SOURCE for a file."),
    cloup.option("--overwrite", is_flag=True, help="Replace the cache at OUT once the new one is complete."),
)
@run_group(
    cloup.option("--workers", type=int, help="Processes that tokenise and write; one for each core if not given."),
    cloup.option("--engine", type=click.Choice(("local", "ray")), default="local", show_default=True),
    cloup.option("--ray-address", help="A running Ray cluster; one on this machine if not given."),
    verbose_option,
)
def cache(source: tuple[Any, ...], out: str, length: int | None, workers: int | None, **options: Any) -> None:
    """Write samples of SOURCE to MindRecord files in OUT.

    Give the same command again to resume an interrupted run.
    """
    from ms_prefstream.cache.write import write_cache
    from ms_prefstream.cli.building import make_rows
    from ms_prefstream.report.report import NOTE_LABELS
    from ms_prefstream.sources.store import without_secrets

    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = cores if cores > 1 else 0  # a single core has no use for a worker process
    given = {
        name: options[name]
        for name in ("overwrite", "rows_per_part", "engine", "ray_address", "storage_options", "cache_dir")
    }
    rows = make_rows(source, options, length, workers if options["engine"] == "local" else 0)
    manifest = write_cache(rows, out, layout=options["file_layout"], workers=workers, progress=True, **given)
    size = sum(note.bytes for note in manifest.files.values())
    show(
        f"{manifest.rows:,} of {manifest.source_rows:,} rows written to {without_secrets(out)}, {size / 1e6:,.1f} MB "
        f"({size / 1e3 / manifest.rows:,.2f} MB a thousand rows)"
    )
    for reason, entry in manifest.dropped.items():
        show(f"  {reason}: {entry['rows']:,} dropped, first at {', '.join(entry['first'])}")
    for name, count in manifest.notes.items():
        if count:
            show(f"  {with_flags(NOTE_LABELS.get(name, name))}: {count:,}")
