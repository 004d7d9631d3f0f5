"""The command `verify`."""

from __future__ import annotations

import os
import sys
from typing import Any

import click
import cloup

from ms_prefstream.cli.options import REMOTE, adding, command
from ms_prefstream.cli.terminal import show


@command(example="ms-prefstream verify cache/")
@cloup.argument("out", type=click.Path())
@adding(*REMOTE)
def verify(out: str, **options: Any) -> None:
    """Read every byte of the cache OUT; name damaged files.

    Files that do not belong to the cache are named too. One that readers of MindRecord files would
    read is an error.
    """
    from ms_prefstream.cache.verify import verify as verify_cache
    from ms_prefstream.mindrecord.megatron import is_order
    from ms_prefstream.progress import progress_on
    from ms_prefstream.sources.copies import Remote
    from ms_prefstream.sources.store import without_secrets

    found = verify_cache(out, progress_on(sys.stderr, "verify", "bytes"), Remote(**options))
    for one in found:
        if one.problem or not one.belongs:
            what = "a trainer stored its row order in it: delete it if the rows have changed since"
            ignored = what if is_order(one.name) else "readers ignore it"
            said = one.problem or f"it does not belong to the cache; {ignored}"
            show(f"{os.path.join(without_secrets(out), one.name)}: {said}")
    whole = [not one.problem for one in found if one.belongs]
    click.echo(f"{sum(whole)} of {len(whole)} files are whole")
    if any(one.problem for one in found):
        sys.exit(1)
