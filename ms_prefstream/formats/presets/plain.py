"""Plain strings: a prompt with two responses, or with one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ms_prefstream.formats.base import OneRecord
from ms_prefstream.formats.fields import margin_of, text
from ms_prefstream.formats.record import Completion, Message, Pair
from ms_prefstream.formats.turns import lead_with_system


def strings() -> OneRecord:
    """Plain strings; `chosen` is the better response, `rejected` the worse one.

    ``{prompt: "Hi", chosen: "Hello", rejected: "What"}`` ->
    ``Pair(prompt=(user Hi), chosen=(assistant Hello), rejected=(assistant What))``

    ``{prompt, response}`` or ``{prompt}`` instead is a prompt with its response, for RLHF. Optional: `system` (a
    string), `margin` (a float). With ``template=None`` the texts are joined as they are.
    """
    return OneRecord("strings", read_strings)


def read_strings(row: Mapping[str, Any]) -> Pair | Completion:
    """One row as a pair when it has `chosen` or `rejected`, as a completion otherwise."""
    prompt = lead_with_system(row, (Message("user", text(row, "prompt")),))
    if row.get("chosen") is not None or row.get("rejected") is not None:
        chosen, rejected = text(row, "chosen"), text(row, "rejected")
        return Pair(prompt, (Message("assistant", chosen),), (Message("assistant", rejected),), margin_of(row))
    if row.get("response") is None:
        return Completion(prompt)
    return Completion(prompt, (Message("assistant", text(row, "response")),))
