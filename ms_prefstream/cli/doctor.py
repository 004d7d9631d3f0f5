"""The command `doctor`."""

from __future__ import annotations

import sys
from typing import Any

import click

from ms_prefstream.cli.options import encoding_options, source_argument
from ms_prefstream.cli.terminal import styled, with_flags
from ms_prefstream.errors import printable


@click.command()
@source_argument
@click.option("--rows", type=click.IntRange(min=1), default=2000, show_default=True, help="So many first rows.")
@click.option("--on-bad-row", default="raise", show_default=True, help="raise or drop.")
@encoding_options
def doctor(source: tuple[str, ...], rows: int, on_bad_row: str, **options: Any) -> None:
    """Say what the rows of SOURCE are, what would go wrong in a training, and the options that mend it.

    The exit code is 1 if something must be mended.
    """
    from ms_prefstream.cli.building import make_encoding, one_or_list
    from ms_prefstream.doctor import doctor as diagnose

    given = make_encoding(options) | {"rows": rows, "on_bad_row": on_bad_row}
    found = diagnose(one_or_list(source), **given)
    for mark, text in found.lines():
        colour = {"✓": "green", "✗": "red"}.get(mark, "yellow")
        click.echo(f"{styled(mark, colour)} {printable(with_flags(text), most=400)}")
    sys.exit(0 if found.ok else 1)
