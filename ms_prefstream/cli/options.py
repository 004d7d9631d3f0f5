"""Options that commands share, and the stream that they describe. Option names are the Python names with dashes."""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click

from ms_prefstream import formats
from ms_prefstream.batch import Bucket, Pack, Pad
from ms_prefstream.errors import OptionError, printable
from ms_prefstream.inspection import encode
from ms_prefstream.sources import open_source
from ms_prefstream.sources.base import RandomAccess
from ms_prefstream.steps.summary import data_lines
from ms_prefstream.stream import Stream, stream
from ms_prefstream.tasks import TASKS, Task

_log = logging.getLogger("ms_prefstream")
Command = TypeVar("Command", bound=Callable[..., Any])

source_argument = click.argument("source", nargs=-1, required=True)

_TASK_OPTIONS = (
    click.option("--task", type=click.Choice(list(TASKS)), required=True, help="What rows become."),
    click.option("--max-length", type=int, help="Tokens of one side (dpo, reward)."),
    click.option("--max-prompt-length", type=int, help="Tokens of the prompt; columns of prompt_ids (rlhf)."),
    click.option("--seq-length", type=int, help="Columns of prompt + response (rlhf)."),
    click.option("--truncation", help="prompt_left (default), response_right, drop; rlhf: right."),
    click.option("--labels", help="dpo: unshifted, shifted."),
    click.option("--reward-token", help="Text or id of the reward token."),
    click.option("--margin", is_flag=True, default=None, help="Add the margin column (dpo, reward)."),
    click.option("--eos/--no-eos", "append_eos", default=None, help="Without a template: end token after responses."),
)

_LAYOUT_OPTION = click.option("--layout", help="dpo: paired, concat. reward: mindformers, reward_token.")

_TASK_LAYOUT_OPTION = click.option("--task-layout", "layout", help="reward: mindformers (default) or reward_token.")

_ENCODING_OPTIONS = (
    click.option("--tokenizer", required=True, help="Directory, tokenizer.json, .model file, 'bytes', or 'none'."),
    click.option("--format", "format_", default="auto", show_default=True, help="Preset that reads the rows."),
    click.option("--cvalues-types", multiple=True, help='CValues difficulty "better>worse"; may be repeated.'),
    click.option("--template", default="auto", show_default=True, help="auto, chat, none, Jinja text or .jinja file."),
    click.option("--template-variables", metavar="JSON", help='Variables of the template: {"enable_thinking": false}.'),
    click.option("--fields", metavar="JSON", help='Standard name -> the row\'s field: {"prompt": "question"}.'),
    click.option("--vocab-size", type=int, help="Rows of the model's embedding, where it is padded."),
    click.option("--content-lost", help="report (default), drop or error: words of a trained turn that are lost."),
    click.option("--continue-final-message", help="error (default) or join: a prompt that ends with an answer."),
    click.option("--train-empty-think", is_flag=True, default=None, help="Train the template's empty think block."),
    click.option("--boundary", default="auto", show_default=True, help="auto, joint or inference."),
    click.option("--special-tokens-in-content", default="escape", show_default=True, help="escape, error or allow."),
    click.option(
        "--backend", default="auto", show_default=True, help="auto, fastokens, tiktoken, tokenizers, sentencepiece."
    ),
)

_ROW_OPTIONS = (
    click.option("--pad-token-id", type=int, help="What ids are padded with."),
    click.option("--on-bad-row", default="raise", show_default=True, help="raise or drop."),
    click.option("--quarantine", type=click.Path(), help="JSON Lines file for dropped rows."),
)

