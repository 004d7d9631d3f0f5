"""Tool calls and tool schemas in one spelling each: the same values, however the row writes them.

Rows write the arguments of a call as a mapping or as JSON text. Some templates expect one, some the other, so a
conversation can be shown in both forms, see `CallForm`.

    {"a": 1} and '{"a":1}'  ->  {"a": 1} as a mapping, '{"a": 1}' as text
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ms_prefstream.encode.tracked_values import JsonText


class CallForm(NamedTuple):
    """A form in which a template may expect tool calls.

    Attributes:
        text: Whether arguments are JSON text instead of a mapping.
        none: Whether an empty content beside calls is None, as in OpenAI's form, instead of "".
    """

    text: bool = False
    none: bool = False


FORMS = (CallForm(), CallForm(none=True), CallForm(text=True), CallForm(text=True, none=True))
"""All forms, in the order in which they are tried."""

CALL_KEYS = ("tool_calls", "function_call")
PROBE = {"id": "call00000", "type": "function", "function": {"name": "find", "arguments": {"key": "value"}}}
"""A call that shows which form a template expects."""


def plain_value(value: Any) -> Any:
    """Returns a value of a row with dicts, lists and Python numbers only."""
    if isinstance(value, Mapping):
        return {key: plain_value(item) for key, item in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return plain_value(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain_value(item) for item in value]
    return value


def in_form(value: Any, form: CallForm, hide: Callable[[Any], Any]) -> Any:
    """Returns the calls of a turn in one form: a list of them, or the one call of a ``function_call``.

    Args:
        value: Plain values.
        form: The form of the arguments.
        hide: Makes plain text of control tokens. Arguments are decoded before, so that none comes out of an escape.
    """
    if isinstance(value, list):
        return [in_form(call, form, hide) for call in value]
    if not isinstance(value, dict):
        return hide(value)
    if isinstance(value.get("function"), dict):
        return {key: in_form(item, form, hide) if key == "function" else hide(item) for key, item in value.items()}
    if "arguments" not in value:
        return hide(value)
    arguments = decoded(value["arguments"])
    shown = hide(arguments)
    if form.text and not isinstance(arguments, str):
        shown = JsonText(json.dumps(shown, ensure_ascii=False))
    return {key: shown if key == "arguments" else hide(item) for key, item in value.items()}


def decoded(arguments: Any) -> Any:
    """Returns arguments as values; text that is no JSON, and a JSON object that states a key twice, stay text."""
    if not isinstance(arguments, str):
        return {} if arguments is None else arguments
    if not arguments.strip():
        return {}
    try:
        found = json.loads(arguments, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        return arguments
    return arguments if isinstance(found, str) else found


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(members)
    if len(found) < len(members):
        raise ValueError("a key is stated twice")
    return found


def schema_list(tools: Any) -> list[Any] | None:
    """Returns tool schemas as a list of plain values; a schema that is JSON text is decoded."""
    if tools is None:
        return None
    schemas = [decoded(schema) if isinstance(schema, str) else schema for schema in plain_value(list(tools))]
    return schemas or None
