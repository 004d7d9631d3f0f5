"""One spelling for one value, before a format reads a row: missing values, JSON text, nulls that Arrow filled in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

import numpy as np
import orjson

LISTS_OR_OBJECTS = frozenset(
    {
        "messages",
        "conversations",
        "tools",
        "responses",
        "completions",
        "labels",
        "answers",
        "scores",
        "rejected_messages",
        "rejected_tools",
        "chat_template_kwargs",
    }
)
"""Fields that hold a list or an object, never text: a string there is its JSON text, an empty one a missing field."""

_NUMBERS = frozenset({"margin", "score_chosen", "score_rejected", "score_A", "score_B", "score_ratio"})
_CALLS = frozenset(
    {
        *("tools", "rejected_tools", "functions", "tool_calls", "function_call", "function", "arguments"),
        "chat_template_kwargs",
    }
)
_MAY_BE_NAN = (float, np.generic, Decimal)


def unsettled(names: Iterable[str], types: Iterable[type]) -> tuple[str, ...]:
    """Returns the fields whose spelling depends on their value, given the names and types of a row's fields."""
    return tuple(
        name
        for name, kind in zip(names, types, strict=True)
        if issubclass(kind, _MAY_BE_NAN)
        or kind.__module__.startswith("pandas.")
        or (issubclass(kind, str) and (name in LISTS_OR_OBJECTS or name in _NUMBERS))
    )


def respelled(row: dict[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    """Returns a row without missing values and with JSON text as what it stands for; `row` itself if nothing changes.

    ``{"margin": nan, "system": <NA>, "tools": "[]"}`` -> ``{"tools": []}``

    Args:
        row: A row.
        fields: Those that `unsettled` returned.
    """
    found = row
    for name in fields:
        value = row[name]
        if is_missing(value) or (isinstance(value, str) and not value.strip()):
            found = {key: kept for key, kept in found.items() if key != name}
        elif name in LISTS_OR_OBJECTS and isinstance(value, str):
            parsed = parsed_json(value)
            if parsed is not value:
                found = {**found, name: parsed}
    return found


def is_missing(value: Any) -> bool:
    """Returns whether a value stands for none: null, NaN, NaT or NA."""
    if value is None:
        return True
    if isinstance(value, (str, Mapping, list)):
        return False
    try:
        return bool(value != value)
    except TypeError:  # pandas.NA is neither equal nor unequal to itself
        return True
    except ValueError:  # the comparison of an array is an array
        return False


def parsed_json(value: Any) -> Any:
    """Returns the list or object that a string is the JSON text of; any other value itself."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
    return value


def without_filled_nulls(row: Any) -> Any:
    """Returns a row without the nulls inside tools and tool calls.

    Arrow has one set of keys for all rows of a column, and fills those that a row lacks with null:

    ``{"tool_calls": [{"arguments": {"city": "Oslo", "day": None}}]}`` ->
    ``{"tool_calls": [{"arguments": {"city": "Oslo"}}]}``
    """
    return _pruned_object(row, False) if isinstance(row, (dict, Mapping)) else row


def _pruned_object(value: Mapping[Any, Any], inside: bool) -> Any:
    """Returns an object without nulls in the objects of tools and calls; itself if there are none."""
    found: Any = value
    for key, item in value.items():
        if item is None:
            if inside:
                found = {k: v for k, v in found.items() if k != key}
            continue
        kind = type(item)
        if kind is str:
            continue
        if kind is np.ndarray and item.dtype == object:
            item, kind = item.tolist(), list
        if kind is dict or kind is list:
            pruned = (_pruned_object if kind is dict else _pruned_list)(item, inside or key in _CALLS)
            if pruned is not item:
                found = {**found, key: pruned}
    return found


def _pruned_list(value: list[Any], inside: bool) -> list[Any]:
    first = next((item for item in value if item is not None), None)  # all items of an Arrow list have one type
    if type(first) is dict:
        items = [item if item is None else _pruned_object(item, inside) for item in value]
    elif type(first) is list:
        items = [item if item is None else _pruned_list(item, inside) for item in value]
    else:
        return value
    return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
