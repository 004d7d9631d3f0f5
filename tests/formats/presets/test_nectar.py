from __future__ import annotations

import pytest

from ms_prefstream.errors import Reason
from ms_prefstream.formats import ManyRecords, nectar
from ms_prefstream.formats.record import Messages, Pair

from ..conversations import assistant, refusal, user

ROW = {
    "prompt": "\n\nHuman: Hi\n\nAssistant: ",
    "answers": [{"answer": "b", "rank": 2.0}, {"answer": "a", "rank": 1.0}, {"answer": "c", "rank": 4.0}],
}


def pair(better: str, worse: str, margin: float) -> Pair:
    return Pair((user("Hi"),), (assistant(better),), (assistant(worse),), margin)


def test_polarity_rank_1_is_best() -> None:  # trap 21
    assert nectar()(ROW) == (pair("a", "b", 1), pair("a", "c", 3), pair("b", "c", 2))
    assert nectar(policy="best_worst")(ROW) == pair("a", "c", 3)
    fmt = nectar(policy="adjacent", max_pairs=1)
    assert isinstance(fmt, ManyRecords)
    assert fmt(ROW) == (pair("b", "c", 2),)
    assert fmt.count(ROW) == 1


@pytest.mark.parametrize(
    ("prompt", "messages"),
    [
        ("\n\nHuman: Hi \n\nAssistant: ", (user("Hi "),)),
        ("\n\nHuman: Hi\n\nAssistant: A\n\nHuman: B\n\nAssistant:", (user("Hi"), assistant("A"), user("B"))),
        ("\n\nHuman: Hi\n\nAssistant: Well,", (user("Hi"), assistant("Well,"))),
        ("Human: Hi\n\nAssistant:", (user("Hi"),)),
        ("Hi", (user("Hi"),)),
    ],
)
def test_prompts(prompt: str, messages: Messages) -> None:
    found = nectar(policy="best_worst")({**ROW, "prompt": prompt})
    assert isinstance(found, Pair)
    assert found.prompt == messages


def test_equal_ranks_never_pair() -> None:
    row = {**ROW, "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 1}]}
    assert nectar()(row) == ()
    refusal(Reason.TIE, nectar(policy="best_worst"), row)


def test_what_is_refused() -> None:
    refusal(Reason.MISSING_FIELD, nectar(), {"prompt": "Hi"})
    refusal(Reason.BAD_TYPE, nectar(), {**ROW, "answers": "a"})
    assert "item 1 of field 'answers'" in refusal(Reason.BAD_TYPE, nectar(), {**ROW, "answers": ["a"]})
    assert "rank of item 1" in refusal(Reason.BAD_TYPE, nectar(), {**ROW, "answers": [{"answer": "a"}]})
    assert "answer of item 1" in refusal(Reason.BAD_TYPE, nectar(), {**ROW, "answers": [{"rank": 1}]})
