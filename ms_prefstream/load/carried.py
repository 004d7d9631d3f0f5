"""The fields that a stream carries: those that the option names, or those of caches, each with its dtype."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from ms_prefstream.errors import OptionError, RowError
from ms_prefstream.formats.carry import CarriedField, Carry, carry_of
from ms_prefstream.sample import Ready
from ms_prefstream.sources.cached import CachedRows, caches_in, only_caches
from ms_prefstream.sources.concat import begin_pass
from ms_prefstream.sources.mix import parts_of

_GUESSED_BY = 256  # rows of each part of a mix

_Fields = Mapping[str, CarriedField]  # by the name of the column


def carried_by(source: Any, asked: Carry | None) -> Carry | None:
    """Returns the fields that a stream of a source carries, each with its dtype; None for none.

    Args:
        source: An opened source, or a mix.
        asked: The option. None takes what all parts carry, if all of them are caches.

    Raises:
        OptionError: A cache does not have a column like this, or the first rows cannot be read beforehand.
    """
    caches = caches_in(source)
    have = [_fields_of(cache) for cache in caches]
    if asked is None:
        common = have[0].values() if only_caches(source) else ()
        found = [one for one in common if all(one == fields.get(one.name) for fields in have)]
        return Carry(found) if found else None
    for cache, fields in zip(caches, have, strict=True):
        _check(cache, fields, asked)
    if only_caches(source):
        chosen = Carry(have[0][one.name] for one in asked.fields)
    else:
        known = {name: str(one.dtype) for fields in reversed(have) for name, one in fields.items()}
        chosen = asked.guessed(() if asked.complete else _first_rows(source), known)
    for cache, fields in zip(caches, have, strict=True):
        _check(cache, fields, chosen)
    return chosen


def _fields_of(cache: CachedRows) -> _Fields:
    """Returns the fields that a cache carries, in the order of its columns."""
    text = cache.manifest.about["fingerprint"].get("carry")
    carry = None if text is None else carry_of(json.loads(text))
    order = list(cache.manifest.columns)
    fields = () if carry is None else sorted(carry.fields, key=lambda one: order.index(one.name))
    return {one.name: one for one in fields}


def _check(cache: CachedRows, fields: _Fields, asked: Carry) -> None:
    """Checks that a cache carries these fields, as far as dtype and default are stated."""
    for one in asked.fields:
        found = fields.get(one.name)
        has = ", ".join(f"{field.path} ({field.dtype})" for field in fields.values()) or "nothing"
        if found is None or one.path not in (found.path, found.name):
            raise OptionError(
                f"carry names {one.path!r}, but the cache {cache.name} carries {has}. Write the cache again with "
                "it, or leave it out."
            )
        if one.dtype is not None and one.spec != found.spec:
            raise OptionError(
                f"carry has {one.spec!r} for {one.path!r}, but the cache {cache.name} was written with {found.spec!r}. "
                "Name the field alone, as in a list, or write the cache again."
            )


def _first_rows(source: Any) -> Iterator[Any]:
    """Yields the raw rows by which dtypes are guessed, the same ones on every rank."""
    for part in parts_of(source):
        if getattr(part, "once", False) or getattr(part, "continues", False):
            raise OptionError(
                f"carry names fields without their dtypes, which the first rows show, but {part.name} can be read only "
                'once. State them, as carry={"answer": "text", "id": "int64"}.'
            )
        rows = (raw for _, raw in begin_pass(part, 0)[1])
        yield from (raw for raw in itertools.islice(rows, _GUESSED_BY) if not isinstance(raw, (Ready, RowError)))