_BATCH_OPTIONS = (
    click.option("--batch-size", type=int, help="Rows of a step (8 if nothing is given)."),
    click.option("--max-tokens", type=int, help="Tokens of a step instead; needs a length index."),
    click.option("--multiple-of", type=int, help="Bucket widths: multiples of this (64 if nothing is given)."),
    click.option("--boundaries", help="Bucket widths, comma-separated."),
    click.option("--max-shapes", type=int, help="As many bucket widths as this, chosen for the data."),
    click.option("--round-to", type=int, help="With --max-shapes: widths are multiples of this (16)."),
    click.option("--extra", type=int, default=0, help="Columns added to every bucket width."),
    click.option("--pad", is_flag=True, help="Pad everything to one length instead of buckets."),
    click.option("--length", type=int, help="That length; the task's if not given."),
    click.option("--pack", type=int, metavar="TOKENS", help="Pack samples into rows of so many tokens."),
    click.option("--max-segments", type=int, help="Columns of actual_seq_len in packs (128)."),
    click.option("--steps-per-epoch", type=int, help="Steps of packs, or of a source read from the front."),
    click.option("--shuffle", type=click.Choice(["true", "false", "window"]), default="true", show_default=True),
    click.option("--no-shuffle", "shuffle", flag_value="false", help="The same as --shuffle false: source order."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of the order, 0 to 2**32 - 1."),
    click.option("--workers", type=int, default=0, show_default=True, help="Processes that tokenise; 0 for none."),
    click.option("--window", type=int, default=64, show_default=True, help="Steps sorted by length together."),
    click.option("--drop-remainder/--no-drop-remainder", default=True, show_default=True, help="Or repeat a few rows."),
    click.option("--longest-first", is_flag=True, help="Step 0 holds the longest rows of its window."),
    click.option("--num-shards", type=int, help="Ranks that share the data, with --shard-id."),
    click.option("--shard-id", type=int, help="This rank, from 0."),
    click.option("--logical-shards", type=int, help="Shards that are planned; ranks that divide them may share a run."),
)

_BUCKET = ("max_tokens", "multiple_of", "boundaries", "max_shapes", "round_to", "extra")
_SHUFFLES: dict[str, Any] = {"true": True, "false": False, "window": "window"}


def _adding(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Returns a decorator that adds options to a command, in this order."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


_VERBOSE_OPTION = click.option("--verbose/--quiet", default=True, help="Whether a summary and warnings are shown.")

encoding_options = _adding(*_TASK_OPTIONS, _LAYOUT_OPTION, *_ENCODING_OPTIONS)
"""Adds the options of `mps.encode` and its task to a command."""

stream_options = _adding(
    *_TASK_OPTIONS, _LAYOUT_OPTION, *_ENCODING_OPTIONS, *_ROW_OPTIONS, *_BATCH_OPTIONS, _VERBOSE_OPTION
)
"""Adds the options of `mps.stream`, its task and its batching to a command."""

row_options = _adding(*_TASK_OPTIONS, _TASK_LAYOUT_OPTION, *_ENCODING_OPTIONS, *_ROW_OPTIONS, _VERBOSE_OPTION)
"""Adds the options that decide what rows become, without order and batches; --layout is free for other uses."""


def show(text: object, err: bool = False) -> None:
    """Prints text that may hold data or file names: control characters and the like as escapes, see `printable`."""
    click.echo(printable(str(text), most=None), err=err)


def styled(text: str, colour: str) -> str:
    """Returns text in a colour; `click` takes the colour away where the output is no terminal."""
    return text if os.environ.get("NO_COLOR") else click.style(text, fg=colour)


class _OnStandardError(logging.Handler):
    """Shows what the library logs: the summary of a stream as it is, warnings in yellow."""

    def __init__(self, with_flags: Callable[[str], str]) -> None:
        super().__init__()
        self._with_flags = with_flags

    def emit(self, record: logging.LogRecord) -> None:
        text = printable(record.getMessage(), most=None)
        if record.levelno >= logging.WARNING:
            text = styled(f"  !  {self._with_flags(text)}", "yellow")
        click.echo(text, err=True)


@contextlib.contextmanager
def show_log(with_flags: Callable[[str], str]) -> Iterator[None]:
    """Shows what the library logs on standard error inside the `with` block.

    Args:
        with_flags: Puts the flags of the command line in the place of Python arguments.
    """
    logger, handler = logging.getLogger("ms_prefstream"), _OnStandardError(with_flags)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def make_stream(source: tuple[str, ...], options: dict[str, Any]) -> Stream:
    """Returns the stream that a command line describes."""
    given = _given_to(stream, options) | make_encoding(options)
    if options["num_shards"] is None and options["shard_id"] is None:
        given |= {"num_shards": 1, "shard_id": 0}  # a command is one process, whatever its environment says
    given |= {"batching": make_batching(options), "shuffle": _SHUFFLES[options["shuffle"]]}
    given |= {"index": _or_none(options.get("index") or "auto"), "verbose": options["verbose"]}
    return stream(one_or_list(source), **given)


def make_rows(source: tuple[str, ...], options: dict[str, Any], length: int | None, workers: int) -> Stream:
    """Returns the stream of a command line whose rows are not batched; fixed layouts are padded to `length`."""
    found = open_source(one_or_list(source))
    made = stream(
        found,
        batching=Pad(1, length=length),
        workers=workers,
        index=None,
        num_shards=1,
        shard_id=0,
        steps_per_epoch=None if isinstance(found, RandomAccess) else 1,  # steps are not used
        verbose=False,  # its steps are not used, so that its summary would mislead
        **{name: options[name] for name in ("pad_token_id", "on_bad_row", "quarantine")},
        **make_encoding(options),
    )
    if options["verbose"]:
        _log.info("%s", "\n".join(data_lines(made.data)))
        for one in made.report.warnings:
            _log.warning("%s", one)
    return made


def make_encoding(options: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `mps.encode` that a command line describes."""
    return _given_to(encode, options) | {
        "task": _make_task(options),
        "tokenizer": _or_none(options["tokenizer"]),
        "format": _make_format(options),
        "template": _or_none(options["template"]),
        **{name: _json_object(name, options[name]) for name in ("fields", "template_variables")},
    }


def _given_to(function: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options that were given and are arguments of a function, under their own names."""
    return {name: options[name] for name in inspect.signature(function).parameters if options.get(name) is not None}


def _json_object(name: str, text: str | None) -> dict[str, Any] | None:
    """Returns the object that an option states as JSON; None if it was not given."""
    if text is None:
        return None
    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(found := json.loads(text), dict):
            return found
    raise OptionError(f'{_flag(name)} is {text!r}; expected a JSON object such as \'{{"name": "value"}}\'.')


def one_or_list(source: tuple[str, ...]) -> Any:
    """Returns one path as it is, several as a list."""
    return list(source) if len(source) > 1 else source[0]


def _make_task(options: dict[str, Any]) -> Task:
    """Returns the task that a command line describes; an option of another task is refused."""
    parameters = {name: inspect.signature(make).parameters for name, make in TASKS.items()}
    given = {name: options[name] for of in parameters.values() for name in of if options.get(name) is not None}
    allowed = parameters[options["task"]]
    for name, parameter in allowed.items():
        if parameter.default is parameter.empty and name not in given:
            raise OptionError(f"--task {options['task']} needs {_flag(name)}: a number of tokens.")
    for name in given:
        if name not in allowed:
            raise OptionError(
                f"{_flag(name)} does not go with --task {options['task']}; it takes {', '.join(map(_flag, allowed))}."
            )
    token = given.get("reward_token")
    if token is not None and token.isdigit():
        given["reward_token"] = int(token)
    task: Task = TASKS[options["task"]](**given)
    return task


def make_batching(options: dict[str, Any]) -> Pad | Bucket | Pack:
    """Returns the batching rule that a command line describes; options that contradict each other are refused."""
    if options["batch_size"] is None and options["max_tokens"] is None:
        options = options | {"batch_size": 8}
    if options["pack"] is not None:
        _refuse(options, ("pad", "length", *_BUCKET), "--pack does not go with {}: packs have one width, TOKENS.")
        return Pack(**_given_to(Pack, options | {"tokens": options["pack"]}))
    if options["max_segments"] is not None:
        raise OptionError("--max-segments is an option of packs: give --pack TOKENS as well, or leave it out.")
    if options["pad"] or options["length"] is not None:
        _refuse(options, _BUCKET, "{} goes with buckets, and --pad and --length make one length of all rows.")
        return Pad(**_given_to(Pad, options))
    if options["boundaries"] is not None:
        try:
            options = options | {"boundaries": tuple(map(int, options["boundaries"].split(",")))}
        except ValueError:
            raise OptionError(
                f"--boundaries is {options['boundaries']!r}; expected numbers with commas, as 128,256,512."
            ) from None
    return Bucket(**_given_to(Bucket, options))


def _refuse(options: dict[str, Any], names: tuple[str, ...], problem: str) -> None:
    for name in names:
        if options[name]:
            raise OptionError(f"{problem.format(_flag(name))} Give only one of them.")


def _make_format(options: dict[str, Any]) -> Any:
    if not options["cvalues_types"]:
        return options["format_"]
    if options["format_"] not in ("auto", "cvalues"):
        raise OptionError(
            f"--cvalues-types is for CValues rows, but --format is {options['format_']}. Leave one of them out."
        )
    return formats.cvalues(types=options["cvalues_types"])


def _flag(name: str) -> str:
    return "--no-eos" if name == "append_eos" else f"--{name.replace('_', '-')}"


def _or_none(value: str) -> str | None:
    return None if value.lower() == "none" else value
