from __future__ import annotations

from ms_prefstream.errors import Reason
from ms_prefstream.formats import stack_exchange
from ms_prefstream.formats.record import Pair

from ..conversations import assistant, refusal, user

ROW = {"qid": 1, "question": "How?", "response_k": "No.", "response_j": "So."}


def test_polarity_response_j_is_better() -> None:
    assert stack_exchange()(ROW) == Pair((user("How?"),), (assistant("So."),), (assistant("No."),))
    assert stack_exchange()({**ROW, "margin": 1}).margin == 1.0  # type: ignore[union-attr]


def test_what_is_refused() -> None:
    for name in ("question", "response_j", "response_k"):
        assert repr(name) in refusal(
            Reason.MISSING_FIELD, stack_exchange(), {k: v for k, v in ROW.items() if k != name}
        )
