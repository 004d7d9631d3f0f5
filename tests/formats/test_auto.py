from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats import PRESETS, OneRecord, auto
from ms_prefstream.formats.auto import Auto
from ms_prefstream.formats.record import Completion, Pair, TokenCompletion, TokenPair

from .conversations import assistant, raw, refusal, system, user

U, A, B = user("Hi"), assistant("Hello"), assistant("What")
DIALOGUES = {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: What"}
SIDES = {"chosen": "Hello", "rejected": "What"}
WHOLE = {"chosen": raw(U, A), "rejected": raw(U, B)}

# Name of the preset -> rows that it must be chosen for.
EXPECTED: dict[str, list[dict[str, Any]]] = {
    "strings": [{"prompt": "Hi", **SIDES}, {"prompt": "Hi", "response": "Hello"}, {"prompt": "Hi", "id": 5}],
    "messages": [
        {"prompt": raw(U), "chosen": raw(A), "rejected": raw(B)},
        {"prompt": "Hi", "chosen": raw(A), "rejected": "What"},
        {"prompt": raw(U), **SIDES},
        WHOLE,
        {"prompt": "Hi", **WHOLE, "messages": raw(U, A)},
        {"prompt": raw(U), "response": "Hello"},
        {"messages": raw(U, A)},
        {"prompt": "Hi", "messages": raw(U, A)},
        {"prompt": raw(U)},
    ],
    "cvalues": [{"prompt": "Hi", "pos_resp": "Hello", "neg_resp": "What", "pos_type": "x", "neg_type": "y"}],
    "sharegpt": [
        {"conversations": raw(U), "chosen": raw(A)[0], "rejected": raw(B)[0]},
        {"conversations": raw(U), "chosen": raw(A), "rejected": raw(B), "prompt": None},
        {"conversations": raw(U, A)},
    ],
    "tokenized": [
        {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]},
        {"prompt_ids": [1], "response_ids": [2]},
        {"prompt_ids": [1]},
    ],
    "hh_rlhf": [DIALOGUES, {**DIALOGUES, "prompt": None}],
    "ultrafeedback": [{"prompt": "Hi", **WHOLE, "messages": raw(U, A), "score_chosen": 2, "score_rejected": 1}],
    "orpo_mix": [
        {"source": "x", "prompt": None, "question": "Hi", **WHOLE},
        {"source": "x", "prompt": "Hi", "question": "", **WHOLE},
    ],
    "stepwise": [{"prompt": "Hi", "completions": ["a", "b"], "labels": [True, False]}],
    "orca": [{"system": "", "question": "Hi", **SIDES}, {"question": "Hi", **SIDES}],
    "alpaca": [
        {"instruction": "Hi", "input": "", **SIDES},
        {"instruction": "Hi", "output": ["Hello", "What"]},
        {"instruction": "Hi", "input": None, "output": "Hello"},
    ],
    "stack_exchange": [{"qid": 1, "question": "Hi", "response_j": "Hello", "response_k": "What"}],
    "shp": [
        {"history": "Hi", "human_ref_A": "Hello", "human_ref_B": "What", "labels": 1, "score_A": 3, "score_B": 1},
    ],
    "safe_rlhf": [{"prompt": "Hi", "response_0": "What", "response_1": "Hello", "better_response_id": 1}],
    "helpsteer3": [{"context": raw(U), "response1": "Hello", "response2": "What", "overall_preference": -1}],
    "nectar": [{"prompt": "Hi", "answers": [{"answer": "What", "rank": 2}, {"answer": "Hello", "rank": 1}]}],
    "swift": [
        {"messages": raw(U, A), "rejected_response": "What"},
        {"messages": raw(U, A), "rejected_messages": raw(U, B)},
        {"conversations": raw(U, A), "rejected_response": "What"},
        {"query": "Hi", "response": "Hello", "rejected_response": "What"},
        {"query": "Hi", "response": "Hello"},
    ],
    "ranked": [
        {"prompt": "Hi", "responses": [{"content": "Hello", "score": 2}, {"content": "What", "score": 1}]},
        {"prompt": "Hi", "completions": ["Hello", "What"], "scores": [2, 1]},
    ],
}
ROWS = [(name, row) for name, rows in EXPECTED.items() for row in rows]


