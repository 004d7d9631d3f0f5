"""Settings of a cache: everything that decides its bytes, and whether a stream may read or replace it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from ms_prefstream.cache.layouts import Job
from ms_prefstream.encode.build import fingerprint_of, given_text
from ms_prefstream.encode.tokenizer import Tokenizer
from ms_prefstream.errors import OptionError, PrefStreamError, StateError
from ms_prefstream.mindrecord.manifest import FORMAT_VERSION, check_files, read_manifest, without_reference
from ms_prefstream.sources.cached import CachedRows, sources_in
from ms_prefstream.sources.content_hash import whole_hash
from ms_prefstream.steps.data import Material
from ms_prefstream.tasks.base import Task
from ms_prefstream.version import VERSION

_SAMPLES = ("version", "layout", "task", "width", "pad_token_id", "fingerprint", "contents")
_FILES = ("rows_per_part", "library")
_DEFAULTS = {"boundary": "joint", "special_tokens_in_content": "escape"}
_NOTHING_GIVEN: Mapping[str, Any] = {"template": None, **_DEFAULTS}


def can_resume(data: Material) -> bool:
    """Returns whether the source can be read again, so that the parts of an interrupted run still hold its rows."""
    return data.records is not None or bool(getattr(data.source, "paths", ()))


def describe(job: Job, data: Material) -> dict[str, Any]:
    """Returns everything that decides the bytes of a cache, as plain values that compare with those of a manifest."""
    tokenizer, fixed = data.recipe.tokenizer, job.layout != "ragged"
    values = {
        "version": FORMAT_VERSION,
        "layout": job.layout,
        "task": task_options(job.task),
        "width": job.width if fixed else None,
        "pad_token_id": job.pad_id,
        "rows_per_part": job.rows_per_part,
        "source": data.source.name,
        "tokenizer": None if tokenizer is None else tokenizer.name,
        "fingerprint": dict(data.fingerprint),
        # Fingerprints look at samples of large sources. Parts of one cache must come from one state of all rows.
        "contents": whole_hash(data.source) if can_resume(data) else None,
        "on_bad_row": "raise" if data.raise_malformed else "drop",
        "library": VERSION,
        "reference_id": data.source.reference_id if job.reference else None,
    }
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def task_options(task: Task) -> dict[str, Any]:
    """Returns a task as plain values: its name and all options, given or not."""
    options: Mapping[str, Any] = dataclasses.asdict(task)  # type: ignore[call-overload]  # tasks are dataclasses
    return {"name": task.name, **options}


def has_samples(folder: str, about: Mapping[str, Any], complete: bool = False) -> bool:
    """Returns whether a folder is a cache of these samples, whatever their files and the name of their source.

    Args:
        folder: The folder; need not exist.
        about: What would be written, as plain values for JSON.
        complete: Whether all files must exist.
    """
    try:
        manifest = read_manifest(folder)
        if complete:
            check_files(folder, without_reference(manifest))
    except PrefStreamError:
        return False
    return all(manifest.about.get(name) == about[name] for name in _SAMPLES)


def differences(folder: str, about: Mapping[str, Any]) -> str:
    """Returns how a cache differs from what would be written, as the continuation of a sentence."""
    try:
        known = read_manifest(folder).about
    except PrefStreamError:
        return ""
    found = list(_task_changes(known["task"], about["task"]))
    then, now = known["fingerprint"], about["fingerprint"]
    found += [
        f"{name} was another one: {then.get(name)!r}, and {now.get(name)!r} now"
        for name in dict.fromkeys([*then, *now])
        if name != "task" and then.get(name) != now.get(name)
    ]
    found += [
        f"{name} was {known.get(name)!r} and is {about[name]!r} now"
        for name in (*_SAMPLES, *_FILES)
        if name not in ("task", "fingerprint") and known.get(name) != about[name]
    ]
    return f" ({'; '.join(found)})" if found else " with the same samples"


def check_cache(
    cache: CachedRows,
    task: Task,
    tokenizer: Tokenizer | None = None,
    encoding: Mapping[str, Any] = _NOTHING_GIVEN,
    format: Any = "auto",
    template: str | None = "auto",
) -> None:
    """Raises if a cache was written with other settings.

    Args:
        cache: The cache.
        task: The stream's.
        tokenizer: The stream's. If none was given, only options that are not left at their defaults are compared.
        encoding: The stream's settings that decide tokens, by name.
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
    # The layout of DPO batches does not change the samples.
    changes = list(_task_changes(about["task"], task_options(task), ignored="layout" if task.name == "dpo" else ""))
    known, now = dict(about["fingerprint"]), dict(encoding)
    if tokenizer is None:
        now["template"] = _template_without_tokenizer(template, known["template"])
        compared = ["template", *(name for name, default in _DEFAULTS.items() if now[name] != default)]
    else:
        compared = ["tokenizer", "template", *_DEFAULTS]
    for name in compared:
        if known[name] != now[name]:
            then_shown, now_shown = repr(known[name]), repr(now[name])
            if name == "tokenizer" and tokenizer is not None:
                then_shown, now_shown = f"{about[name]} ({known[name]})", f"{tokenizer.name} ({now[name]})"
            changes.append(f"{name} was {then_shown} and is {now_shown} now")
    if changes:
        raise StateError(
            f"the cache {cache.name} was written with other settings: {'; '.join(changes)}. Use the former settings, "
            "or write the cache again."
        )


def encoding_of(cache: CachedRows, task: Task) -> dict[str, Any]:
    """Returns the settings that decided the tokens of a cache, by name, for states and for caches made of it."""
    known = cache.manifest.about["fingerprint"]
    return {name: value for name, value in known.items() if name != "data"} | {"task": repr(task)}


def tokenizer_of(cache: CachedRows) -> str:
    """Returns what reports say about the tokenizer of a cache."""
    return f"{cache.manifest.about['tokenizer'] or 'none'}, when the cache was written"


def has_reference_logps(source: Any, layout: str) -> bool:
    """Returns whether a cache of this layout gets the reference log-probabilities of its source.

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
    """Returns whether batches have reference log-probabilities: all caches of the source must have them, or none.

    Raises:
        OptionError: Only some parts have them, or batches of this kind have no columns for them.
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


def _task_changes(then: Mapping[str, Any], now: Mapping[str, Any], ignored: str = "") -> Iterator[str]:
    """Yields how two tasks differ, given as `task_options`."""
    if then["name"] != now["name"]:
        yield f"task was {then['name']!r} and is {now['name']!r} now"
        return
    for name in dict.fromkeys([*then, *now]):
        if then.get(name) != now.get(name) and name != ignored:
            yield f"{name} of the task {now['name']} was {then.get(name)!r} and is {now.get(name)!r} now"


def _template_without_tokenizer(option: str | None, known: str | None) -> str | None:
    """Returns the fingerprint that an option stands for; `known` where the option fits any chat template."""
    if option == "auto" or (option == "chat" and known is not None):
        return known
    return option if option == "chat" else fingerprint_of(given_text(option))
