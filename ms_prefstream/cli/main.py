"""The console command `ms-prefstream`."""

from __future__ import annotations

import sys
from typing import Any

import click

from ms_prefstream.errors import PrefStreamError
from ms_prefstream.version import VERSION


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(VERSION, prog_name="ms-prefstream")
def commands() -> None:
    """Streaming preference data for MindSpore."""


@commands.command()
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order of rows and the initial weights.")
def demo(seed: int) -> None:
    """Train a small reward model and then DPO on the bundled pairs, streamed on the fly."""
    from ms_prefstream.demo.run import run

    if not run(seed=seed):
        sys.exit(1)


def _with_stream_options() -> None:
    """Commands that make a stream; their options import the library, which `--help` of the group need not wait for."""
    from ms_prefstream.cli.cache import add_cache_commands
    from ms_prefstream.cli.options import (
        encoding_options,
        make_encoding,
        make_measured,
        make_stream,
        opened,
        stream_options,
    )

    @commands.command()
    @click.argument("source", nargs=-1, required=True)
    @click.option("--row", "numbers", type=int, multiple=True, help="Number of a row, from 0; may be repeated.")
    @click.option("--rows", type=click.IntRange(min=1), default=3, show_default=True, help="Or so many first rows.")
    @encoding_options
    def inspect(source: tuple[str, ...], numbers: tuple[int, ...], rows: int, **options: Any) -> None:
        """Show what rows of SOURCE become: prompt, what is trained on, lengths; or why they are dropped."""
        from ms_prefstream.inspection import inspect as run

        for text in run(opened(source), numbers or rows, make_encoding(options)):
            click.echo(text)

    add_cache_commands(commands)

    @commands.command()
    @click.argument("source", nargs=-1, required=True)
    @click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Passes that are timed.")
    @stream_options
    def bench(source: tuple[str, ...], repeats: int, **options: Any) -> None:
        """How fast SOURCE becomes batches, and how much of them is padding."""
        from ms_prefstream.cli.bench import bench as run

        run(make_stream(source, options), repeats)

    @commands.command()
    @click.argument("source", nargs=-1, required=True)
    @click.option("--out", type=click.Path(), help="Where the index is written; beside SOURCE if that is one file.")
    @stream_options
    def index(source: tuple[str, ...], out: str | None, **options: Any) -> None:
        """Measure every row of SOURCE once and write its length index."""
        found = make_measured(source, options).build_index(out, progress=True)
        click.echo(f"{found.usable:,} of {found.rows:,} rows can be used; written to {found.path}")
        click.echo(found)


_with_stream_options()


def main() -> None:
    """Run the command line; errors that a user can cause end in one sentence."""
    try:
        commands(standalone_mode=False)
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except click.Abort:
        goes_on = {"cache", "index"} & set(sys.argv[1:2])
        more = "; give the same command again, and it goes on with what is finished" if goes_on else ""
        click.echo(f"ms-prefstream: interrupted{more}.", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except PrefStreamError as error:
        click.echo(f"ms-prefstream: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
