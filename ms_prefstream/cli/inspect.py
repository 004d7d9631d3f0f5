"""The command `inspect`."""

from __future__ import annotations

from typing import Any

import click

from ms_prefstream.cli.options import encoding_options, source_argument
from ms_prefstream.cli.terminal import show


@click.command()
@source_argument
@click.option("--row", "numbers", type=int, multiple=True, help="Number of a row, from 0; may be repeated.")
@click.option("--rows", type=click.IntRange(min=1), default=3, show_default=True, help="Or so many first rows.")
@encoding_options
def inspect(source: tuple[str, ...], numbers: tuple[int, ...], rows: int, **options: Any) -> None:
    """Show what rows of SOURCE become: prompt, what is trained on, lengths; or why they are dropped."""
    from ms_prefstream.cli.building import make_encoding, one_or_list
    from ms_prefstream.inspection import inspect as inspect_rows

    for text in inspect_rows(one_or_list(source), numbers or rows, make_encoding(options)):
        show(text)
