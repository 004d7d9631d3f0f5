"""PKU-SafeRLHF: two responses, with one verdict on which is better and one on which is safer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ms_prefstream.errors import OptionError
from ms_prefstream.formats.base import OneRecord
from ms_prefstream.formats.fields import margin_of, one_of, text
from ms_prefstream.formats.record import Message, Pair


def safe_rlhf(by: Literal["better", "safer"] = "better") -> OneRecord:
    """PKU-SafeRLHF rows; `better_response_id` (or `safer_response_id`), 0 or 1, names the preferred response.

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


def read_safe_rlhf(row: Mapping[str, Any], verdict: str) -> Pair:
    """One row as a pair; `verdict` is the field with the preferred response's number."""
    better = one_of(row, verdict, (0, 1))
    return Pair(
        (Message("user", text(row, "prompt")),),
        (Message("assistant", text(row, f"response_{better}")),),
        (Message("assistant", text(row, f"response_{1 - better}")),),
        margin_of(row),
    )
