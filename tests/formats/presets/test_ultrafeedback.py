from __future__ import annotations

import pytest

from ms_prefstream.errors import OptionError, Reason
from ms_prefstream.formats import orpo_mix, ultrafeedback
from ms_prefstream.formats.record import Pair

from ..conversations import assistant, raw, refusal, system, user

U, A, B = user("Hi"), assistant("Hello"), assistant("What")
ROW = {
    "prompt": "Hi",
    "prompt_id": "1",
    "chosen": raw(U, A),
    "rejected": raw(U, B),
    "messages": raw(U, A),
    "score_chosen": 8.5,
    "score_rejected": 6.0,
}


def test_ultrafeedback_polarity_and_margin() -> None:
    assert ultrafeedback()(ROW) == Pair((U,), (A,), (B,), 2.5)
    assert ultrafeedback()({**ROW, "margin": 9}) == Pair((U,), (A,), (B,), 9.0)
    assert ultrafeedback()({**ROW, "margin": 0}) == Pair((U,), (A,), (B,), 0.0)


def test_equal_scores_are_a_tie_and_contradictions_an_error() -> None:  # trap 15, trap 21
    refusal(Reason.TIE, ultrafeedback(), {**ROW, "score_rejected": 8.5})
    refusal(Reason.BAD_TYPE, ultrafeedback(), {**ROW, "score_rejected": 9})
    refusal(Reason.MISSING_FIELD, ultrafeedback(), {k: v for k, v in ROW.items() if k != "score_chosen"})


def test_the_prompt_is_recognised_by_equality_only() -> None:
    refusal(Reason.HISTORY_DIFFERS, ultrafeedback(), {**ROW, "prompt": "Hi "})
    refusal(Reason.MISSING_FIELD, ultrafeedback(), {k: v for k, v in ROW.items() if k != "prompt"})


def test_orpo_mix_polarity_and_unread_fields() -> None:
    row = {"source": "x", "prompt": None, "question": "Hi", "chosen": raw(U, A), "rejected": raw(U, B)}
    assert orpo_mix()(row) == Pair((U,), (A,), (B,))
    assert orpo_mix()({**row, "prompt": "something else", "question": None}) == Pair((U,), (A,), (B,))
    turns = (system("s"), U, A, user("x"))
    long = {**row, "chosen": raw(*turns, A), "rejected": raw(*turns, B), "margin": 1}
    assert orpo_mix()(long) == Pair(turns, (A,), (B,), 1.0)


def test_what_orpo_mix_refuses() -> None:
    refusal(Reason.HISTORY_DIFFERS, orpo_mix(), {"chosen": raw(U, A), "rejected": raw(user("x"), B)})
    refusal(Reason.MISSING_FIELD, orpo_mix(), {"chosen": raw(U, A)})
    refusal(Reason.MISSING_FIELD, orpo_mix(), {"prompt": "Hi", "chosen": "x", "rejected": "y"})
    for factory in (orpo_mix, ultrafeedback):
        with pytest.raises(OptionError):
            factory(history="x")  # type: ignore[arg-type]
