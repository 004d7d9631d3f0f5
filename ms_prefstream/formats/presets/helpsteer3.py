"""HelpSteer3 preference: a conversation, two responses and a signed verdict."""

from __future__ import annotations

from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats.auto import NUMBER, TEXT, TURNS, needs
from ms_prefstream.formats.base import OneRecord, Row, pair_of
from ms_prefstream.formats.fields import missing, one_of, present
from ms_prefstream.formats.messages import turns
from ms_prefstream.formats.record import Pair
from ms_prefstream.formats.registry import preset


@preset(needs(context=TURNS, response1=TEXT, response2=TEXT, overall_preference=NUMBER))
def helpsteer3() -> OneRecord:
    """Reads HelpSteer3 rows; a negative `overall_preference` prefers `response1`, a positive one `response2`.

    ``{context: [user Hi], response1: "Hello", response2: "What", overall_preference: -2}`` ->
    ``Pair(prompt=(user Hi), chosen=(assistant Hello), rejected=(assistant What), margin=2)``

    The preference goes from -3 (`response1` is much better) to 3; 0 is a tie. The margin is its size, unless the row
    has a field `margin`.
    """
    return OneRecord("helpsteer3", read_helpsteer3)


def read_helpsteer3(row: Row) -> Pair:
    """Returns one row as a pair."""
    preference = one_of(row, "overall_preference", range(-3, 4))
    if preference == 0:
        raise RowError(Reason.TIE, "'overall_preference' is 0: the row states no preference")
    better, worse = ("response1", "response2") if preference < 0 else ("response2", "response1")
    prompt = turns(present(row, "context"), "context", "user")
    if not prompt:
        raise missing(row, "context")
    return pair_of(row, prompt, better, worse, margin=float(abs(preference)))
