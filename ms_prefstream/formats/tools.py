"""Tool schemas and tool calls, which some data sets keep as JSON text inside a string."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ms_prefstream.formats.fields import wrong_type


def tools_of(row: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """The tool schemas of a row's field `tools`: a list, or the JSON text of one. None when there are none."""
    value = row.get("tools")
    if value is None:
        return None
    schemas = value
    if isinstance(value, str):
        if not value.strip():
            return None
        try:
            schemas = json.loads(value)
        except ValueError:
            raise wrong_type("tools", value, "a list of tool schemas, or JSON text of such a list") from None
    if isinstance(schemas, np.ndarray):
        schemas = schemas.tolist()
    if not isinstance(schemas, (list, tuple)):
        raise wrong_type("tools", value, "a list of tool schemas, or JSON text of such a list")
    return tuple(schemas) or None


def tool_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """The OpenAI form of a ShareGPT function_call turn.

    ``'{"name": "add", "arguments": {"a": 1}}'`` -> ``[{"type": "function", "function": {"name": "add", ...}}]``

    Args:
        value: JSON text of one call or of a list of calls, each with `name` and `arguments`.
        where: What errors call the turn.
    """
    expected = "JSON text of a call {'name', 'arguments'}, or of a list of calls"
    try:
        calls = json.loads(value)
    except (TypeError, ValueError):
        raise wrong_type(where, value, expected) from None
    if isinstance(calls, dict):
        calls = [calls]
    if not isinstance(calls, list) or not calls or not all(map(_is_call, calls)):
        raise wrong_type(where, value, expected)
    return [{"type": "function", "function": call} for call in calls]


def check_tool_calls(value: Any, where: str) -> None:
    """Refuse a field `tool_calls` that is not of OpenAI's form, or of the shorter one without `function`.

    Raises:
        RowError: bad_type; templates leave out what they do not find, without a word.
    """
    calls = value if isinstance(value, (list, tuple, np.ndarray)) else [value]
    for call in calls:
        if not (isinstance(call, Mapping) and _is_call(call.get("function", call))):
            raise wrong_type(
                f"a call in the tool_calls of {where}", call, "{'type': 'function', 'function': {'name', 'arguments'}}"
            )


def _is_call(call: Any) -> bool:
    return isinstance(call, Mapping) and isinstance(call.get("name"), str)
