from __future__ import annotations

import json
import pathlib

import pytest

from ms_prefstream.errors import OptionError, Reason
from ms_prefstream.formats import sharegpt
from ms_prefstream.formats.record import Completion, Message, Pair

from ..conversations import assistant, refusal, system, tool, user

ROW = {
    "conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "Hi"}],
    "chosen": {"from": "gpt", "value": "Hello"},
    "rejected": {"from": "gpt", "value": "What"},
}


def test_polarity_and_meaning() -> None:
    assert sharegpt()(ROW) == Pair((system("s"), user("Hi")), (assistant("Hello"),), (assistant("What"),))


def test_the_system_field_and_margin() -> None:
    row = {**ROW, "conversations": ROW["conversations"][1:], "system": "t", "margin": 2}
    assert sharegpt()(row) == Pair((system("t"), user("Hi")), (assistant("Hello"),), (assistant("What"),), 2.0)
    refusal(Reason.AMBIGUOUS_FORMAT, sharegpt(), {**ROW, "system": "t"})


def test_tool_calls_and_observations() -> None:
    turns = [
        {"from": "human", "value": "1 + 1"},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
        {"from": "observation", "value": "2"},
    ]
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    found = sharegpt()({**ROW, "conversations": turns, "tools": '[{"name": "add"}]'})
    prompt = (user("1 + 1"), Message("assistant", "", {"tool_calls": [call]}), tool("2"))
    assert found == Pair(prompt, (assistant("Hello"),), (assistant("What"),), tools=({"name": "add"},))


def test_conversations_alone_are_completions() -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    assert sharegpt()({"conversations": turns}) == Completion((user("Hi"),), (assistant("Hello"),))
    assert sharegpt()({"conversations": turns[:1]}) == Completion((user("Hi"),))


def test_empty_system_turns() -> None:  # trap 19
    row = {**ROW, "conversations": [{"from": "system", "value": ""}, {"from": "human", "value": "Hi"}]}
    assert sharegpt()(row).prompt == (user("Hi"),)  # type: ignore[union-attr]
    assert sharegpt(keep_empty_system=True)(row).prompt == (system(""), user("Hi"))  # type: ignore[union-attr]


def test_what_is_refused() -> None:
    refusal(Reason.MISSING_FIELD, sharegpt(), {"chosen": "x", "rejected": "y"})
    refusal(Reason.MISSING_FIELD, sharegpt(), {"conversations": ROW["conversations"], "chosen": "x"})
    refusal(Reason.MISSING_FIELD, sharegpt(), {"conversations": []})
    refusal(Reason.UNKNOWN_ROLE, sharegpt(), {**ROW, "chosen": {"from": "alice", "value": "x"}})
    refusal(Reason.UNKNOWN_ROLE, sharegpt(), {**ROW, "rejected": {"from": "human", "value": "Hi"}} | {"chosen": "x"})
    with pytest.raises(OptionError):
        sharegpt(history="x")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["dpo_en_demo.json", "dpo_zh_demo.json"])
def test_every_real_row_keeps_every_turn(shared: pathlib.Path, name: str) -> None:
    rows = json.loads((shared / "data" / name).read_text("utf-8"))
    assert len(rows) == 300
    for row in rows:
        found = sharegpt()(row)
        assert isinstance(found, Pair)
        assert [m.content for m in found.prompt] == [turn["value"] for turn in row["conversations"] if turn["value"]]
        assert found.chosen == (assistant(row["chosen"]["value"]),)
        assert found.rejected == (assistant(row["rejected"]["value"]),)
