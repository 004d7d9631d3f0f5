"""The command `inspect`."""

from __future__ import annotations

from typing import Any

import click
import cloup

from ms_prefstream.cli.options import command, encoding_options, run_group, source_argument
from ms_prefstream.cli.terminal import show


@command(
    example="""
ms-prefstream inspect train.jsonl --task dpo --max-length 1024 --tokenizer Qwen2.5 --row 17
"""
)
@source_argument
@encoding_options
@run_group(
    cloup.option("--row", "numbers", type=int, multiple=True, help="Number of a row, from 0; may be repeated."),
    cloup.option("--rows", type=click.IntRange(min=1), default=3, show_default=True, help="Or so many first rows."),
)
def inspect(source: tuple[str, ...], numbers: tuple[int, ...], rows: int, **options: Any) -> None:
    """Show what rows of SOURCE become, or why they are dropped."""
    from ms_prefstream.cli.building import make_encoding, one_or_list
    from ms_prefstream.inspection import inspect as inspect_rows

    for text in inspect_rows(one_or_list(source), numbers or rows, make_encoding(options)):
        show(text)
