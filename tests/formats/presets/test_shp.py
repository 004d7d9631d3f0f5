from __future__ import annotations

import pytest

from ms_prefstream.errors import OptionError, Reason
from ms_prefstream.formats import ManyRecords, shp
from ms_prefstream.formats.record import Pair

from ..conversations import assistant, refusal, user

ROW = {
    "history": "How?",
    "human_ref_A": "So.",
    "human_ref_B": "No.",
    "labels": 1,
    "score_A": 9,
    "score_B": 3,
    "score_ratio": 3.0,
}
OTHER = {**ROW, "labels": 0, "score_A": 3, "score_B": 9}


def test_polarity_label_1_means_a() -> None:
    assert shp()(ROW) == Pair((user("How?"),), (assistant("So."),), (assistant("No."),), 6.0)
    assert shp()(OTHER) == Pair((user("How?"),), (assistant("No."),), (assistant("So."),), 6.0)


def test_margins() -> None:
    unscored = {k: v for k, v in ROW.items() if not k.startswith("score")}
    assert shp()(unscored).margin is None  # type: ignore[union-attr]
    assert shp()({**ROW, "margin": 0.5}).margin == 0.5  # type: ignore[union-attr]
    refusal(Reason.TIE, shp(), {**ROW, "score_B": 9})
    refusal(Reason.BAD_TYPE, shp(), {**ROW, "labels": 0})
    refusal(Reason.MISSING_FIELD, shp(), {k: v for k, v in ROW.items() if k != "score_B"})


def test_the_ratio_filter_is_inclusive() -> None:
    fmt = shp(min_ratio=3)
    assert isinstance(fmt, ManyRecords)
    assert fmt.count(ROW) == 1 == len(fmt(ROW))
    low = {**ROW, "score_ratio": 2.9}
    assert fmt.count(low) == 0 == len(fmt(low))
    refusal(Reason.MISSING_FIELD, fmt.count, {k: v for k, v in ROW.items() if k != "score_ratio"})


@pytest.mark.parametrize("ratio", [0, 0.5, float("nan")])
def test_the_ratio_is_checked(ratio: float) -> None:
    with pytest.raises(OptionError, match="min_ratio"):
        shp(min_ratio=ratio)


@pytest.mark.parametrize("label", [2, "1", True, None])
def test_labels_are_0_or_1(label: object) -> None:
    refusal(Reason.BAD_TYPE, shp(), {**ROW, "labels": label})
