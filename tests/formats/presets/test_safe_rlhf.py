from __future__ import annotations

import pytest

from ms_prefstream.errors import OptionError, Reason
from ms_prefstream.formats import safe_rlhf
from ms_prefstream.formats.record import Pair

from ..conversations import assistant, refusal, user

ROW = {
    "prompt": "How?",
    "response_0": "zero",
    "response_1": "one",
    "better_response_id": 1,
    "safer_response_id": 0,
}


def test_polarity_of_both_verdicts() -> None:
    assert safe_rlhf()(ROW) == Pair((user("How?"),), (assistant("one"),), (assistant("zero"),))
    assert safe_rlhf(by="safer")(ROW) == Pair((user("How?"),), (assistant("zero"),), (assistant("one"),))
    flipped = {**ROW, "better_response_id": 0, "margin": 1}
    assert safe_rlhf()(flipped) == Pair((user("How?"),), (assistant("zero"),), (assistant("one"),), 1.0)


def test_what_is_refused() -> None:
    refusal(Reason.BAD_TYPE, safe_rlhf(), {**ROW, "better_response_id": -1})
    refusal(Reason.BAD_TYPE, safe_rlhf(), {**ROW, "better_response_id": None})
    unsafe = {k: v for k, v in ROW.items() if k != "safer_response_id"}
    assert "'safer_response_id'" in refusal(Reason.MISSING_FIELD, safe_rlhf(by="safer"), unsafe)
    with pytest.raises(OptionError, match="by is 'best'; allowed: 'better'"):
        safe_rlhf(by="best")  # type: ignore[arg-type]
