"""The stream, rows, task and batching that a command line describes.

This file imports the library. Commands import it in the function that runs, see `main.COMMANDS`.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

from ms_prefstream import formats
from ms_prefstream.adapters.yaml_keys import format_from, source_from
from ms_prefstream.batch import Bucket, Pack, Pad
from ms_prefstream.checks import group_of
from ms_prefstream.cli.options import is_in_file
from ms_prefstream.errors import OptionError
from ms_prefstream.inspection import encode
from ms_prefstream.sources import open_source
from ms_prefstream.sources.base import RandomAccess
from ms_prefstream.sources.copies import Remote
from ms_prefstream.sources.mix import Mix, open_rows
from ms_prefstream.sources.store import is_url
from ms_prefstream.split import side_of
from ms_prefstream.steps.summary import data_lines
from ms_prefstream.stream import Stream, stream
from ms_prefstream.tasks import TASKS, Task
from ms_prefstream.tasks.base import traits

_log = logging.getLogger("ms_prefstream")

_BATCHINGS = {
    "pack": ("pack", "max_segments"),
    "pad": ("pad", "length"),
    "bucket": ("multiple_of", "boundaries", "max_shapes", "round_to", "extra"),
}
"""Options that decide about the batching rule."""

_BUCKET = ("max_tokens", *_BATCHINGS["bucket"])
_SWITCHES = {"true": True, "false": False}


def make_stream(source: tuple[Any, ...], options: dict[str, Any]) -> Stream:
    """Returns the stream that a command line describes."""
    given = given_to(stream, options) | make_encoding(options)
    if options["num_shards"] is None and options["shard_id"] is None:
        given |= {"num_shards": 1, "shard_id": 0}  # a command is one process, whatever its environment says
    given |= {"batching": make_batching(options)}
    given |= {name: _SWITCHES.get(options[name], options[name]) for name in ("shuffle", "drop_remainder")}
    given |= {"index": or_none(options.get("index") or "auto"), "verbose": options["verbose"]}
    return stream(source_of(source, options), **given)


def make_rows(source: tuple[Any, ...], options: dict[str, Any], length: int | None, workers: int) -> Stream:
    """Returns the stream of a command line whose rows are not batched; fixed layouts are padded to `length`."""
    found = open_rows(source_of(source, options))
    encoding = make_encoding(options)
    made = stream(
        found,
        batching=Pad(traits(encoding["task"]).least_rows, length=length),
        workers=workers,
        index=None,
        num_shards=1,
        shard_id=0,
        steps_per_epoch=None if isinstance(found, (Mix, RandomAccess)) else 1,  # steps are not used
        verbose=False,  # its steps are not used, so that its summary would mislead
        **{name: options[name] for name in ("pad_token_id", "on_bad_row", "quarantine") if name in options},
        **encoding,
    )
    if options["verbose"]:
        _log.info("%s", "\n".join(data_lines(made.data)))
        for one in made.report.warnings:
            _log.warning("%s", one)
    return made


def make_encoding(options: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `mps.encode` that a command line describes."""
    return given_to(encode, options) | {
        "task": _make_task(options),
        "tokenizer": or_none(options["tokenizer"]),
        "format": _make_format(options),
        "template": or_none(options["template"]),
    }


def given_to(function: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options that were given and are arguments of a function, under their own names."""
    return {name: options[name] for name in inspect.signature(function).parameters if options.get(name) is not None}


def source_of(source: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Returns the rows of a command line: one path, several, a mix, or the side of them that --split names."""
    found = one_or_list(source, options)
    if options["split"] is None:
        return found
    return side_of(found, options["split"], _make_format(options), options["fields"])


def one_or_list(source: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Returns one path as it is, several as a list, and the mix that a section of a YAML file describes.

    URLs are opened here, with the options about stores, so that no command copies their files twice.
    """
    remote = group_of(Remote, options)
    if any(isinstance(one, str) and is_url(one) for one in source):
        return open_source(source[0] if len(source) == 1 else list(source), remote)
    return source_from(source[0], where="", remote=remote) if len(source) == 1 else list(source)


def _make_task(options: dict[str, Any]) -> Task:
    """Returns the task that a command line describes; an option of another task is refused."""
    parameters = {name: inspect.signature(make).parameters for name, make in TASKS.items()}
    if _typed("task") and _in_file("task") != options["task"]:  # the file is about another task: layouts have its names
        given_to_both = set(parameters[options["task"]]) - {"layout"}
        options = _without_file(options, {name for of in parameters.values() for name in of} - given_to_both)
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
    kinds = [kind for kind, names in _BATCHINGS.items() if any(map(_typed, names))]
    if kinds:  # those of the file give way
        others = (names for kind, names in _BATCHINGS.items() if kind not in kinds)
        options = _without_file(options, {name for names in others for name in names})
    for name, other in (("batch_size", "max_tokens"), ("max_tokens", "batch_size")):
        options = _without_file(options, {other} if _typed(name) else set())
    if options["batch_size"] is None and options["max_tokens"] is None:
        options = options | {"batch_size": 8}
    if options["pack"] is not None:
        _refuse(options, ("pad", "length", *_BUCKET), "--pack does not go with {}: packs have one width, TOKENS.")
        return Pack(**given_to(Pack, options | {"tokens": options["pack"]}))
    if options["max_segments"] is not None:
        raise OptionError("--max-segments is an option of packs: give --pack TOKENS as well, or leave it out.")
    if options["pad"] or options["length"] is not None:
        _refuse(options, _BUCKET, "{} goes with buckets, and --pad and --length make one length of all rows.")
        return Pad(**given_to(Pad, options))
    return Bucket(**given_to(Bucket, options))


def _refuse(options: dict[str, Any], names: tuple[str, ...], problem: str) -> None:
    for name in names:
        if options[name]:
            raise OptionError(f"{problem.format(_flag(name))} Give only one of them.")


def _typed(name: str) -> bool:
    """Returns whether an option stands on the command line itself, not in the file of --config."""
    context = click.get_current_context(silent=True)
    return context is not None and context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _in_file(name: str) -> Any:
    """Returns the value of an option in the file of --config."""
    context = click.get_current_context(silent=True)
    return None if context is None else (context.default_map or {}).get(name)


def _without_file(options: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """Returns the options without the values of some that come from the file of --config."""
    context = click.get_current_context(silent=True)
    if context is None:
        return options
    of_file = {name for name in names if is_in_file(context, name)}
    return {name: None if name in of_file else value for name, value in options.items()}


def _make_format(options: dict[str, Any]) -> Any:
    if not options.get("cvalues_types"):
        return format_from(options["format_"], "format")
    if options["format_"] not in ("auto", "cvalues"):
        raise OptionError(
            f"--cvalues-types is for CValues rows, but --format is {options['format_']}. Leave one of them out."
        )
    return formats.cvalues(types=options["cvalues_types"])


def _flag(name: str) -> str:
    return {"append_eos": "--no-eos", "layout": "--task-layout"}.get(name, f"--{name.replace('_', '-')}")


def or_none(value: str | None) -> str | None:
    """Returns the value of an option; None for the word none."""
    return None if value is None or value.lower() == "none" else value