def test_every_preset_is_found() -> None:
    assert EXPECTED.keys() == PRESETS.keys()


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_the_preset_of_each_row(name: str, row: dict[str, Any]) -> None:
    format = auto()
    assert format.decide(row).preset == name
    preset = PRESETS[name]
    fmt = preset.factory(**preset.auto_options)
    assert isinstance(fmt, OneRecord)
    assert format(row) == fmt(row) == format(row)  # decided, then remembered
    found = format(row)
    if isinstance(found, Pair):
        assert (found.prompt, found.chosen, found.rejected) == ((U,), (A,), (B,))
    elif isinstance(found, Completion):
        assert (found.prompt, found.response) in {((U,), (A,)), ((U,), ())}
    else:
        assert isinstance(found, (TokenPair, TokenCompletion))


@pytest.mark.parametrize(("name", "row"), [(name, row) for name, row in ROWS if name != "tokenized"])
def test_system_and_tools_are_read_beside_every_row_of_texts(name: str, row: dict[str, Any]) -> None:
    """A prompt would be another one, without a word, if one way to write the sides read them and another did not."""
    found, bare = auto()({**row, "system": "Be brief.", "tools": '[{"name": "add"}]'}), auto()({**row, "system": None})
    assert isinstance(found, (Pair, Completion))
    assert isinstance(bare, (Pair, Completion))
    assert found == replace(bare, prompt=(system("Be brief."), *bare.prompt), tools=({"name": "add"},))
    refusal(Reason.BAD_TYPE, auto(), {**row, "tools": "no JSON"})
    refusal(Reason.BAD_TYPE, auto(), {**row, "system": 3})


@given(st.data())
@settings(settings.get_profile("cheap"))
def test_the_order_of_fields_and_rows_never_matters(data: st.DataObject) -> None:  # trap 6
    """Also for rows mixed of two presets, most of which are ambiguous: the same record or the same sentence."""
    (_, one), (_, two) = data.draw(st.sampled_from(ROWS)), data.draw(st.sampled_from(ROWS))
    row = {**one, **two} if data.draw(st.booleans()) else one
    shuffled = dict(data.draw(st.permutations(list(row.items()))))
    used = auto()
    for _, other in data.draw(st.lists(st.sampled_from(ROWS), max_size=3)):
        used(other)
    assert outcome(used, shuffled) == outcome(auto(), row)


def outcome(format: Auto, row: dict[str, Any]) -> object:
    try:
        return format(row)
    except RowError as error:
        return error.reason, str(error)


@pytest.mark.parametrize(
    ("row", "presets"),
    [
        ({"prompt": "Hi", **SIDES, "pos_resp": "a", "neg_resp": "b"}, "cvalues, strings"),
        ({"prompt": "Hi", "instruction": "Ho", **SIDES}, "alpaca, strings"),
        ({"prompt": "Hi", "question": "Ho", **SIDES}, "orca, strings"),
        ({"prompt": "Hi", "conversations": raw(U), **SIDES}, "sharegpt, strings"),
        ({"prompt": "Hi", "response": "a", "responses": []}, "ranked, strings"),
        ({"prompt": "Hi", **SIDES, "prompt_ids": [1], "chosen_ids": [1], "rejected_ids": [2]}, "strings, tokenized"),
    ],
)
def test_rows_of_two_presets_are_an_error_that_names_them(row: dict[str, Any], presets: str) -> None:
    said = refusal(Reason.AMBIGUOUS_FORMAT, auto(), row)
    assert f"differently: {presets} " in said
    assert f"format={presets.split(',')[0]!r}" in said


