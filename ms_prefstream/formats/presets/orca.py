"""Intel/orca_dpo_pairs: a system message, a question and two answers."""

from __future__ import annotations

from ms_prefstream.formats.auto import PAIR_OF_TEXTS, TEXT, needs
from ms_prefstream.formats.base import OneRecord, Row, pair_of
from ms_prefstream.formats.record import Pair
from ms_prefstream.formats.registry import preset


@preset(needs(question=TEXT, **PAIR_OF_TEXTS))
def orca(keep_empty_system: bool = False) -> OneRecord:
    """Reads Orca pairs; `chosen` is the better answer, `rejected` the worse one.

    ``{system: "Be brief.", question: "Hi", chosen: "Hello", rejected: "What"}`` ->
    ``Pair(prompt=(system Be brief., user Hi), chosen=(assistant Hello), rejected=(assistant What))``

    Optional: `system`, `tools` (schemas), `margin` (a float).

    Args:
        keep_empty_system: Whether ``system: ""`` is a system message; by default it is absent.
    """
    return OneRecord("orca", read_orca, {"keep_empty_system": keep_empty_system})


def read_orca(row: Row, **_: bool) -> Pair:
    """Returns one row as a pair; `OneRecord` reads the field `system` and the option `keep_empty_system`."""
    return pair_of(row, "question", "chosen", "rejected")
