"""The command `cache`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import cloup

from ms_prefstream.cli.options import (
    ENGINE,
    FILE_LAYOUTS,
    PART_RANGE,
    TASK_LAYOUTS,
    command,
    row_options,
    run_group,
    source_argument,
    verbose_option,
)
from ms_prefstream.cli.terminal import show, with_flags
from ms_prefstream.cli.values import FileLayout

if TYPE_CHECKING:
    from ms_prefstream.mindrecord.manifest import Manifest


@command(
    example="""
ms-prefstream cache train.jsonl cache/ --task dpo --max-length 1024 --tokenizer Qwen2.5
ms-prefstream cache train.jsonl mr/ --task dpo --max-length 1024 --tokenizer Qwen2.5 --layout mindrlhf
ms-prefstream cache train.jsonl cache/ --task dpo --max-length 1024 --tokenizer Qwen2.5 --part-range 3/8
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
    cloup.option("--rows-per-part", type=int, help="Rows of SOURCE for a file.  [default: 8192]"),
    cloup.option("--mb-per-part", type=float, help="Size of a file instead, by that of the first 1,000 rows."),
    cloup.option("--overwrite", is_flag=True, help="Replace the cache at OUT once the new one is complete."),
)
@run_group(
    cloup.option("--workers", type=int, help="Processes that tokenise and write; one for each core if not given."),
    *ENGINE,
    PART_RANGE,
    verbose_option,
)
def cache(source: tuple[Any, ...], out: str, length: int | None, workers: int | None, **options: Any) -> None:
    """Write samples of SOURCE to files in OUT: MindRecord files, or those of MindSpeed.

    Give the same command again to resume an interrupted run. Several hosts share the work with --part-range; `merge`
    completes it.
    """
    from ms_prefstream.cache.write import write_cache
    from ms_prefstream.checks import cores
    from ms_prefstream.cli.building import make_rows

    if workers is None:
        workers = cores() if cores() > 1 else 0  # a single core has no use for a worker process
    names = ("overwrite", "rows_per_part", "mb_per_part", "part_range", "engine", "ray_address")
    given = {name: options[name] for name in (*names, "storage_options", "cache_dir")}
    rows = make_rows(source, options, length, workers if options["engine"] == "local" else 0)
    manifest = write_cache(rows, out, layout=options["file_layout"], workers=workers, progress=True, **given)
    show_written(manifest, out, options["part_range"])


def show_written(manifest: Manifest, out: str, part_range: tuple[int, int] | None = None) -> None:
    """Shows what was written to a cache: all of it, or the parts of a range."""
    from ms_prefstream.report.report import NOTE_LABELS
    from ms_prefstream.sources.store import without_secrets

    size = sum(note.bytes for note in manifest.files.values())
    each = f" ({size / 1e3 / manifest.rows:,.2f} MB a thousand rows)" if manifest.rows else ""
    out = without_secrets(out)
    where = out if part_range is None else f"part range {part_range[0]}/{part_range[1]} of {out}"
    show(f"{manifest.rows:,} of {manifest.source_rows:,} rows written to {where}, {size / 1e6:,.1f} MB{each}")
    for reason, entry in manifest.dropped.items():
        show(f"  {reason}: {entry['rows']:,} dropped, first at {', '.join(entry['first'])}")
    for name, count in manifest.notes.items():
        if count:
            show(f"  {with_flags(NOTE_LABELS.get(name, name))}: {count:,}")
    if part_range is not None:
        show(f"When all {part_range[1]} ranges are written: ms-prefstream merge {out}")
