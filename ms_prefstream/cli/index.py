"""The command `index`."""

from __future__ import annotations

from typing import Any

import click

from ms_prefstream.cli.options import source_argument, stream_options
from ms_prefstream.cli.terminal import show


@click.command()
@source_argument
@click.option("--out", type=click.Path(), help="Where the index is written; beside SOURCE if that is one file.")
@stream_options
def index(source: tuple[str, ...], out: str | None, **options: Any) -> None:
    """Measure every row of SOURCE once and write its length index."""
    from ms_prefstream.cli.building import make_batching, make_rows

    make_batching(options)  # refuses options that contradict each other; batches change no length
    found = make_rows(source, options, None, options["workers"]).build_index(out, progress=True)
    show(f"{found.usable:,} of {found.rows:,} rows can be used; written to {found.path}")
    show(found)
