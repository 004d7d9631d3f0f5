"""Intel/orca_dpo_pairs: a system message, a question and two answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ms_prefstream.formats.base import OneRecord
from ms_prefstream.formats.fields import margin_of, text
from ms_prefstream.formats.record import Message, Pair
from ms_prefstream.formats.turns import lead_with_system


def orca(keep_empty_system: bool = False) -> OneRecord:
    """Orca pairs; `chosen` is the better answer, `rejected` the worse one.

    ``{system: "Be brief.", question: "Hi", chosen: "Hello", rejected: "What"}`` ->
    ``Pair(prompt=(system Be brief., user Hi), chosen=(assistant Hello), rejected=(assistant What))``

    Optional: `margin` (a float).

    Args:
        keep_empty_system: Whether ``system: ""`` is a system message; by default it is absent.
    """
    return OneRecord("orca", read_orca, {"keep_empty_system": keep_empty_system})


def read_orca(row: Mapping[str, Any], keep_empty_system: bool = False) -> Pair:
    """One row as a pair."""
    return Pair(
        lead_with_system(row, (Message("user", text(row, "question")),), keep_empty_system),
        (Message("assistant", text(row, "chosen")),),
        (Message("assistant", text(row, "rejected")),),
        margin_of(row),
    )
