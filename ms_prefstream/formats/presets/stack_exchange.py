"""stack-exchange-paired: a question and two of its answers, ordered by votes."""

from __future__ import annotations

from ms_prefstream.formats.auto import TEXT, needs
from ms_prefstream.formats.base import OneRecord, Row, pair_of
from ms_prefstream.formats.record import Pair
from ms_prefstream.formats.registry import preset


@preset(needs(question=TEXT, response_j=TEXT, response_k=TEXT))
def stack_exchange() -> OneRecord:
    """Reads Stack Exchange pairs; `response_j` is the better answer, `response_k` the worse one.

    ``{question: "How?", response_j: "So.", response_k: "No."}`` ->
    ``Pair(prompt=(user How?), chosen=(assistant So.), rejected=(assistant No.))``

    Optional: `margin` (a float).
    """
    return OneRecord("stack_exchange", read_stack_exchange)


def read_stack_exchange(row: Row) -> Pair:
    """Returns one row as a pair."""
    return pair_of(row, "question", "response_j", "response_k")
