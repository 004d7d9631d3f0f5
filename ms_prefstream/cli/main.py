"""The console command `ms-prefstream`: the table of its commands, and how it ends."""

from __future__ import annotations

import importlib
import io
import sys
from typing import IO, Any

import click

from ms_prefstream.cli.terminal import show, show_log, with_flags
from ms_prefstream.errors import PrefStreamError
from ms_prefstream.version import VERSION

COMMANDS = {
    "Look at data": ("inspect", "doctor"),
    "Prepare files": ("index", "cache", "verify"),
    "Try": ("demo", "bench"),
}
"""Section of the help -> its commands. Each is a click command in the file of that name in this folder.

The file of a command is imported for every `--help`: it must import the library inside the function that runs.
"""


class Failure(click.ClickException):
    """An error of the library as the command line says it."""

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"ms-prefstream: {self.message}", file=file)


class _Commands(click.Group):
    """A group that imports the file of a command when the command is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for names in COMMANDS.values() for name in names]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        found = getattr(importlib.import_module(f"ms_prefstream.cli.{cmd_name}"), cmd_name)
        assert isinstance(found, click.Command)  # a file without its command is our mistake
        return found

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PrefStreamError as error:
            command = self.get_command(ctx, str(ctx.invoked_subcommand))
            raise Failure(with_flags(str(error), command)) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, names in COMMANDS.items():
            with formatter.section(section):
                found = [(name, self.get_command(ctx, name)) for name in names]
                formatter.write_dl([(name, one.get_short_help_str(90)) for name, one in found if one is not None])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(VERSION, prog_name="ms-prefstream")
def commands() -> None:
    """Streaming preference data for MindSpore."""


def main() -> None:
    """Runs the command line; an error that a user can cause ends in one sentence."""
    try:
        with show_log():
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


if __name__ == "__main__":
    main()
