"""The command `demo`."""

from __future__ import annotations

import sys

import click
import cloup

from ms_prefstream.cli.options import command


@command(example="ms-prefstream demo")
@cloup.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Of the order of rows and the initial weights.",
)
def demo(seed: int) -> None:
    """Train a reward model and DPO on the bundled pairs."""
    from ms_prefstream.demo.run import run  # imports MindSpore

    if not run(seed=seed):
        sys.exit(1)
