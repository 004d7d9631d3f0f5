"""Whether a cache that exists holds the samples that would be written, and how it differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ms_prefstream.errors import OptionError, PrefStreamError
from ms_prefstream.mindrecord.manifest import check_files, read_manifest, without_reference
from ms_prefstream.sources.cached import CachedRows

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
