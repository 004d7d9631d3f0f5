"""Streams from plain keys, as a YAML file has them: names for tasks, batching rules and formats.

task: {type: DPO, max_length: 1024}    ->    task=mps.DPO(max_length=1024)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ms_prefstream import formats
from ms_prefstream.batch import BATCHING_RULES
from ms_prefstream.checks import group_of
from ms_prefstream.errors import OptionError
from ms_prefstream.formats.fields import nearest
from ms_prefstream.sources.copies import LOCAL, Remote
from ms_prefstream.sources.mix import Part, mix
from ms_prefstream.split import side_of
from ms_prefstream.stream import Stream, stream
from ms_prefstream.tasks import TASKS

TASK_TYPES: dict[str, Callable[..., Any]] = {task.__name__: task for task in TASKS.values()}
_KEYS = ("dataset_dir", "split", *inspect.signature(stream).parameters)
_NO_OBJECT = (str, int, float, list)  # what YAML has besides sections
_SECTION = "data_loader"  # in messages
_EXAMPLES = {"task": "{type: DPO, max_length: 1024}", "batching": "{type: Bucket, multiple_of: 64}"}


def stream_from(
    keys: Mapping[str, Any],
    *,
    batch_size: int | None = None,
    seed: int | None = None,
    tokenizer: Any = None,
    num_shards: int | None = None,
    shard_id: int | None = None,
) -> Stream:
    """Returns the stream that a section `data_loader` describes: the options of `mps.stream` under their own names.

    Objects are sections with a `type`: ``task: {type: DPO, max_length: 1024}``, ``batching: {type: Bucket, multiple_of:
    64}``, ``format: {type: cvalues, types: [...]}``; a mix is ``source: {mix: [{source: ..., weight: 0.7}, ...]}``.
    ``dataset_dir``, MindFormers' name for it, is another name of ``source``; ``split: test:0.02`` takes one side of it
    (`ms_prefstream.split`). Values that are objects already are taken as they are.

    Args:
        keys: The section.
        batch_size: Rows of a step as the trainer has them; None where no trainer says.
        seed: Of the order, if the section has none.
        tokenizer: The tokenizer, if the section has none.
        num_shards: Ranks that share the data, given by the parallel mode; None asks MindSpore's communication.
        shard_id: This rank.

    Raises:
        OptionError: A key is unknown, missing, or contradicts the trainer.
        PrefStreamError: As `ms_prefstream.stream` does.
    """
    given = plain_keys(keys, f"{_SECTION}.")
    for name, value in (("seed", seed), ("tokenizer", tokenizer), ("num_shards", num_shards), ("shard_id", shard_id)):
        if value is None:
            continue
        if name in ("num_shards", "shard_id") and (found := given.pop(name, None)) not in (None, value):
            raise OptionError(
                f"{_SECTION}.{name} is {found}, but the parallel mode makes it {value}. Leave {name} out: "
                "the shards follow the parallel mode."
            )
        given.setdefault(name, value)
    remote = group_of(Remote, given)
    named = given.pop("source", None), given.pop("dataset_dir", None)
    source, side = source_from(*named, remote=remote), given.pop("split", None)
    check_sections(given, ("task", "batching"), f"{_SECTION}.")
    if "tokenizer" not in given:
        raise OptionError(
            f"{_SECTION}.tokenizer is missing; expected a directory, a tokenizer.json, a .model file or 'bytes', and "
            "null for rows that are tokenized already."
        )
    given["task"] = _made(given["task"], TASK_TYPES, f"{_SECTION}.task")
    given["batching"] = _batching(given["batching"], batch_size)
    given["format"] = format_from(given.get("format", "auto"), f"{_SECTION}.format")
    if side is not None:
        source = side_of(source, side, given["format"], given.get("fields"), remote)
    return stream(source, **given)


def plain_keys(keys: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns the options of `mps.stream` that a section names, as plain values.

    Args:
        keys: The section.
        where: What names of keys begin with in messages.

    Raises:
        OptionError: A key is unknown.
    """
    given = {name: _plain(value) for name, value in keys.items()}
    refuse_unknown(given, _KEYS, where)
    return given


