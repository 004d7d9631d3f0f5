"""stack-exchange-paired: a question and two of its answers, ordered by votes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ms_prefstream.formats.base import OneRecord
from ms_prefstream.formats.fields import margin_of, text
from ms_prefstream.formats.record import Message, Pair


def stack_exchange() -> OneRecord:
    """Stack Exchange pairs; `response_j` is the better answer, `response_k` the worse one.

    ``{question: "How?", response_j: "So.", response_k: "No."}`` ->
    ``Pair(prompt=(user How?), chosen=(assistant So.), rejected=(assistant No.))``

    Optional: `margin` (a float).
    """
    return OneRecord("stack_exchange", read_stack_exchange)


def read_stack_exchange(row: Mapping[str, Any]) -> Pair:
    """One row as a pair."""
    return Pair(
        (Message("user", text(row, "question")),),
        (Message("assistant", text(row, "response_j")),),
        (Message("assistant", text(row, "response_k")),),
        margin_of(row),
    )
