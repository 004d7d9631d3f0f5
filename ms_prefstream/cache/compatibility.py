"""Settings of a cache: everything that decides its bytes, and whether a cache that exists holds the same samples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ms_prefstream.cache.layouts import Job
from ms_prefstream.errors import OptionError, PrefStreamError, printable
from ms_prefstream.load.cached import task_changes, task_options
from ms_prefstream.mindrecord.manifest import FORMAT_VERSION, check_files, read_manifest, without_reference
from ms_prefstream.mindrecord.megatron import MEGATRON
from ms_prefstream.sources.cached import CachedRows
from ms_prefstream.sources.content_hash import whole_hash
from ms_prefstream.steps.data import StreamData
from ms_prefstream.version import VERSION

_SAMPLES = ("version", "layout", "task", "width", "pad_token_id", "fingerprint", "contents")
_FILES = ("rows_per_part", "library")
_NAMES = ("source", "tokenizer", "on_bad_row", "reference_id")


def can_resume(data: StreamData) -> bool:
    """Returns whether the source can be read again, so that the parts of an interrupted run still hold its rows."""
    return data.records is not None or bool(getattr(data.source, "paths", ()))


def describe(job: Job, data: StreamData) -> dict[str, Any]:
    """Returns everything that decides the bytes of a cache, as plain values that compare with those of a manifest."""
    tokenizer = data.recipe.tokenizer
    values = {
        "version": FORMAT_VERSION,
        "layout": job.layout,
        "task": task_options(job.task),
        "width": job.width if job.pads else None,
        "pad_token_id": job.pad_id,
        "rows_per_part": job.rows_per_part,
        "source": data.source.name,
        "tokenizer": None if tokenizer is None else tokenizer.name,
        "fingerprint": data.fingerprints(),
        # Fingerprints look at samples of large sources. Parts of one cache must come from one state of all rows.
        "contents": whole_hash(data.source) if can_resume(data) else None,
        "on_bad_row": "raise" if data.raise_malformed else "drop",
        "library": VERSION,
        "reference_id": data.source.reference_id if job.reference else None,
    }
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def has_samples(folder: str, about: Mapping[str, Any], complete: bool = False) -> bool:
    """Returns whether a folder is a cache of these samples, whatever their files and the name of their source.

    All its files must exist if it is to be `complete`.
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
    found = changes(known, about)
    return f" ({'; '.join(found)})" if found else " with the same samples"


def changes(known: Mapping[str, Any], about: Mapping[str, Any], all_of_them: bool = False) -> list[str]:
    """Returns how the settings of a cache, see `describe`, differ from those that it was written with, as clauses.

    Names that change no sample, and the treatment of bad rows, are compared only with `all_of_them`.
    """
    found = list(task_changes(known["task"], about["task"]))
    then, now = known["fingerprint"], about["fingerprint"]
    found += [
        f"{printable(name)} was another one: {printable(repr(then.get(name)))}, and {now.get(name)!r} now"
        for name in dict.fromkeys([*then, *now])
        if name != "task" and then.get(name) != now.get(name)
    ]
    found += [
        f"{name} was {printable(repr(known.get(name)))} and is {about.get(name)!r} now"
        for name in (*_SAMPLES, *_FILES, *(_NAMES if all_of_them else ()))
        if name not in ("task", "fingerprint") and known.get(name) != about.get(name)
    ]
    return found


def has_reference_logps(source: Any, layout: str) -> bool:
    """Returns whether a cache of this layout gets the reference log-probabilities of its source.

    The trainers of `megatron` compute their own.

    Raises:
        OptionError: They would be lost.
    """
    have = isinstance(source, CachedRows) and source.reference_id is not None
    if have and layout == "ragged":
        raise OptionError(
            f"{source.name} has reference log-probabilities, which a second ragged cache of it would lose. Copy the "
            "folder instead, or write the cache from the text."
        )
    return have and layout != MEGATRON
