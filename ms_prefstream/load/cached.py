"""A cache as the source of a stream: it fits only the task, tokenizer and template that it was written with."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from ms_prefstream.encode.build import AUTO
from ms_prefstream.encode.template_text import given_text, template_hash
from ms_prefstream.encode.tokenizer import Tokenizer
from ms_prefstream.errors import CacheError, OptionError, StateError, printable
from ms_prefstream.formats.carry import Carry
from ms_prefstream.load.loader import ADDED_OPTIONS
from ms_prefstream.mindrecord.ragged import has_pairs, has_scores
from ms_prefstream.sources.base import sources_in
from ms_prefstream.sources.cached import CachedRows
from ms_prefstream.tasks import TASKS
from ms_prefstream.tasks.base import Task, added_defaults, given_options, traits

Unit = TypeVar("Unit", bound=Hashable)

_DEFAULTS = {"boundary": AUTO, "special_tokens_in_content": "escape"}
_ADDED = {name: default for name, default in ADDED_OPTIONS.items() if name not in ("template_date", "carry")}
"""Compared one by one. The day of a template may differ; carried columns have a check of their own."""
_NOTHING_GIVEN: Mapping[str, Any] = {"template": None, **_DEFAULTS}


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
        CacheError: Its samples are none of the task.
        OptionError: A format was given, or the template is none.
        TemplateError: The template's file does not exist.
    """
    if format != "auto":
        raise OptionError(
            f"format is {format!r}, but {cache.name} is a cache, whose rows were read when it was written. Leave it "
            "out."
        )
    about = cache.manifest.about
    changes = list(task_changes(about["task"], task_options(task), traits(task).batch_options))
    known, now = {**_ADDED, **about["fingerprint"]}, {**_ADDED, **encoding}
    if tokenizer is None:
        now["template"] = _template_without_tokenizer(template, known["template"])
        defaults = {**_DEFAULTS, **_ADDED}
        compared = ["template", *(name for name, default in defaults.items() if now[name] != default)]
    else:
        compared = ["tokenizer", "template", *_DEFAULTS, *_ADDED]
    for name in compared:
        if known[name] != now[name]:
            then_shown, now_shown = printable(repr(known[name])), printable(repr(now[name]))
            if name == "tokenizer" and tokenizer is not None:
                then_shown, now_shown = (
                    f"{printable(str(about[name]))} ({printable(str(known[name]))})",
                    f"{tokenizer.name} ({now[name]})",
                )
            changes.append(f"{name} was {then_shown} and is {now_shown} now")
    columns = cache.manifest.columns
    if not changes and (has_pairs(columns), has_scores(columns)) != (task.pairs, traits(task).scores_spans):
        raise CacheError(f"{cache.name} has samples of another kind than the task {task.name} makes. It is damaged.")
    if changes:
        raise StateError(
            f"the cache {cache.name} was written with other settings: {'; '.join(changes)}. Use the former settings, "
            "or write the cache again."
        )


def encoding_of(cache: CachedRows, task: Task, carry: Carry | None = None) -> dict[str, Any]:
    """Returns the settings that decided the tokens of a cache, by name, for states and for caches made of it.

    `carry` are the fields that are carried, all those of the cache or some.
    """
    known = cache.manifest.about["fingerprint"]
    found = {name: value for name, value in known.items() if name not in ("data", "carry")} | {"task": repr(task)}
    return found if carry is None else found | {"carry": carry.text()}


def tokenizer_of(cache: CachedRows) -> str:
    """Returns what reports say about the tokenizer of a cache."""
    return f"{cache.manifest.about['tokenizer'] or 'none'}, when the cache was written"


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
    if packs or task.layout != traits(task).reference_layout:
        raise OptionError(
            f"{have[0].name} has reference log-probabilities, and only batches of "
            f"layout={traits(task).reference_layout or 'paired'!r} (Pad or Bucket) have columns for them. Use that, or "
            "a cache without them."
        )
    return True


def task_options(task: Task) -> dict[str, Any]:
    """Returns a task as plain values: its name and its options, see `given_options`."""
    return {"name": task.name, **given_options(task)}


def task_of(cache: CachedRows) -> Task:
    """Returns the task that a cache was written for.

    Raises:
        StateError: This version has no such task, or another set of options for it.
    """
    options = dict(cache.manifest.about["task"])
    name = options.pop("name")
    try:
        made: Task = TASKS[name](**options)
    except (KeyError, TypeError):
        raise StateError(
            f"{cache.name} was written for a task {name!r} that this version does not make; expected one of "
            f"{', '.join(TASKS)} with its present options. Read it with the version that wrote it."
        ) from None
    return made


def task_changes(then: Mapping[str, Any], now: Mapping[str, Any], ignored: Sequence[str] = ()) -> Iterator[str]:
    """Yields how two tasks differ, given as `task_options`."""
    if then["name"] != now["name"]:
        yield f"task was {then['name']!r} and is {now['name']!r} now"
        return
    left_out = added_defaults(TASKS.get(now["name"]))
    then, now = {**left_out, **then}, {**left_out, **now}
    for name in dict.fromkeys([*then, *now]):
        if then.get(name) != now.get(name) and name not in ignored:
            known = printable(repr(then.get(name)))
            yield f"{printable(name)} of the task {now['name']} was {known} and is {now.get(name)!r} now"


def _template_without_tokenizer(option: str | None, known: str | None) -> str | None:
    """Returns the fingerprint that an option stands for; `known` where the option fits any chat template."""
    if option == "auto" or (option == "chat" and known is not None):
        return known
    return option if option == "chat" else template_hash(given_text(option))
