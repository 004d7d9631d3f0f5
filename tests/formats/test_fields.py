from __future__ import annotations

import numpy as np
import pytest

from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats import fields

from .conversations import refusal


def test_a_missing_field_names_itself_what_was_found_and_the_nearest_name() -> None:
    row = {"prompt": "p", "chosn": "c", "rejected": "r"}
    said = refusal(Reason.MISSING_FIELD, lambda r: fields.text(r, "chosen"), row)
    assert "field 'chosen' is missing" in said
    assert "chosn, prompt, rejected" in said
    assert "Did you mean 'chosen' instead of 'chosn'? Pass fields={\"chosen\": \"chosn\"}, rename" in said


def test_a_wrong_type_names_field_type_value_and_expectation() -> None:
    said = refusal(Reason.BAD_TYPE, lambda r: fields.text(r, "chosen"), {"chosen": 5})
    assert "field 'chosen' is int 5; expected a string" in said
    assert "is null" in refusal(Reason.BAD_TYPE, lambda r: fields.text(r, "chosen"), {"chosen": None})


def test_long_values_are_shortened() -> None:
    assert len(fields.short("x" * 10_000_000)) < 100
    assert len(fields.short([{"a": "y" * 1000}] * 1000)) < 400


def test_many_field_names_are_shortened_and_sorted() -> None:
    assert fields.names({"b": 1, "a": 2}) == "a, b"
    assert fields.names(range(30)).endswith("and 10 more")
    assert fields.names({}) == "none"


def test_string_subclasses_become_plain_strings() -> None:
    assert type(fields.text({"a": np.str_("x")}, "a")) is str


@pytest.mark.parametrize("value", [True, "1", float("nan"), float("inf"), [1]])
def test_what_is_not_a_finite_number_is_refused(value: object) -> None:
    refusal(Reason.BAD_TYPE, lambda r: fields.number(r, "score"), {"score": value})
    refusal(Reason.BAD_TYPE, fields.margin_of, {"margin": value})


@pytest.mark.parametrize("value", [10**400, -(10**400)])
def test_whole_numbers_beyond_every_float_are_refused(value: int) -> None:
    with pytest.raises(RowError, match="expected a finite number"):
        fields.as_number(value, "score")


def test_numbers_of_numpy_are_numbers() -> None:
    assert fields.number({"score": np.float32(1.5)}, "score") == 1.5
    assert fields.margin_of({"margin": np.int64(2)}) == 2.0
    assert fields.margin_of({}) is None is fields.margin_of({"margin": None})


def test_scores_must_agree_with_the_preference() -> None:
    assert fields.scored_margin({"a": 3, "b": 1}, "a", "b") == 2
    refusal(Reason.TIE, lambda r: fields.scored_margin(r, "a", "b"), {"a": 3, "b": 3.0})
    assert "contradict" in refusal(Reason.BAD_TYPE, lambda r: fields.scored_margin(r, "a", "b"), {"a": 1, "b": 3})


def test_one_of_takes_whole_numbers_of_the_list_only() -> None:
    assert fields.one_of({"x": 1.0}, "x", (0, 1)) == 1
    assert "one of 0, 1" in refusal(Reason.BAD_TYPE, lambda r: fields.one_of(r, "x", (0, 1)), {"x": 2})
    refusal(Reason.BAD_TYPE, lambda r: fields.one_of(r, "x", (0, 1)), {"x": 0.5})
    with pytest.raises(RowError, match="missing"):
        fields.one_of({}, "x", (0, 1))
