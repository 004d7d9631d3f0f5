"""Intel/orca_dpo_pairs: a system message, a question and two answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ms_prefstream.formats.base import OneRecord
from ms_prefstream.formats.fields import margin_of, text
from ms_prefstream.formats.record import Message, Pair


def orca(keep_empty_system: bool = False) -> OneRecord:
    """Orca pairs; `chosen` is the better answer, `rejected` the worse one.

    ``{system: "Be brief.", question: "Hi", chosen: "Hello", rejected: "What"}`` ->
    ``Pair(prompt=(system Be brief., user Hi), chosen=(assistant Hello), rejected=(assistant What))``

    Optional: `system`, `tools` (schemas), `margin` (a float).

    Args:
        keep_empty_system: Whether ``system: ""`` is a system message; by default it is absent.
    """
    return OneRecord("orca", read_orca, {"keep_empty_system": keep_empty_system})


def read_orca(row: Mapping[str, Any], **_: bool) -> Pair:
    """One row as a pair; `keep_empty_system` is for `with_system_and_tools`, which reads the field `system`."""
    return Pair(
        (Message("user", text(row, "question")),),
        (Message("assistant", text(row, "chosen")),),
        (Message("assistant", text(row, "rejected")),),
        margin_of(row),
    )
