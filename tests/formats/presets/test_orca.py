from __future__ import annotations

from ms_prefstream.errors import Reason
from ms_prefstream.formats import orca
from ms_prefstream.formats.record import Pair

from ..conversations import assistant, refusal, system, user

ROW = {"system": "Be brief.", "question": "Hi", "chosen": "Hello", "rejected": "What"}


def test_polarity_and_meaning() -> None:
    assert orca()(ROW) == Pair((system("Be brief."), user("Hi")), (assistant("Hello"),), (assistant("What"),))
    assert orca()({**ROW, "margin": 1}).margin == 1.0  # type: ignore[union-attr]


def test_an_empty_system_is_absent_unless_kept() -> None:  # trap 19
    assert orca()({**ROW, "system": ""}).prompt == (user("Hi"),)  # type: ignore[union-attr]
    assert orca(keep_empty_system=True)({**ROW, "system": ""}).prompt == (system(""), user("Hi"))  # type: ignore[union-attr]


def test_what_is_refused() -> None:
    for name in ("question", "chosen", "rejected"):
        said = refusal(Reason.MISSING_FIELD, orca(), {k: v for k, v in ROW.items() if k != name})
        assert repr(name) in said
    refusal(Reason.BAD_TYPE, orca(), {**ROW, "system": 1})
