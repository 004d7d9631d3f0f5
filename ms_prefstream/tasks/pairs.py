"""What DPO and reward models share: two sides, cut together, that must still differ."""

from __future__ import annotations

from collections.abc import Sequence as Many

from ms_prefstream.encode.fit import Budget, Flat, fit
from ms_prefstream.errors import Reason, RowError
from ms_prefstream.tasks.sample import Sequence


def fit_pair(sides: Many[Flat], limits: Budget) -> tuple[Sequence, ...]:
    """Both sides within their budget.

    Raises:
        RowError: If a side has nothing to train on, or the sides no longer differ.
    """
    for name, side in zip(("chosen", "rejected"), sides, strict=True):
        if not side.spans:
            raise RowError(Reason.NO_RESPONSE_TOKENS, f"the {name} side has no response token")
    sequences = fit(sides, limits)
    chosen, rejected = sequences
    if len(chosen.ids) == len(rejected.ids) and (chosen.ids == rejected.ids).all():
        if chosen.truncated or rejected.truncated:
            raise RowError(
                Reason.IDENTICAL_AFTER_TRUNCATION, f"both sides are the same within {limits.max_length} tokens"
            )
        raise RowError(Reason.IDENTICAL, "chosen and rejected become the same tokens")
    return sequences
