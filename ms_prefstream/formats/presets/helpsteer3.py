"""HelpSteer3 preference: a conversation, two responses and a signed verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats.base import OneRecord
from ms_prefstream.formats.fields import margin_of, missing, one_of, present, text
from ms_prefstream.formats.messages import turns
from ms_prefstream.formats.record import Message, Pair


def helpsteer3() -> OneRecord:
    """HelpSteer3 rows; a negative `overall_preference` means that `response1` is better, a positive one `response2`.

    ``{context: [user Hi], response1: "Hello", response2: "What", overall_preference: -2}`` ->
    ``Pair(prompt=(user Hi), chosen=(assistant Hello), rejected=(assistant What), margin=2)``

    The preference goes from -3 to 3; 0 is a tie. The margin is its size, unless the row has a `margin` of its own.
    """
    return OneRecord("helpsteer3", read_helpsteer3)


def read_helpsteer3(row: Mapping[str, Any]) -> Pair:
    """One row as a pair."""
    preference = one_of(row, "overall_preference", range(-3, 4))
    if preference == 0:
        raise RowError(Reason.TIE, "'overall_preference' is 0: the row states no preference")
    better, worse = ("response1", "response2") if preference < 0 else ("response2", "response1")
    prompt = turns(present(row, "context"), "context", "user")
    if not prompt:
        raise missing(row, "context")
    margin = margin_of(row)
    return Pair(
        prompt,
        (Message("assistant", text(row, better)),),
        (Message("assistant", text(row, worse)),),
        float(abs(preference)) if margin is None else margin,
    )
