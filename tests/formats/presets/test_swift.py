from __future__ import annotations

import json
from typing import Any

import pytest

from ms_prefstream.errors import Reason
from ms_prefstream.formats import auto, swift
from ms_prefstream.formats.reader import reader
from ms_prefstream.formats.record import Completion, Message, Pair

from ..conversations import assistant, raw, refusal, system, tool, user

U, A, B = user("Hi"), assistant("Hello"), assistant("What")
PAIR = Pair((U,), (A,), (B,))
CALL = {"name": "add", "arguments": {"a": 1}}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": raw(U, A), "rejected_response": "What"},
        {"messages": raw(U, A), "rejected_response": raw(B)},
        {"messages": raw(U, A), "rejected_response": raw(B)[0]},
        {"messages": raw(U, A), "rejected_messages": raw(U, B)},
        {"messages": raw(U, A), "rejected_messages": raw(B)},
        {"conversations": raw(U, A), "rejected_response": "What"},
        {"query": "Hi", "response": "Hello", "rejected_response": "What", "history": []},
        {"messages": json.dumps(raw(U, A)), "rejected_response": "What"},
    ],
)
def test_every_way_to_reject_an_answer(row: dict[str, Any]) -> None:
    assert reader(auto())(row) == PAIR
    assert reader(swift())(row) == PAIR
    assert reader(swift())({**row, "margin": 2}).margin == 2  # type: ignore[union-attr]
    assert reader(swift())({**row, "system": "s"}).prompt == (system("s"), U)  # type: ignore[union-attr]


def test_earlier_turns_are_the_prompt() -> None:
    row = {"messages": raw(system("s"), U, A, user("And?"), A), "rejected_response": "What"}
    assert auto()(row) == Pair((system("s"), U, A, user("And?")), (A,), (B,))
    old = {"query": "And?", "response": "Hello", "rejected_response": "What", "history": [["Hi", "Hello"]]}
    assert auto()(old) == Pair((U, A, user("And?")), (A,), (B,))


def test_tool_calls_and_their_responses() -> None:
    called = [
        {"role": "user", "content": "1 + 1?"},
        {"role": "tool_call", "content": '{"name": "add", "arguments": {"a": 1}}'},
        {"role": "tool_call", "content": CALL},
        {"role": "tool_response", "content": "2"},
        {"role": "assistant", "content": "Hello"},
    ]
    calls = [{"type": "function", "function": CALL}] * 2
    prompt = (user("1 + 1?"), Message("assistant", "", {"tool_calls": calls}), tool("2"))
    assert auto()({"messages": called, "rejected_response": "What"}) == Pair(prompt, (A,), (B,))
    replaced = auto()({"messages": called, "rejected_response": raw(B)})
    assert replaced == Pair(prompt[:1], (*prompt[1:], A), (B,))


def test_a_query_with_a_response_alone() -> None:
    assert auto()({"query": "Hi", "response": "Hello"}) == Completion((U,), (A,))


def test_what_is_missing() -> None:
    said = refusal(Reason.MISSING_FIELD, auto(), {"messages": raw(U), "rejected_response": "What"})
    assert "does not end with an answer" in said
    refusal(Reason.MISSING_FIELD, swift(), {"messages": raw(U, A)})
    refusal(Reason.MISSING_FIELD, swift(), {"query": "Hi"})


def test_its_text_names_the_options() -> None:
    assert repr(swift()) == "swift(history='strict', keep_empty_system=False)"
