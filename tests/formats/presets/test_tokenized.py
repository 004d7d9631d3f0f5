from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ms_prefstream.errors import Reason
from ms_prefstream.formats import tokenized
from ms_prefstream.formats.record import TokenCompletion, TokenPair

from ..conversations import refusal

ROW = {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, 0]}


def test_polarity_and_meaning() -> None:
    assert tokenized()(ROW) == TokenPair((1, 2), (3,), (4, 0))
    assert tokenized()({**ROW, "margin": 0.5}) == TokenPair((1, 2), (3,), (4, 0), 0.5)


def test_completions() -> None:
    assert tokenized()({"prompt_ids": [1], "response_ids": [2]}) == TokenCompletion((1,), (2,))
    assert (
        tokenized()({"prompt_ids": [1]})
        == TokenCompletion((1,))
        == tokenized()({"prompt_ids": [1], "response_ids": None})
    )


@pytest.mark.parametrize(
    "make", [tuple, np.array, lambda x: np.array(x, np.uint16), lambda x: [np.int64(i) for i in x]]
)
def test_tuples_arrays_and_numpy_numbers(make: Any) -> None:
    found = tokenized()({name: make(ids) for name, ids in ROW.items()})
    assert found == TokenPair((1, 2), (3,), (4, 0))
    assert isinstance(found, TokenPair)
    assert all(type(i) is int for i in found.prompt_ids + found.chosen_ids + found.rejected_ids)


def test_empty_lists_are_for_the_task_to_judge() -> None:
    assert tokenized()({**ROW, "prompt_ids": []}) == TokenPair((), (3,), (4, 0))
    assert tokenized()({**ROW, "prompt_ids": np.array([])}) == TokenPair((), (3,), (4, 0))


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([1, -1], "item 1 of field 'chosen_ids' is int -1"),
        ([True], "item 0 of field 'chosen_ids' is bool True"),
        ([1, 2.0], "item 1 of field 'chosen_ids' is float 2.0"),
        ([None], "item 0 of field 'chosen_ids' is null"),
        ([2**31], "a token id, a whole number from 0 to"),
        (np.array([1.0]), "item 0 of field 'chosen_ids' is float 1.0"),
        (np.array([[1]]), "item 0 of field 'chosen_ids' is list [1]"),
        (np.array([-1]), "is int -1"),
        ("12", "a list of token ids"),
        (5, "a list of token ids"),
    ],
)
def test_what_is_no_token_id(ids: Any, said: str) -> None:
    assert said in refusal(Reason.BAD_TYPE, tokenized(), {**ROW, "chosen_ids": ids})


def test_missing_and_double_fields() -> None:
    refusal(Reason.MISSING_FIELD, tokenized(), {"chosen_ids": [1], "rejected_ids": [2]})
    refusal(Reason.MISSING_FIELD, tokenized(), {"prompt_ids": [1], "chosen_ids": [2]})
    refusal(Reason.AMBIGUOUS_FORMAT, tokenized(), {**ROW, "response_ids": [1]})
