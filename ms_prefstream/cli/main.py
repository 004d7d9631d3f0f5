"""The console command `ms-prefstream`: the table of its commands, and how it ends."""

from __future__ import annotations

import importlib
import io
import os
import sys
from typing import IO, Any

import click
import cloup

from ms_prefstream.cli.options import CONFIG, is_in_file
from ms_prefstream.cli.terminal import show, show_log, with_flags
from ms_prefstream.errors import OptionError, PrefStreamError
from ms_prefstream.version import VERSION

COMMANDS = {
    "Look at data": ("inspect", "stats", "doctor", "formats"),
    "Prepare": ("init", "index", "cache", "merge", "verify"),
    "Try": ("demo", "bench"),
}
"""Section of the help -> its commands. Each is a command in the file of that name in this folder.

The file of a command is imported for every `--help`: it must import the library inside the function that runs.
"""

_PIPE_CLOSED = 141  # as of a command that SIGPIPE ends

_EPILOG = """\b
Exit codes: 0 done, 1 a problem was found, 2 the command line is wrong, 130 interrupted.
Completion, in ~/.bashrc:  eval "$(_MS_PREFSTREAM_COMPLETE=bash_source ms-prefstream)"
zsh_source in ~/.zshrc; for fish: _MS_PREFSTREAM_COMPLETE=fish_source ms-prefstream | source
"""


class Failure(click.ClickException):
    """An error of the library, as the command line says it."""

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"ms-prefstream: {self.message}", file=file)


class WrongUsage(Failure):
    """An option that has a value which is not allowed."""

    exit_code = 2


class _Commands(cloup.Group):
    """A group that imports the file of a command when the command is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for names in COMMANDS.values() for name in names]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        found = getattr(importlib.import_module(f"ms_prefstream.cli.{cmd_name}"), cmd_name)
        assert isinstance(found, click.Command)  # a file without its command is our mistake
        return found

    def list_sections(self, ctx: click.Context, include_default_section: bool = True) -> list[cloup.Section]:
        found = {title: {name: self.get_command(ctx, name) for name in names} for title, names in COMMANDS.items()}
        return [cloup.Section(title, names) for title, names in found.items()]  # type: ignore[arg-type]

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PrefStreamError as error:
            kind = WrongUsage if isinstance(error, OptionError) else Failure
            raise kind(with_flags(str(error), self.get_command(ctx, str(ctx.invoked_subcommand)))) from error
        except click.BadParameter as error:
            name = None if error.param is None else error.param.name
            if error.ctx is None or name is None or not is_in_file(error.ctx, name):
                raise
            raise click.UsageError(
                f"{error.ctx.meta[CONFIG]}: {name.rstrip('_')}: {error.message}", error.ctx
            ) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is flushed at the end
            sys.exit(_PIPE_CLOSED)
        except click.NoSuchOption as error:
            owners = [name for name in self.list_commands(ctx) if _has(self.get_command(ctx, name), error.option_name)]
            if not owners:
                raise
            raise click.UsageError(
                f"{ctx.invoked_subcommand} has no option {error.option_name}; it belongs to {', '.join(owners)}. "
                "Leave it out.",
                error.ctx,
            ) from None


def _has(command: click.Command | None, flag: str) -> bool:
    return command is not None and any(
        flag in (*one.opts, *one.secondary_opts) for one in command.params if not getattr(one, "hidden", False)
    )


@cloup.group(
    cls=_Commands,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "formatter_settings": cloup.HelpFormatter.settings(max_width=98, col2_min_width=40),
    },
    epilog=_EPILOG,
)
@cloup.version_option(VERSION, prog_name="ms-prefstream")
def commands() -> None:
    """Streaming preference data for MindSpore. `ms-prefstream COMMAND --help` shows options and an example."""


def main() -> None:
    """Runs the command line; an error that a user can cause ends in one sentence."""
    try:
        with show_log():
            commands(standalone_mode=False, prog_name="ms-prefstream")
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except (click.Abort, KeyboardInterrupt):
        resumable = {"cache", "index", "merge"} & set(sys.argv[1:2])
        more = "; give the same command again, and it resumes after what is finished" if resumable else ""
        click.echo(f"ms-prefstream: interrupted{more}.", err=True)
        sys.exit(130)
    except click.ClickException as error:
        said = io.StringIO()
        error.show(said)
        show(said.getvalue().rstrip(), err=True)  # the shell puts file names into the words
        sys.exit(error.exit_code)