def check_sections(given: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    """Checks that the task and the batching are sections, or objects that are made already.

    Raises:
        OptionError: One is missing or something else.
    """
    for name in names:
        value = given.get(name)
        if value is None or (isinstance(value, _NO_OBJECT) and not (name == "batching" and isinstance(value, str))):
            found = "missing" if value is None else repr(value)
            raise OptionError(f"{where}{name} is {found}; expected a section such as {name}: {_EXAMPLES[name]}.")


def source_from(source: Any, folder: Any = None, where: str = f"{_SECTION}.", remote: Remote = LOCAL) -> Any:
    """Returns the source, under either name; an empty string is no name. The parts of a mix are opened."""
    named = [value for value in (source, folder) if value is not None and not (isinstance(value, str) and not value)]
    if len(named) == 2 and named[0] != named[1]:
        raise OptionError(
            f"{where}source is {source!r} and {where}dataset_dir is {folder!r}; both name the data. Keep one of them."
        )
    if not named:
        raise OptionError(
            f"{where}source is missing; expected a path, a glob, a list of them, or {{mix: [{{source: ..., weight: "
            "0.7}, ...]}."
        )
    return _mixed(named[0], where, remote) if isinstance(named[0], dict) else named[0]


def _mixed(section: dict[str, Any], where: str, remote: Remote) -> Any:
    """Returns the mix of a section: ``{mix: [{source: a.jsonl, weight: 0.7}, b.jsonl], stop: all}``."""
    rest, parts = {name: value for name, value in section.items() if name != "mix"}, section.get("mix")
    if not isinstance(parts, list):
        raise OptionError(f"{where}source is {section!r}; a section there expects mix: with a list of parts.")
    made = []
    for number, part in enumerate(parts):
        place = f"{where}source.mix[{number}]"
        part = part if isinstance(part, dict) else {"source": part}
        if "format" in part:
            part = {**part, "format": format_from(part["format"], f"{place}.format")}
        made.append(_called(Part, part, place))
    return _called(mix, {"parts": made, **vars(remote), **rest}, f"{where}source")


def _batching(value: Any, batch_size: int | None) -> Any:
    """Returns the batching rule with the trainer's batch size; a section that gives another one is an error.

    A token budget has none, whatever the trainer says.
    """
    where = f"{_SECTION}.batching"
    value = {"type": value} if isinstance(value, str) else value
    if isinstance(value, dict):
        found, budget = value.get("batch_size"), value.get("max_tokens")
        if found is None and budget is None and batch_size is not None:
            value = {**value, "batch_size": batch_size}
    else:
        found, budget = getattr(value, "batch_size", None), None
    if found is None or budget is not None or batch_size in (None, found):
        return _made(value, BATCHING_RULES, where)
    raise OptionError(
        f"{where}.batch_size is {found}, but the trainer makes steps of {batch_size} rows on a rank "
        "(runner_config.batch_size, 1 if it is not set, times what the parallel mode multiplies it with). Set "
        f"runner_config.batch_size, or give no {where}.batch_size where the trainer's is right."
    )


def format_from(value: Any, where: str) -> Any:
    """Returns the format that a name or a section describes."""
    return _made(value, {name: preset.factory for name, preset in formats.PRESETS.items()}, where)


def _made(value: Any, kinds: Mapping[str, Callable[..., Any]], where: str) -> Any:
    """Returns the object that a section with a `type` describes; anything else as it is."""
    if not isinstance(value, dict):
        return value
    kind = str(value.get("type"))
    if kind not in kinds:
        found = f"{where}.type is {kind!r}" if "type" in value else f"{where}.type is missing"
        raise OptionError(f"{found}; expected one of {', '.join(kinds)}.")
    return _called(kinds[kind], {name: given for name, given in value.items() if name != "type"}, f"{where} ({kind})")


def _called(make: Callable[..., Any], options: dict[str, Any], where: str) -> Any:
    """Calls with keywords; names an unknown or a missing one before anything is made."""
    known = inspect.signature(make).parameters
    refuse_unknown(options, tuple(known), f"{where}: ")
    for name, option in known.items():
        if option.default is inspect.Parameter.empty and name not in options:
            raise OptionError(f"{where}: {name} is missing. Options: {', '.join(known)}.")
    return make(**options)


def _plain(value: Any) -> Any:
    """Returns sections as dicts and lists, whatever classes a configuration uses; other objects as they are."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value


def refuse_unknown(given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Raises `OptionError` for a key that is not known, with the nearest one."""
    for name in given:
        if name not in known:
            guess = nearest(name, known)
            hint = f" Did you mean {guess}?" if guess else ""
            raise OptionError(f"{where}{name} is not an option.{hint} Options: {', '.join(known)}.")
