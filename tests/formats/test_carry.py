"""The option `carry` on its own: what it accepts, what a row's value becomes, and which fields then count as read."""

from __future__ import annotations

import datetime
import decimal
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ms_prefstream.errors import OptionError, Reason, RowError
from ms_prefstream.formats import resolve_format
from ms_prefstream.formats.carry import Carry, carry_of
from ms_prefstream.formats.reader import reader

PAIR = {"prompt": "P", "chosen": "A", "rejected": "B"}


def carried(option: Any, row: dict[str, Any], format: Any = "auto", **options: Any) -> Any:
    """What the record of a row carries."""
    carry = carry_of(option)
    assert carry is not None
    read = reader(resolve_format(format), carry=carry.guessed([row], {}), **options)
    made: Any = read({**PAIR, **row})
    assert pickle.loads(pickle.dumps(read))({**PAIR, **row}) == made
    return made.carried


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        ("int64", 7, 7),
        ("int64", True, 1),
        ("int64", np.bool_(False), 0),
        ("int64", np.int32(-3), -3),
        ("int64", 4.0, 4),
        ("int64", 2**63 - 1, 2**63 - 1),
        ("float32", 7, 7.0),
        ("float32", True, 1.0),
        ("float32", np.float64(0.5), 0.5),
        ("float32", decimal.Decimal("1.25"), 1.25),
        ("text", "四 ", "四 "),
        ("text", "", ""),
        ("text", 7, "7"),
        ("text", True, "true"),
        ("text", [1, {"a": "é"}], '[1, {"a": "é"}]'),
        ("text", np.array([1.5, 2.0]), "[1.5, 2.0]"),
        ("text", datetime.date(2026, 1, 2), '"2026-01-02"'),
    ],
)
def test_values(dtype: str, value: Any, expected: Any) -> None:
    (found,) = carried({"a": dtype}, {"a": value})
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("dtype", "value", "said"),
    [
        ("int64", 0.5, r"field 'a', which is carried as int64, is float 0\.5; .*64 bits.*carry=\{\"a\": \"float32\"\}"),
        ("int64", 2**63, r"int 92.*Pass carry=\{\"a\": \"float32\"\}"),
        ("int64", "7", r"str '7'.*Pass carry=\{\"a\": \"text\"\}, or correct the row"),
        ("float32", 1e39, r"1e\+39; expected a finite number"),
        ("float32", float("inf"), "inf; expected a finite number"),
        ("float32", 10**400, "expected a finite number"),
        ("float32", [1], "list"),
        ("text", "a\0", "without NUL characters"),
        ("text", "\ud800", "half characters"),
        ("text", b"a", "bytes.*Correct the row"),
    ],
)
def test_values_that_do_not_fit(dtype: str, value: Any, said: str) -> None:
    with pytest.raises(RowError, match=said) as caught:
        carried({"a": dtype}, {"a": value})
    assert caught.value.reason == Reason.BAD_TYPE


@pytest.mark.parametrize("row", [{}, {"a": None}, {"a": float("nan")}, {"a": np.float32("nan")}, {"a": " "}])
def test_missing_values(row: dict[str, Any]) -> None:
    with pytest.raises(
        RowError, match=r"field 'a' is to be carried, but .*carry=\{\"a\": \[\"float32\", 1\.0\]\}"
    ) as no:
        carried({"a": "float32"}, row)
    assert no.value.reason == Reason.MISSING_FIELD
    assert carried({"a": ("float32", 2)}, row) == (2.0,)


def test_a_similar_name_is_suggested() -> None:
    with pytest.raises(RowError, match=r"there is no 'answr'; found fields: answer, .*Did you mean 'answer'"):
        carried(["answr"], {"answer": "7"})


@pytest.mark.parametrize(
    ("option", "row", "expected"),
    [
        (["a", "b.c"], {"a": 1, "b": {"c": "x"}}, (1, "x")),
        (["b.0.c"], {"b": [{"c": 0.5}]}, (0.5,)),
        (["b.c"], {"b": '{"c": 3}'}, (3,)),
        (["b.c"], {"b.c": 3, "b": {"c": 4}}, (3,)),
        (("a",), {"a": 1}, (1,)),
        ({"a": None, "d": ["text", "-"]}, {"a": 1}, (1, "-")),
        (["prompt"], {}, ("P",)),
    ],
)
def test_paths_and_forms(option: Any, row: dict[str, Any], expected: tuple[Any, ...]) -> None:
    assert carried(option, row) == expected


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1, 2], "int64"),
        ([True, 2], "int64"),
        ([1, 0.5], "float32"),
        ([1.0], "float32"),
        ([None, 3], "int64"),
        ([2**70], "float32"),
        ([1, "a"], "text"),
        (["a"], "text"),
        ([[1]], "text"),
        ([float("nan")], "text"),
        ([], "text"),
    ],
)
def test_dtypes_of_the_first_rows(values: list[Any], dtype: str) -> None:
    carry = carry_of(["a"])
    assert carry is not None
    rows = [{"a": value} for value in values] + [{"b": 1}, "no row"]
    assert carry.guessed(rows, {}).columns == {"a": dtype}
    assert carry.guessed(rows, {"a": "int64"}).columns == {"a": "int64"}


