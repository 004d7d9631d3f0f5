"""Stanford Human Preferences: two comments on a post, one with more votes."""

from __future__ import annotations

from ms_prefstream.errors import OptionError
from ms_prefstream.formats.auto import NUMBER, TEXT, needs
from ms_prefstream.formats.base import ManyRecords, OneRecord, Row, pair_of
from ms_prefstream.formats.fields import number, one_of, scored_margin
from ms_prefstream.formats.record import Pair
from ms_prefstream.formats.registry import preset


@preset(needs(history=TEXT, human_ref_A=TEXT, human_ref_B=TEXT, labels=NUMBER))
def shp(min_ratio: float | None = None) -> OneRecord | ManyRecords:
    """Reads SHP rows; ``labels`` 1 means that `human_ref_A` is better, 0 that `human_ref_B` is.

    ``{history: "How?", human_ref_A: "So.", human_ref_B: "No.", labels: 1, score_A: 9, score_B: 3}`` ->
    ``Pair(prompt=(user How?), chosen=(assistant So.), rejected=(assistant No.), margin=6)``

    The margin is the difference of the two scores where the row has them (equal scores are a tie), unless the row
    has a field `margin`.

    Args:
        min_ratio: Only rows whose `score_ratio` (better score over worse score, from 1 on) is at least this.

    Raises:
        OptionError: `min_ratio` is below 1.
    """
    if min_ratio is None:
        return OneRecord("shp", read_shp)
    if not min_ratio >= 1:
        raise OptionError(f"min_ratio is {min_ratio!r}; expected a number from 1 on, or None for all rows.")
    return ManyRecords("shp", _read_wanted, _count_wanted, {"min_ratio": float(min_ratio)})


def read_shp(row: Row) -> Pair:
    """Returns one row as a pair."""
    better, worse = ("A", "B") if one_of(row, "labels", (0, 1)) == 1 else ("B", "A")
    margin = None
    if row.get("score_A") is not None or row.get("score_B") is not None:
        margin = scored_margin(row, f"score_{better}", f"score_{worse}")
    return pair_of(row, "history", f"human_ref_{better}", f"human_ref_{worse}", margin)


def _count_wanted(row: Row, min_ratio: float) -> int:
    return int(number(row, "score_ratio") >= min_ratio)


def _read_wanted(row: Row, min_ratio: float) -> tuple[Pair, ...]:
    return (read_shp(row),) if _count_wanted(row, min_ratio) else ()
