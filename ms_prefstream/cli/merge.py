"""The command `merge`."""

from __future__ import annotations

from typing import Any

import click
import cloup

from ms_prefstream.cli.cache import show_written
from ms_prefstream.cli.options import REMOTE, adding, command
from ms_prefstream.cli.terminal import show


@command(
    example="""
ms-prefstream merge cache/
ms-prefstream merge train.mprefidx
"""
)
@cloup.argument("out", type=click.Path())
@cloup.option("--overwrite", is_flag=True, help="Replace the cache at OUT.")
@adding(*REMOTE)
def merge(out: str, overwrite: bool, **options: Any) -> None:
    """Make the cache or length index OUT of its part ranges.

    They are written by `cache` and `index` with --part-range. A missing range is named, and nothing is changed.
    """
    from ms_prefstream.lengths import LengthIndex
    from ms_prefstream.merging import merge as merge_ranges

    found = merge_ranges(out, overwrite=overwrite, **options)
    if isinstance(found, LengthIndex):
        show(f"{found.usable:,} of {found.rows:,} rows can be used; written to {found.path}")
        show(found)
    else:
        show_written(found, out)