def test_a_guess_is_named_when_a_later_row_does_not_fit() -> None:
    carry = carry_of(["a"])
    assert carry is not None
    read = reader(resolve_format("auto"), carry=carry.guessed([{"a": 1}], {}))
    with pytest.raises(RowError, match=r"carried as int64, as the first rows have it, is float 0\.5"):
        read({**PAIR, "a": 0.5})


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ([], r"carry is \[\]; expected the names of fields"),
        ("answer", "carry is 'answer'; expected the names"),
        ([1], r"carry is \[1\]"),
        (["a..b"], r"carry is \['a\.\.b'\]"),
        (["a", "a"], "carry makes two columns 'a' of a"),
        (["x.a", "y.a"], "carry makes two columns 'a' of x.a and y.a"),
        ({"a": "int32"}, "carry has 'a': 'int32'; expected one of 'int64', 'float32', 'text'"),
        ({"a": {"type": "text"}}, "carry has 'a': {'type': 'text'}; expected one of"),
        ({"a": ["float32"]}, "expected a dtype and a default"),
        ({"a": ["int64", 0.5]}, r"whose default is float 0\.5; expected a whole number"),
        ({"a": ["text", None]}, "whose default is null"),
        ({"a": [None, 1]}, "expected a dtype before it"),
    ],
)
def test_options_that_cannot_be_used(option: Any, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        carry_of(option)


@pytest.mark.parametrize(
    ("option", "fields", "unread"),
    [
        (["answer"], None, {"note", "extra"}),
        (["answer", "note"], None, {"extra"}),
        (["extra.answer", "note"], None, {"answer", "extra.other"}),
        (["answer"], {"chosen": "note"}, {"chosen", "extra"}),
        (["answer", "chosen"], {"chosen": "note"}, {"extra"}),
    ],
)
def test_a_carried_field_is_not_an_unread_one(option: Any, fields: Any, unread: set[str]) -> None:
    row = {**PAIR, "answer": "7", "note": "N", "extra": {"answer": "x", "other": "y"}}
    carry = carry_of(option)
    assert carry is not None
    for format in ("auto", lambda row: {**row, "prompt": row["prompt"] + "?"}):
        read = reader(resolve_format(format), fields=fields, carry=carry.guessed([row], {}))
        for _ in range(2):  # the second row of a shape takes another way
            made: Any = read(dict(row))
            assert set(made.unread) == unread


def test_media_beside_text_stays_a_bad_row() -> None:
    with pytest.raises(RowError, match="'images'"):
        carried(["images"], {"images": ["a.png"]})


def test_records_of_every_kind_carry_values() -> None:
    carry = carry_of({"id": "int64"})
    assert carry is not None
    ranked = reader(resolve_format("ranked"), carry=carry)
    row = {"prompt": "P", "responses": ["A", "B", "C"], "scores": [1, 2, 3], "id": 9}
    assert [record.carried for record in ranked(row)] == [(9,)] * 3  # type: ignore[union-attr]
    ids = {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3], "id": 9}
    assert reader(resolve_format("auto"), carry=carry)(ids).carried == (9,)  # type: ignore[union-attr]
    only = reader(resolve_format(lambda row: {"prompt": row[0], "response": row[1]}), carry=carry)
    with pytest.raises(RowError, match="expected an object with named fields"):
        only(["P", "A"])


@given(st.permutations(["a", "b.c", "d"]))
def test_the_order_decides_about_columns_and_not_about_states(names: list[str]) -> None:
    carry, other = carry_of(dict.fromkeys(names, "int64")), carry_of(dict.fromkeys(sorted(names), "int64"))
    assert isinstance(carry, Carry)
    assert isinstance(other, Carry)
    assert list(carry.columns) == [name.rpartition(".")[2] for name in names]
    assert carry.text() == other.text()
