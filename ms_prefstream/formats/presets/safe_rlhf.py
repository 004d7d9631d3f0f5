"""PKU-SafeRLHF: two responses, with one verdict on which is better and one on which is safer."""

from __future__ import annotations

from typing import Literal

from ms_prefstream.errors import OptionError
from ms_prefstream.formats.auto import NUMBER, TEXT, needs
from ms_prefstream.formats.base import OneRecord, Row, pair_of
from ms_prefstream.formats.fields import one_of
from ms_prefstream.formats.record import Pair
from ms_prefstream.formats.registry import preset


@preset(needs(prompt=TEXT, response_0=TEXT, response_1=TEXT, better_response_id=NUMBER))
def safe_rlhf(by: Literal["better", "safer"] = "better") -> OneRecord:
    """Reads PKU-SafeRLHF rows; `better_response_id` (or `safer_response_id`), 0 or 1, names the preferred response.

    ``{prompt: "How?", response_0: "So.", response_1: "No.", better_response_id: 1, safer_response_id: 0}`` ->
    ``Pair(prompt=(user How?), chosen=(assistant No.), rejected=(assistant So.))``, the other way round by "safer"

    Optional: `margin` (a float).

    Args:
        by: Which verdict is read.

    Raises:
        OptionError: `by` is neither.
    """
    if by not in ("better", "safer"):
        raise OptionError(f"by is {by!r}; allowed: 'better' (the default) or 'safer'.")
    return OneRecord("safe_rlhf", read_safe_rlhf, {"verdict": f"{by}_response_id"})


def read_safe_rlhf(row: Row, verdict: str) -> Pair:
    """Returns one row as a pair; `verdict` is the field with the number of the preferred response."""
    better = one_of(row, verdict, (0, 1))
    return pair_of(row, "prompt", f"response_{better}", f"response_{1 - better}")
