"""The commands `cache` and `verify`."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from ms_prefstream.cache.parts import LAYOUTS, ROWS_PER_PART
from ms_prefstream.cache.verify import verify
from ms_prefstream.cache.write import ENGINES, write_cache
from ms_prefstream.cli.options import make_rows, row_options
from ms_prefstream.mindrecord.manifest import Manifest
from ms_prefstream.progress import progress_on


def add_cache_commands(group: click.Group) -> None:
    """Add both commands to the command line."""
    group.command("cache")(_cache)
    group.command("verify")(_verify)


@click.argument("source", nargs=-1, required=True)
@click.argument("out", type=click.Path())
@row_options
@click.option("--layout", default="ragged", show_default=True, help=", ".join(LAYOUTS) + ".")
@click.option("--length", type=int, help="Columns of mindrlhf and mindformers; the task's length if not given.")
@click.option("--rows-per-part", type=int, default=ROWS_PER_PART, show_default=True, help="Rows of SOURCE for a file.")
@click.option("--overwrite", is_flag=True, help="Replace the cache at OUT once the new one is whole.")
@click.option("--workers", type=int, help="Processes that tokenise and write; one for each core if not given.")
@click.option("--engine", default="local", show_default=True, help=", ".join(ENGINES) + ".")
@click.option("--ray-address", help="A running Ray cluster; one on this machine if not given.")
def _cache(
    source: tuple[str, ...],
    out: str,
    layout: str,
    length: int | None,
    rows_per_part: int,
    overwrite: bool,
    workers: int | None,
    engine: str,
    ray_address: str | None,
    **options: Any,
) -> None:
    """Write the samples of SOURCE to MindRecord files in the folder OUT.

    An interrupted run goes on when the same command is given again.
    """
    if workers is None:
        workers = _cores()
    options["layout"] = options["task_layout"]  # --layout is that of the files
    manifest = write_cache(
        make_rows(source, options, length, workers if engine == "local" else 0),
        out,
        layout=layout,
        overwrite=overwrite,
        rows_per_part=rows_per_part,
        progress=True,
        workers=workers,
        engine=engine,
        ray_address=ray_address,
    )
    click.echo(summary(out, manifest))


@click.argument("out", type=click.Path())
def _verify(out: str) -> None:
    """Read every byte of the cache OUT and say which files are damaged, and which do not belong there.

    Foreign files that readers of MindRecord files would read are an error, others are only named.
    """
    found = verify(out, progress_on(sys.stderr, "verify", "bytes"))
    for one in found:
        if one.problem or not one.belongs:
            said = one.problem or "it does not belong to the cache; no reader heeds it"
            click.echo(f"{os.path.join(out, one.name)}: {said}")
    whole = [not one.problem for one in found if one.belongs]
    click.echo(f"{sum(whole)} of {len(whole)} files are whole")
    if any(one.problem for one in found):
        sys.exit(1)


def summary(out: str, manifest: Manifest) -> str:
    """What was written, for people."""
    size = sum(note.bytes for note in manifest.files.values())
    lines = [
        f"{manifest.rows:,} of {manifest.source_rows:,} rows written to {out}, {size / 1e6:,.1f} MB "
        f"({size / 1e3 / manifest.rows:,.2f} MB a thousand rows)"
    ]
    for reason, entry in manifest.dropped.items():
        lines.append(f"  {reason}: {entry['rows']:,} dropped, first at {', '.join(entry['first'])}")
    lines += [f"{name.replace('_', ' ')}: {count:,}" for name, count in manifest.notes.items() if count]
    return "\n".join(lines)


def _cores() -> int:
    """Cores that this process may use; 0 for a single one, where another process would only cost."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return count if count > 1 else 0
