"""The console command `ms-prefstream` and its commands `demo`, `doctor` and `index`."""

from __future__ import annotations

import io
import re
import sys
from typing import Any

import click

from ms_prefstream.cli.bench import bench
from ms_prefstream.cli.cache import cache, verify
from ms_prefstream.cli.inspect import inspect
from ms_prefstream.cli.options import (
    encoding_options,
    make_batching,
    make_encoding,
    make_rows,
    one_or_list,
    show,
    show_log,
    source_argument,
    stream_options,
    styled,
)
from ms_prefstream.cli.stats import stats
from ms_prefstream.doctor import doctor as diagnose
from ms_prefstream.errors import PrefStreamError, printable
from ms_prefstream.version import VERSION


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(VERSION, prog_name="ms-prefstream")
def commands() -> None:
    """Streaming preference data for MindSpore."""


for _command in (bench, cache, inspect, stats, verify):
    commands.add_command(_command)


@commands.command()
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order of rows and the initial weights.")
def demo(seed: int) -> None:
    """Train a small reward model and then DPO on the bundled pairs, streamed on the fly."""
    from ms_prefstream.demo.run import run  # imports MindSpore

    if not run(seed=seed):
        sys.exit(1)


@commands.command()
@source_argument
@click.option("--rows", type=click.IntRange(min=1), default=2000, show_default=True, help="So many first rows.")
@click.option("--on-bad-row", default="raise", show_default=True, help="raise or drop.")
@encoding_options
def doctor(source: tuple[str, ...], rows: int, on_bad_row: str, **options: Any) -> None:
    """Say what the rows of SOURCE are, what would go wrong in a training, and the options that mend it.

    The exit code is 1 if something must be mended.
    """
    given = make_encoding(options) | {"rows": rows, "on_bad_row": on_bad_row}
    found = diagnose(one_or_list(source), **given)
    for mark, text in found.lines():
        colour = {"✓": "green", "✗": "red"}.get(mark, "yellow")
        click.echo(f"{styled(mark, colour)} {printable(with_flags(text), most=400)}")
    sys.exit(0 if found.ok else 1)


@commands.command()
@source_argument
@click.option("--out", type=click.Path(), help="Where the index is written; beside SOURCE if that is one file.")
@stream_options
def index(source: tuple[str, ...], out: str | None, **options: Any) -> None:
    """Measure every row of SOURCE once and write its length index."""
    make_batching(options)  # refuses options that contradict each other; batches change no length
    found = make_rows(source, options, None, options["workers"]).build_index(out, progress=True)
    show(f"{found.usable:,} of {found.rows:,} rows can be used; written to {found.path}")
    show(found)


def main() -> None:
    """Runs the command line; an error that a user can cause ends in one sentence."""
    try:
        with show_log(with_flags):
            commands(standalone_mode=False)
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except click.Abort:
        resumable = {"cache", "index"} & set(sys.argv[1:2])
        more = "; give the same command again, and it resumes after what is finished" if resumable else ""
        click.echo(f"ms-prefstream: interrupted{more}.", err=True)
        sys.exit(130)
    except click.ClickException as error:
        said = io.StringIO()
        error.show(said)
        show(said.getvalue().rstrip(), err=True)  # the shell puts file names into the words
        sys.exit(error.exit_code)
    except PrefStreamError as error:
        show(f"ms-prefstream: {with_flags(str(error))}", err=True)
        sys.exit(1)


def with_flags(text: str) -> str:
    """Returns an error text with the flags of the command line in place of Python arguments.

    'pass on_bad_row="drop"'  ->  'pass --on-bad-row drop'
    """
    names = {option.name for command in commands.commands.values() for option in command.params}
    names -= {"layout"}  # of files here, of the task in Python

    def flag(found: re.Match[str]) -> str:
        name, value = found["name"], found["value"].strip("\"'")
        value = "none" if value == "None" else f"'{value}'" if value.startswith("{") else value
        return f"--{name.replace('_', '-')} {value}" if name in names else found[0]

    value = r"""(?P<value>"[^"]*"|'[^']*'|\{[^{}]*\}|[\w.-]*\w)(?!\w)"""
    return re.sub(rf"(?<![\w.(-])(?P<name>[a-z_]+)={value}", flag, text)


if __name__ == "__main__":
    main()
