"""A cache as the source of a stream: only with the task and the tokenizer that it was written with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ms_prefstream.cache.parts import described
from ms_prefstream.encode.build import fingerprint_of, given_text
from ms_prefstream.encode.tokenizer import Tokenizer
from ms_prefstream.errors import OptionError, PrefStreamError, StateError
from ms_prefstream.mindrecord.manifest import check_files, read_manifest, without_reference
from ms_prefstream.sources.base import sources_in
from ms_prefstream.sources.cached import CachedRows
from ms_prefstream.tasks.base import Task

_SAMPLES = ("version", "layout", "task", "width", "pad_token_id", "fingerprint", "contents")
_FILES = ("rows_per_part", "library")


def has_samples(folder: str, about: Mapping[str, Any], whole: bool = False) -> bool:
    """Whether a cache is there with these samples, however they are divided into files and wherever they came from.

    Args:
        folder: Where it would be.
        about: What would be written, as plain values for JSON.
        whole: Whether one that lacks files does not count.
    """
    try:
        manifest = read_manifest(folder)
        if whole:
            check_files(folder, without_reference(manifest))
        known = manifest.about
    except PrefStreamError:
        return False
    return all(known.get(name) == about[name] for name in _SAMPLES)


def differences(folder: str, about: Mapping[str, Any]) -> str:
    """How a cache differs from what would be written (plain values for JSON), as the continuation of a sentence."""
    try:
        known = read_manifest(folder).about
    except PrefStreamError:
        return ""
    found = list(_differences(known, about))
    return f" ({'; '.join(found)})" if found else " with the same samples"


def _differences(known: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in (*_SAMPLES, *_FILES):
        then: Any = known.get(name)
        wanted: Any = now[name]
        if name == "fingerprint":
            for part in dict.fromkeys([*then, *wanted]):
                if part != "task" and then.get(part) != wanted.get(part):
                    yield f"{part} was another one: {then.get(part)!r}, and {wanted.get(part)!r} now"
        elif name == "task" and then["name"] == wanted["name"]:
            for option in dict.fromkeys([*then, *wanted]):
                if then.get(option) != wanted.get(option):
                    yield f"{option} was {then.get(option)!r} and is {wanted.get(option)!r} now"
        elif name == "task":
            yield f"task was {then['name']!r} and is {wanted['name']!r} now"
        elif then != wanted:
            yield f"{name} was {then!r} and is {wanted!r} now"


_DEFAULTS = {"boundary": "joint", "special_tokens_in_content": "escape"}
_NOTHING_GIVEN: Mapping[str, Any] = {"template": None, **_DEFAULTS}


def check_cache(
    cache: CachedRows,
    task: Task,
    tokenizer: Tokenizer | None = None,
    encoding: Mapping[str, Any] = _NOTHING_GIVEN,
    format: Any = "auto",
    template: str | None = "auto",
) -> None:
    """Refuse a cache that was written with other settings.

    Args:
        cache: The cache.
        task: The stream's.
        tokenizer: The stream's. If none was given, only options that are not left at their defaults are compared.
        encoding: What decides about tokens now, by name.
        format: The stream's option.
        template: The stream's option. Without a tokenizer ``chat`` fits every cache that has a chat template.

    Raises:
        StateError: Names what differs, with its value then and now.
        OptionError: A format was given, or the template is none.
        TemplateError: The template's file does not exist.
    """
    if format != "auto":
        raise OptionError(
            f"format is {format!r}, but {cache.name} is a cache, whose rows were read when it was written. Leave it "
            "out."
        )
    about = cache.manifest.about
    known, now = about["fingerprint"], described(task)
    changes = [
        f"{_label(name, about['task'])} was {about['task'].get(name)!r} and is {now.get(name)!r} now"
        for name in dict.fromkeys([*about["task"], *now])
        if about["task"].get(name) != now.get(name) and not (name == "layout" and task.name == "dpo")
    ]
    if about["task"]["name"] != task.name:
        changes = [f"task was {about['task']['name']!r} and is {task.name!r} now"]
    if tokenizer is None:
        encoding = {**encoding, "template": _template(template, known["template"])}
    for name in ("tokenizer", "template", *_DEFAULTS):
        given = name == "template" or tokenizer is not None or (name in _DEFAULTS and encoding[name] != _DEFAULTS[name])
        if given and known[name] != encoding[name]:
            then = _shown(name, known[name], about["tokenizer"])
            changes.append(
                f"{name} was {then} and is {_shown(name, encoding[name], tokenizer.name if tokenizer else None)} now"
            )
    if changes:
        raise StateError(
            f"the cache {cache.name} was written with other settings: {'; '.join(changes)}. Use the former settings, "
            "or write the cache anew."
        )


def encoding_of(cache: CachedRows, task: Task) -> dict[str, Any]:
    """What decided about the tokens of a cache, by name, for states and for caches made of it."""
    known = cache.manifest.about["fingerprint"]
    return {name: value for name, value in known.items() if name != "data"} | {"task": repr(task)}


def tokenizer_of(cache: CachedRows) -> str:
    """What reports say of the tokenizer."""
    return f"{cache.manifest.about['tokenizer'] or 'none'}, when the cache was written"


def has_reference_logps(source: Any, layout: str) -> bool:
    """Whether the samples of a source bring reference log-probabilities into a cache of this layout.

    Raises:
        OptionError: They would be lost.
    """
    have = isinstance(source, CachedRows) and source.reference_id is not None
    if have and layout == "ragged":
        raise OptionError(
            f"{source.name} has reference log-probabilities, which a second ragged cache of it would lose. Copy the "
            "folder instead, or write the cache from the text."
        )
    return have


def has_reference(source: Any, task: Task, packs: bool) -> bool:
    """Whether batches have reference log-probabilities: all caches of the source must have them, or none.

    Raises:
        OptionError: Only some parts have them, or batches of this kind have no place for them.
    """
    sources = list(sources_in(source))
    have = [one for one in sources if isinstance(one, CachedRows) and one.reference_id is not None]
    if not have:
        return False
    for one in sources:
        if one not in have:
            raise OptionError(
                f"{have[0].name} has reference log-probabilities, but {one.name} has none. Add them to a cache of it, "
                "or use caches without them."
            )
    if packs or task.layout != "paired":
        raise OptionError(
            f"{have[0].name} has reference log-probabilities, and only batches of layout='paired' (Pad or Bucket) have "
            "columns for them. Use that, or a cache without them."
        )
    return True


def _template(option: str | None, known: str | None) -> str | None:
    """What an option says of the template without a tokenizer; `known` where it says nothing else."""
    if option == "auto" or (option == "chat" and known is not None):
        return known
    return option if option == "chat" else fingerprint_of(given_text(option))


def _label(name: str, task: Mapping[str, Any]) -> str:
    return f"{name} of the task {task['name']}"


def _shown(name: str, value: Any, tokenizer: str | None) -> str:
    return f"{tokenizer} ({value})" if name == "tokenizer" else repr(value)
