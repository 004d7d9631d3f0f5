"""What commands print: text that is safe for a terminal, colours, and the log of the library."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator

import click

from ms_prefstream.errors import printable


def show(text: object, err: bool = False) -> None:
    """Prints text that may hold data or file names: control characters and the like as escapes, see `printable`."""
    click.echo(printable(str(text), most=None), err=err)


def styled(text: str, colour: str) -> str:
    """Returns text in a colour; `click` takes the colour away where the output is no terminal."""
    return text if os.environ.get("NO_COLOR") else click.style(text, fg=colour)


class _OnStandardError(logging.Handler):
    """Shows what the library logs: the summary of a stream as it is, warnings in yellow."""

    def emit(self, record: logging.LogRecord) -> None:
        text = printable(record.getMessage(), most=None)
        if record.levelno >= logging.WARNING:
            text = styled(f"  !  {with_flags(text)}", "yellow")
        click.echo(text, err=True)


@contextlib.contextmanager
def show_log() -> Iterator[None]:
    """Shows what the library logs on standard error inside the `with` block."""
    logger, handler = logging.getLogger("ms_prefstream"), _OnStandardError()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def with_flags(text: str, command: click.Command | None = None) -> str:
    """Returns an error text with the flags of a command in place of Python arguments.

    'pass on_bad_row="drop"'  ->  'pass --on-bad-row drop'

    Args:
        text: What the library says.
        command: The command that says it; None for the one that runs.
    """
    if command is None:
        context = click.get_current_context(silent=True)
        if context is None:
            return text
        command = context.command
    names = {option.name for option in command.params} - {"layout"}  # of files here, of the task in Python

    def flag(found: re.Match[str]) -> str:
        name, value = found["name"], found["value"].strip("\"'")
        value = "none" if value == "None" else f"'{value}'" if value.startswith("{") else value
        return f"--{name.replace('_', '-')} {value}" if name in names else found[0]

    value = r"""(?P<value>"[^"]*"|'[^']*'|\{[^{}]*\}|[\w.-]*\w)(?!\w)"""
    return re.sub(rf"(?<![\w.(-])(?P<name>[a-z_]+)={value}", flag, text)
