"""Short ways to write messages and to expect a row's error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats.record import Message


def system(text: str) -> Message:
    return Message("system", text)


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str) -> Message:
    return Message("assistant", text)


def tool(text: str) -> Message:
    return Message("tool", text)


def raw(*messages: Message) -> list[dict[str, Any]]:
    """Messages as a data set writes them."""
    return [{"role": message.role, "content": message.content} for message in messages]


def refusal(reason: Reason, call: Callable[[Any], Any], row: Any) -> str:
    """The sentence of the `RowError` that `call(row)` raises; its reason must be `reason`, its origin empty."""
    with pytest.raises(RowError) as caught:
        call(row)
    assert caught.value.reason is reason
    assert caught.value.origin == ""
    return str(caught.value)
