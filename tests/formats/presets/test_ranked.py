from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ms_prefstream.errors import OptionError, Reason
from ms_prefstream.formats import ManyRecords, OneRecord, ranked
from ms_prefstream.formats.record import Pair

from ..conversations import assistant, raw, refusal, system, tool, user

U = user("Hi")
ROW = {
    "prompt": "Hi",
    "responses": [{"content": "b", "score": 2}, {"content": "a", "score": 3}, {"content": "c", "score": 0}],
}


def pair(better: str, worse: str, margin: float) -> Pair:
    return Pair((U,), (assistant(better),), (assistant(worse),), margin)


ALL = (pair("a", "b", 1), pair("a", "c", 3), pair("b", "c", 2))


def test_polarity_a_higher_score_is_better() -> None:
    assert ranked()(ROW) == ALL


def test_polarity_a_lower_rank_is_better() -> None:
    row = {"prompt": "Hi", "responses": [{"text": "b", "rank": 2}, {"answer": "a", "rank": 1}]}
    assert ranked()(row) == (pair("a", "b", 1),)


@pytest.mark.parametrize("field", ["responses", "completions"])
def test_scores_in_a_list_of_their_own(field: str) -> None:
    assert ranked()({"prompt": "Hi", field: ["b", "a", "c"], "scores": [2, 3, 0]}) == ALL
    assert ranked()(
        {"prompt": raw(U), field: [raw(assistant("a")), raw(U, assistant("c"))], "scores": np.array([3, 0])}
    ) == (pair("a", "c", 3),)


def test_policies() -> None:
    assert ranked(policy="adjacent")(ROW) == (ALL[0], ALL[2])
    assert ranked(policy="best_worst")(ROW) == ALL[1]
    assert isinstance(ranked(policy="best_worst"), OneRecord)
    assert ranked(policy="best_worst", min_margin=4)(ROW) == ()
    assert ranked(max_pairs=1)(ROW) == (ALL[1],)
    assert ranked(min_margin=2)(ROW) == (ALL[1], ALL[2])


@pytest.mark.parametrize(
    "options", [{}, {"policy": "adjacent"}, {"max_pairs": 2}, {"min_margin": 2}, {"min_margin": 9}]
)
@pytest.mark.parametrize("scores", [[1, 2, 3], [2, 2, 2], [3, 1, 3], [1, 2, 2]])
def test_count_is_the_number_of_records(options: dict[str, Any], scores: list[int]) -> None:
    fmt = ranked(**options)
    row = {"prompt": "Hi", "completions": ["x", "y", "z"], "scores": scores}
    assert isinstance(fmt, ManyRecords)
    assert fmt.count(row) == len(fmt(row))


def test_equal_scores_never_pair() -> None:  # trap 15
    row = {"prompt": "Hi", "completions": ["x", "y"], "scores": [1, 1.0]}
    assert ranked()(row) == ()
    refusal(Reason.TIE, ranked(policy="best_worst"), row)
    refusal(Reason.TIE, ranked(policy="best_worst"), {"prompt": "Hi", "completions": ["x"], "scores": [1]})


def test_a_shared_first_turn_is_prompt() -> None:  # trap 22
    shared = (assistant("call"), tool("4"))
    row = {
        "prompt": "Hi",
        "system": "s",
        "completions": [raw(*shared, assistant("a")), raw(*shared, assistant("b"))],
        "scores": [1, 0],
    }
    assert ranked()(row) == (Pair((system("s"), U, *shared), (assistant("a"),), (assistant("b"),), 1.0),)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Hi"}, Reason.MISSING_FIELD),
        ({"responses": ROW["responses"]}, Reason.MISSING_FIELD),
        ({"prompt": [], "responses": ROW["responses"]}, Reason.MISSING_FIELD),
        ({"prompt": "Hi", "responses": [{"content": "a"}]}, Reason.MISSING_FIELD),
        ({"prompt": "Hi", "responses": [{"score": 1}]}, Reason.MISSING_FIELD),
        ({"prompt": "Hi", "responses": ["a", "b"]}, Reason.BAD_TYPE),
        ({"prompt": "Hi", "responses": "ab", "scores": [1, 2]}, Reason.BAD_TYPE),
        ({"prompt": "Hi", "responses": ["a", "b"], "scores": [1]}, Reason.BAD_TYPE),
        ({"prompt": "Hi", "responses": ["a", "b"], "scores": [1, None]}, Reason.BAD_TYPE),
        ({"prompt": "Hi", "responses": ["a"], "completions": ["b"], "scores": [1]}, Reason.AMBIGUOUS_FORMAT),
        ({"prompt": "Hi", "responses": [{"content": "a", "score": 1, "rank": 1}]}, Reason.AMBIGUOUS_FORMAT),
        ({"prompt": "Hi", "responses": [{"content": [], "score": 1}]}, Reason.EMPTY_RESPONSE),
    ],
)
def test_what_is_refused(row: dict[str, Any], reason: Reason) -> None:
    refusal(reason, ranked(), row)


def test_errors_name_the_item() -> None:
    row = {"prompt": "Hi", "responses": ["a", [{"role": "narrator", "content": "x"}]], "scores": [1, 2]}
    assert "turn 1 of item 2 of field 'responses'" in refusal(Reason.UNKNOWN_ROLE, ranked(), row)


def test_options_check_themselves() -> None:
    with pytest.raises(OptionError, match="policy is 'first'"):
        ranked(policy="first")  # type: ignore[arg-type]
