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


_MADE = re.compile(r"\b(?:mps\.)?(Bucket|Pack|Pad|DPO|Reward|RLHF|KTO|ProcessReward|Prompts)\(([^()]*)\)")
_LONG_NAME = re.compile(r"""(?<![\w./='"`-])[a-z]+(?:_[a-z]+)+(?![\w(='"`]|[./]\w)""")
_SHORT_NAME = re.compile(
    r"(?:^|(?<=[.:;] ))[a-z]+(?=(?:\[\d+\])? (?:is|has|makes|names) )|(?<=[Ll]eave )[a-z]+(?= out)"
)
_VALUE = r"""(?P<value>"[^"]*"|'[^']*'|\{[^{}]*\}|[\w.-]*\w)(?!\w)"""
_PLAIN = {"None": "none", "True": "true", "False": "false"}
_QUOTES = "\"'"


def with_flags(text: str, command: click.Command | None = None) -> str:
    """Returns an error text with the flags of a command in place of Python arguments.

    'pass on_bad_row="drop"'            ->  'pass --on-bad-row drop'
    'max_shapes is 0; expected ...'     ->  '--max-shapes is 0; expected ...'
    'batching=mps.Pack(tokens=640)'     ->  '--pack 640'

    Args:
        text: What the library says.
        command: The command that says it; None for the one that runs.
    """
    if command is None:
        context = click.get_current_context(silent=True)
        if context is None:
            return text
        command = context.command
    options: dict[str, list[click.Option]] = {}  # by name in Python, then by flag
    for by_flag in (False, True):
        for one in command.params:
            if isinstance(one, click.Option) and not one.hidden:
                name = _flag(one)[2:].replace("-", "_") if by_flag else str(one.name).rstrip("_")
                options.setdefault(name, []).append(one)
    for name, of_flag in (("tokens", "pack"), ("types", "cvalues_types")):
        options.setdefault(name, options.get(of_flag, []))
    flags = {name: _flag(found[0]) for name, found in options.items() if found}

    def made(found: re.Match[str]) -> str:
        kind, inner = found[1], found[2]
        if kind in ("Bucket", "Pack", "Pad"):
            return ("--pad " if kind == "Pad" else "") + inner.replace(", ", " ") if "batch_size" in flags else found[0]
        task = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", kind).lower()
        return f"--task {task} {inner}".replace(", ", " ")

    def option_of(name: str, value: str) -> click.Option:
        of_value = [one for one in options[name] if not isinstance(one.flag_value, str)]  # no --no-shuffle
        spelled = {value, _PLAIN.get(value, value)}
        named = [one for one in of_value if spelled & set(getattr(one.type, "choices", [value]))]
        return (named or options[name])[0]

    def with_subject(found: re.Match[str]) -> str:
        name, value = found["name"], found["value"]
        return f"{_flag(option_of(name, value.strip(_QUOTES)))} is {value}" if name in flags else found[0]

    def with_value(found: re.Match[str]) -> str:
        name, value = found["name"], found["value"].strip(_QUOTES)
        if name not in flags:
            return found[0]
        plain = _PLAIN.get(value, value)
        option = option_of(name, value)
        if option.is_flag and value in ("True", "False"):
            off = option.secondary_opts
            return _flag(option) if value == "True" else off[0] if off else f"no {_flag(option)}"
        return f"{_flag(option)} '{plain}'" if plain.startswith("{") else f"{_flag(option)} {plain}"

    text = re.sub(r"\bpart_range=\((\d+), (\d+)\)", r"--part-range \1/\2", text)
    text = re.sub(rf"(?:task|batching)=(?={_MADE.pattern})", "", text)
    text = re.sub(rf"(?<![\w.-])(?P<name>[a-z_]+)={_VALUE}", with_value, _MADE.sub(made, text))
    # Names with an underscore are unmistakable; a single word is an option where it cannot be an English one.
    text = _LONG_NAME.sub(lambda one: flags.get(one[0], one[0]), text)
    text = re.sub(rf"(?:^|(?<=[.:;] ))(?P<name>[a-z]+) is {_VALUE}", with_subject, text)
    text = _SHORT_NAME.sub(lambda one: flags.get(one[0], one[0]), text)
    return re.sub(r"(?<=\s)(--[a-z-]+)\[\d+\]|^(--[a-z-]+)\[\d+\]", r"\1\2", text)  # a flag has no places


def _flag(option: click.Option) -> str:
    return next(one for one in option.opts if one.startswith("--"))
