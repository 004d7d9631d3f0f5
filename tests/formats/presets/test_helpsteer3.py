from __future__ import annotations

import pytest

from ms_prefstream.errors import Reason
from ms_prefstream.formats import helpsteer3
from ms_prefstream.formats.record import Pair

from ..conversations import assistant, raw, refusal, user

CONTEXT = (user("Hi"), assistant("Hello"), user("More"))
ROW = {"context": raw(*CONTEXT), "response1": "one", "response2": "two", "overall_preference": -2}


def test_polarity_negative_means_response1() -> None:
    assert helpsteer3()(ROW) == Pair(CONTEXT, (assistant("one"),), (assistant("two"),), 2.0)
    assert helpsteer3()({**ROW, "overall_preference": 3}) == Pair(
        CONTEXT, (assistant("two"),), (assistant("one"),), 3.0
    )
    assert helpsteer3()({**ROW, "margin": 0.5}).margin == 0.5  # type: ignore[union-attr]


def test_zero_is_a_tie() -> None:
    refusal(Reason.TIE, helpsteer3(), {**ROW, "overall_preference": 0})


@pytest.mark.parametrize("preference", [-4, 4, 0.5, "1", None])
def test_other_preferences_are_refused(preference: object) -> None:
    refusal(Reason.BAD_TYPE, helpsteer3(), {**ROW, "overall_preference": preference})


def test_the_context_must_be_there() -> None:
    refusal(Reason.MISSING_FIELD, helpsteer3(), {**ROW, "context": []})
    refusal(Reason.UNKNOWN_ROLE, helpsteer3(), {**ROW, "context": [{"role": "narrator", "content": "x"}]})
