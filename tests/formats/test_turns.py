from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ms_prefstream.errors import Reason
from ms_prefstream.formats.messages import ROLES, lead_with_system, turns
from ms_prefstream.formats.record import Message

from .conversations import assistant, refusal, system, tool, user


def read(value: Any) -> tuple[Message, ...]:
    return turns(value, "chosen", "assistant")


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("system", "system"),
        ("developer", "system"),
        ("user", "user"),
        ("human", "user"),
        ("assistant", "assistant"),
        ("gpt", "assistant"),
        ("bot", "assistant"),
        ("tool", "tool"),
        ("observation", "tool"),
        ("ipython", "tool"),
        ("function", "tool"),
        ("tool_response", "tool"),
    ],
)
def test_every_role_name_in_both_spellings(name: str, role: str) -> None:
    assert ROLES[name] == role
    assert read([{"role": name, "content": "x"}]) == (Message(role, "x"),)
    assert read([{"from": name, "value": "x"}]) == (Message(role, "x"),)


def test_all_known_roles_are_tested() -> None:
    assert len(ROLES) == 12


def test_text_one_turn_lists_tuples_and_arrays() -> None:
    turn = {"role": "user", "content": "x"}
    assert read("x") == (assistant("x"),)
    assert read(turn) == read([turn]) == read((turn,)) == read(np.array([turn], object)) == (user("x"),)


def test_an_unknown_role_is_named_with_the_known_ones_and_the_nearest() -> None:
    said = refusal(Reason.UNKNOWN_ROLE, read, [{"role": "user", "content": "x"}, {"role": "asistant", "content": "x"}])
    assert "turn 2 of field 'chosen'" in said
    assert "'asistant'" in said
    assert "Did you mean 'assistant'?" in said
    assert "observation" in said


def test_no_turn_is_lost_or_changed() -> None:
    texts = ["", " a ", "\n", "a\r\n", "<|im_end|>"]
    assert [m.content for m in read([{"role": "user", "content": t} for t in texts])] == texts


def test_text_blocks_are_joined_without_anything_between() -> None:
    blocks = [{"type": "text", "text": "a"}, {"type": "text", "text": " b"}]
    assert read([{"role": "user", "content": blocks}]) == (user("a b"),)
    assert read([{"role": "user", "content": []}]) == (user(""),)


def test_blocks_that_are_not_text_are_refused() -> None:
    blocks = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}]
    said = refusal(Reason.BAD_TYPE, read, [{"role": "user", "content": blocks}])
    assert "block 2 of turn 1 of field 'chosen'" in said
    assert "image_url" in said
    refusal(Reason.BAD_TYPE, read, [{"role": "user", "content": ["a"]}])


def test_null_content_only_with_tool_calls() -> None:
    calls = [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]
    assert read([{"role": "assistant", "content": None, "tool_calls": calls}]) == (
        Message("assistant", "", {"tool_calls": calls}),
    )
    assert read([{"role": "assistant", "tool_calls": calls}])[0].content == ""
    refusal(Reason.BAD_TYPE, read, [{"role": "assistant", "content": None}])
    refusal(Reason.BAD_TYPE, read, [{"role": "assistant", "content": None, "tool_calls": []}])
    assert "field 'content' is missing" in refusal(Reason.MISSING_FIELD, read, [{"role": "assistant"}])
    assert "field 'value' is missing" in refusal(Reason.MISSING_FIELD, read, [{"from": "gpt"}])


def test_further_keys_are_kept_and_null_ones_are_absent() -> None:
    (found,) = read([{"role": "tool", "content": "4", "name": "add", "tool_call_id": "1", "tool_calls": None}])
    assert found == Message("tool", "4", {"name": "add", "tool_call_id": "1"})
    assert read([{"role": "user", "content": "x", "name": None}])[0].extra is None


@pytest.mark.parametrize(
    "calls", ["zz", [None], [{}], [{"function": {}}], [{"function": {"name": None}}], [{"name": "a"}, 3]]
)
def test_tool_calls_that_a_template_would_leave_out_are_named(calls: Any) -> None:
    said = refusal(Reason.BAD_TYPE, read, [{"role": "assistant", "content": "", "tool_calls": calls}])
    assert "a call in the tool_calls of turn 1 of field" in said
    assert "expected {'type': 'function', 'function': {'name', 'arguments'}}" in said


def test_a_function_call_turn_becomes_tool_calls() -> None:
    (found,) = read([{"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'}])
    assert found.role == "assistant"
    assert found.content == ""
    assert found.extra == {"tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]}
    (both,) = read([{"from": "function_call", "value": '[{"name": "a"}, {"name": "b"}]'}])
    assert both.extra is not None
    assert [call["function"]["name"] for call in both.extra["tool_calls"]] == ["a", "b"]


@pytest.mark.parametrize("value", ["not json", "[]", '{"arguments": 1}', None, "5"])
def test_a_function_call_that_is_no_call_is_refused(value: Any) -> None:
    assert "turn 1" in refusal(Reason.BAD_TYPE, read, [{"from": "function_call", "value": value}])


def test_an_empty_system_message_is_absent_unless_kept() -> None:  # trap 19
    rows = [{"role": "system", "content": ""}, {"role": "user", "content": ""}]
    assert turns(rows, "prompt", "user") == (user(""),)
    assert turns(rows, "prompt", "user", keep_empty_system=True) == (system(""), user(""))
    assert turns({"role": "system", "content": ""}, "prompt", "user") == ()


def test_turns_that_are_no_turns() -> None:
    assert "field 'chosen' is int 5" in refusal(Reason.BAD_TYPE, read, 5)
    assert "turn 1 of field 'chosen' is str 'x'" in refusal(Reason.BAD_TYPE, read, ["x"])
    assert "field 'role' is missing" in refusal(Reason.MISSING_FIELD, read, [{"content": "x"}])
    assert "the role of turn 1" in refusal(Reason.BAD_TYPE, read, [{"role": 1, "content": "x"}])
    assert "both 'role' and 'from'" in refusal(
        Reason.AMBIGUOUS_FORMAT, read, [{"role": "user", "from": "gpt", "content": "x", "value": "y"}]
    )
    assert "the turn in field 'chosen'" in refusal(Reason.UNKNOWN_ROLE, read, {"role": "narrator", "content": "x"})


def test_the_rows_own_system_field_leads() -> None:
    prompt = (user("x"),)
    assert lead_with_system({"system": "s"}, prompt) == (system("s"), user("x"))
    assert lead_with_system({"system": ""}, prompt) == prompt == lead_with_system({"system": None}, prompt)
    assert lead_with_system({"system": ""}, prompt, keep_empty_system=True) == (system(""), user("x"))
    assert lead_with_system({"system": "s"}, (system("s"), user("x"))) == (system("s"), user("x"))
    refusal(Reason.AMBIGUOUS_FORMAT, lambda row: lead_with_system(row, (system("t"),)), {"system": "s"})
    refusal(Reason.BAD_TYPE, lambda row: lead_with_system(row, prompt), {"system": {"a": 1}})


def test_the_tool_role_message_helper_is_a_tool() -> None:
    assert read([{"role": "ipython", "content": "4"}]) == (tool("4"),)
