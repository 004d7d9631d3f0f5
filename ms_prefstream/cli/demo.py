"""The command `demo`."""

from __future__ import annotations

import sys

import click


@click.command()
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order of rows and the initial weights.")
def demo(seed: int) -> None:
    """Train a small reward model and then DPO on the bundled pairs, streamed on the fly."""
    from ms_prefstream.demo.run import run  # imports MindSpore

    if not run(seed=seed):
        sys.exit(1)
