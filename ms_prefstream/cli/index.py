"""The command `index`."""

from __future__ import annotations

from typing import Any

import click
import cloup

from ms_prefstream.cli.options import command, index_options, run_group, source_argument, verbose_option
from ms_prefstream.cli.terminal import show


@command(
    example="""
ms-prefstream index train.jsonl --task dpo --max-length 1024 --tokenizer Qwen2.5
ms-prefstream index --config run.yaml --workers 8
"""
)
@source_argument
@index_options
@run_group(
    cloup.option("--out", type=click.Path(), help="Where the index is written; beside SOURCE if that is one file."),
    cloup.option("--workers", type=int, default=0, show_default=True, help="Processes that measure; 0 for none."),
    verbose_option,
)
def index(source: tuple[str, ...], out: str | None, **options: Any) -> None:
    """Measure every row of SOURCE and write its length index."""
    from ms_prefstream.cli.building import make_rows

    found = make_rows(source, options, None, options["workers"]).build_index(out, progress=True)
    show(f"{found.usable:,} of {found.rows:,} rows can be used; written to {found.path}")
    show(found)