@pytest.mark.parametrize("name", ["prompt", "chosen", "rejected", "response"])
def test_plain_strings_with_role_markers_are_an_error_too(name: str) -> None:
    row = {"prompt": "Hi", **({"response": "Hello"} if name == "response" else SIDES)}
    said = refusal(Reason.AMBIGUOUS_FORMAT, auto(), {**row, name: f"\n\nHuman: {row[name]}"})
    assert f"field {name!r} is a dialogue" in said
    assert "format='hh_rlhf'" in said
    auto()({**row, name: f"Say\n\nHuman: {row[name]}"})  # only at the very beginning


def test_a_misspelt_side_is_not_taken_for_a_prompt_alone() -> None:
    said = refusal(Reason.MISSING_FIELD, auto(), {"prompt": "Hi", "chosen": "a", "rejectd": "b"})
    assert "chosen, prompt, rejectd" in said
    assert "needs rejected" in said
    assert "did you mean 'rejected' instead of 'rejectd'?" in said
    assert 'Pass fields={"rejected": "rejectd"}' in said


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"text": "x"},
        {"chosen": "a"},
        {"prompt": "Hi", "pos_resp": "a"},
        {"prompt": "Hi", "output": "a"},
        {"prompt": "Hi", "conversations": raw(U, A)},
        {"prompt": None, "chosen": None},
        {"prompt_ids": [1], "chosen_ids": [2]},
        {"conversations": raw(U), "chosen": "x"},
    ],
)
def test_rows_that_fit_no_preset(row: dict[str, Any]) -> None:
    refusal(Reason.MISSING_FIELD, auto(), row)


def test_null_fields_are_absent_and_said_to_be_null() -> None:
    said = refusal(Reason.MISSING_FIELD, auto(), {"prompt": "Hi", "chosen": "a", "rejected": None})
    assert "needs rejected (null: rejected)" in said
    said = refusal(Reason.MISSING_FIELD, auto(), {"prompt": "Hi", "rejected_messages": ["a"]})
    assert "nearest is 'messages', which also needs" in said


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "Hi", "chosen": 5, "rejected": "b"}, "field 'chosen' is int 5"),
        ({"prompt": 1, **SIDES}, "field 'prompt' is int 1"),
        ({"prompt": 1, **DIALOGUES}, "field 'prompt' is int 1"),
        ({"prompt": "Hi", "pos_resp": ["a"], "neg_resp": "b"}, "field 'pos_resp' is list"),
        ({"prompt": "Hi", **SIDES, "score_chosen": "8", "score_rejected": 6}, "field 'score_chosen' is str '8'"),
        ({"prompt": "Hi", "response": 5}, "field 'response' is int 5"),
        ({"messages": "Hi"}, "field 'messages' is str 'Hi'"),
    ],
)
def test_a_field_of_the_wrong_type_is_named(row: dict[str, Any], said: str) -> None:
    assert said in refusal(Reason.BAD_TYPE, auto(), row)


def test_types_are_looked_at_in_every_row() -> None:
    format = auto()
    assert format({"prompt": "Hi", **SIDES}) == Pair((U,), (A,), (B,))
    assert format({"prompt": raw(U), **SIDES}) == Pair((U,), (A,), (B,))
    assert format({"prompt": None, **DIALOGUES}) == Pair((U,), (A,), (B,))


def test_rows_that_are_no_rows() -> None:
    refusal(Reason.BAD_TYPE, auto(), ["x"])


def test_the_memory_of_decisions_is_bounded() -> None:
    format = auto()
    for number in range(1500):
        format({"prompt": "Hi", f"extra {number}": 1})
    assert len(format._decisions) <= 1024


def test_it_travels_to_other_processes() -> None:
    format = auto()
    format({"prompt": "Hi", **SIDES})
    again = pickle.loads(pickle.dumps(format))
    assert again({"prompt": "Hi", **SIDES}) == Pair((U,), (A,), (B,))
    assert repr(again) == "auto()"


def test_a_system_field_is_not_lost() -> None:
    assert auto()({"prompt": "Hi", **SIDES, "system": "s"}).prompt == (system("s"), U)  # type: ignore[union-attr]
