"""The command `doctor`."""

from __future__ import annotations

import sys
from typing import Any

import click
import cloup

from ms_prefstream.cli.options import command, doctor_options, run_group, source_argument
from ms_prefstream.cli.terminal import styled, with_flags
from ms_prefstream.cli.values import Count
from ms_prefstream.errors import printable


@command(
    example="""
ms-prefstream doctor train.jsonl --task dpo --max-length 1024 --tokenizer Qwen2.5
"""
)
@source_argument
@doctor_options
@run_group(cloup.option("--rows", type=Count(min=1), default=2000, show_default=True, help="So many first rows."))
def doctor(source: tuple[str, ...], rows: int, **options: Any) -> None:
    """Say what would go wrong with SOURCE, and what mends it.

    The exit code is 1 if something must be mended.
    """
    from ms_prefstream.cli.building import make_encoding, source_of
    from ms_prefstream.doctor import doctor as diagnose

    given = make_encoding(options) | {"rows": rows, **{name: options[name] for name in ("on_bad_row", "pad_token_id")}}
    found = diagnose(source_of(source, options), **given)
    for mark, text in found.lines():
        colour = {"✓": "green", "✗": "red"}.get(mark, "yellow")
        click.echo(f"{styled(mark, colour)} {printable(with_flags(text), most=400)}")
    sys.exit(0 if found.ok else 1)
