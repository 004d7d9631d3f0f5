"""Rows as public data sets and other trainers write them: read as they are meant, or refused with the line to add."""

from __future__ import annotations

from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream.errors import Reason
from ms_prefstream.formats.reader import reader
from ms_prefstream.formats.record import Completion, Message, Pair
from ms_prefstream.formats.registry import resolve_format

from .conversations import assistant, raw, refusal, system, user

U, A, B = user("Hi"), assistant("Hello"), assistant("What")
SIDES = {"chosen": "Hello", "rejected": "What"}
WHOLE = {"chosen": raw(U, A), "rejected": raw(U, B)}


def shared_gpt(*messages: Message) -> list[dict[str, str]]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": names[m.role], "value": m.content} for m in messages]


def read(row: Any, **options: Any) -> Any:
    return reader(resolve_format("auto"), **options)(row)


READ: dict[str, dict[str, Any]] = {
    "TRL, standard": {"prompt": "Hi", **SIDES},
    "TRL, conversational": {"prompt": raw(U), "chosen": raw(A), "rejected": raw(B)},
    "TRL, implicit prompt": WHOLE,
    "XTuner": {"prompt": raw(U), "chosen": raw(A), "rejected": raw(B)},
    "LLaMA-Factory, alpaca": {"instruction": "Hi", "input": "", **SIDES, "system": "", "history": []},
    "LLaMA-Factory, sharegpt": {
        "conversations": shared_gpt(U),
        "chosen": shared_gpt(A)[0],
        "rejected": shared_gpt(B)[0],
        "images": [],
    },
    "OpenRLHF": WHOLE,
    "axolotl": {"messages": raw(U), "chosen": raw(A)[0], "rejected": raw(B)[0]},
    "Argilla": {"prompt": "Hi", "chosen": raw(U, A), "rejected": raw(U, B), "chosen_rating": 4.0, "chosen_model": "x"},
    "Tulu 3": {"id": "7", "source": "x", "prompt": "Hi", **WHOLE, "chosen_rating": 5.0, "rejected_model": "y"},
    "Skywork": {**WHOLE, "source": "magpie"},
    "orca_dpo_pairs": {"system": "", "question": "Hi", **SIDES},
    "PKU-SafeRLHF": {
        "prompt": "Hi",
        "response_0": "What",
        "response_1": "Hello",
        "better_response_id": 1,
        "safer_response_id": 0,
        "is_response_0_safe": False,
        "prompt_source": "x",
        "response_0_source": "y",
        "response_0_harm_category": {"Violence": True},
        "response_0_sha256": "ab",
    },
    "HelpSteer3": {
        "context": raw(U),
        "response1": "Hello",
        "response2": "What",
        "overall_preference": -1,
        "domain": "general",
        "language": "english",
    },
    "Capybara": {**WHOLE, "source": "x", "rating_chosen": 5, "rating_rejected": 3, "chosen_model": ""},
    "ms-swift": {"messages": raw(U, A), "rejected_response": "What"},
}


@pytest.mark.parametrize("name", READ)
def test_read(name: str) -> None:
    found = read(READ[name])
    assert (found.prompt, found.chosen, found.rejected, found.unread) == ((U,), (A,), (B,), ())


def test_ultrafeedback_binarized() -> None:
    row = {
        "prompt": "Hi",
        "prompt_id": "ab",
        **WHOLE,
        "messages": raw(U, A),
        "score_chosen": 8.5,
        "score_rejected": 6.0,
    }
    assert read(row) == Pair((U,), (A,), (B,), 2.5)


def test_axolotl_with_more_turns_and_a_system_message() -> None:
    before = (system("Be brief."), U, A, user("And?"))
    assert read({"messages": raw(*before), "chosen": raw(A), "rejected": raw(B)}) == Pair(before, (A,), (B,))
    assert read({"messages": raw(*before), **SIDES}) == Pair(before, (A,), (B,))
    repeated = {"messages": raw(*before), "chosen": raw(*before, A), "rejected": raw(*before, B)}
    assert read(repeated) == Pair(before, (A,), (B,))
    refusal(Reason.AMBIGUOUS_FORMAT, read, {"messages": raw(U), "chosen": "\n\nHuman: Hi", "rejected": "What"})


def test_prompt_and_completion() -> None:
    """TRL's form for a prompt with its response; `response` is the other name of the second field."""
    assert read({"prompt": "q", "completion": "Blue"}) == Completion((user("q"),), (assistant("Blue"),))
    assert read({"prompt": raw(U), "completion": raw(A)}) == Completion((U,), (A,))
    dialogue = {"prompt": "\n\nHuman: Hi\n\nAssistant:", "completion": " Hello"}
    assert reader(mps.formats.hh_rlhf())(dialogue) == Completion((U,), (A,))
    both = read({"prompt": "q", "completion": "a", "response": "b"})
    assert (both.response, both.unread) == ((assistant("b"),), ("completion",))
    assert "field 'completion' is int 5" in refusal(Reason.BAD_TYPE, read, {"prompt": "q", "completion": 5})
    shown = mps.encode({"prompt": "q", "completion": "Blue"}, task=mps.RLHF(64, 128), tokenizer="bytes")
    assert "Blue" in "".join(shown.sides[0].trained)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "completion": "Hello", "label": True},
        {"prompt": raw(U), "completion": raw(A), "label": True},
        {"messages": raw(U, A), "label": True},
        {"conversations": shared_gpt(U, A), "kto_tag": True},
        {"instruction": "Hi", "output": "Hello", "kto_tag": True},
    ],
)
def test_unpaired_rows_are_known(row: dict[str, Any]) -> None:
    assert read(row) == Completion((U,), (A,), desirable=True)
    name = "label" if "label" in row else "kto_tag"
    assert read({**row, name: False}).desirable is False
    assert read({**row, name: None}).desirable is None
    found = mps.encode(row, task=mps.DPO(64), tokenizer="bytes")
    assert found.reason is Reason.MISSING_FIELD
    assert "the row is unpaired" in found.problem
    assert mps.encode(row, task=mps.RLHF(32, 64), tokenizer="bytes").kept


@pytest.mark.parametrize(
    ("row", "preset"),
    [
        ({"question": "Hi", **SIDES, "messages": raw(U)}, "orca"),
        ({"instruction": "Hi", **SIDES, "messages": raw(U)}, "alpaca"),
        ({"conversations": raw(U), **SIDES, "messages": raw(U)}, "sharegpt"),
        ({"prompt": "Hi", **SIDES, "messages": raw(U)}, "strings"),
        ({"prompt": "Hi", **SIDES, "query": "Hi", "response": "Hello"}, "strings"),
        ({"prompt": "Hi", "response": "Hello", "query": "x"}, "strings"),
        ({"prompt": "Hi", "responses": ["a", "b"], "scores": [2, 1], "completion": "x"}, "ranked"),
        ({"prompt": "Hi", "pos_resp": "a", "neg_resp": "b", "completion": "x"}, "cvalues"),
        ({"prompt": "Hi", "query": "x"}, "strings"),
    ],
)
def test_rows_that_another_preset_reads_stay_with_it(row: dict[str, Any], preset: str) -> None:
    assert mps.formats.auto().decide(row).preset == preset


PAIR_LINE = 'Pass fields={{"prompt": "{}", "chosen": "{}", "rejected": "{}"}}.'
READY: list[tuple[dict[str, Any], str]] = [
    ({"question": "q", "good": "a", "bad": "b"}, PAIR_LINE.format("question", "good", "bad")),
    (
        {"instruction": "q", "chosen_response": "a", "rejected_response": "b", "chosen_avg_rating": 4.0},
        PAIR_LINE.format("instruction", "chosen_response", "rejected_response"),
    ),
    (
        {"system": "", "history": [], "question": "q", "response_chosen": "a", "response_rejected": "b"},
        PAIR_LINE.format("question", "response_chosen", "response_rejected"),
    ),
    (
        {"input": "q", "winning_output": "a", "losing_output": "b"},
        PAIR_LINE.format("input", "winning_output", "losing_output"),
    ),
    (
        {"query": "q", "preferred": {"text": "a", "id": 1}, "dispreferred": {"text": "b", "id": 2}},
        PAIR_LINE.format("query", "preferred.text", "dispreferred.text"),
    ),
    ({"query": "q", "answer": "a"}, 'Pass fields={"prompt": "query", "response": "answer"}.'),
    ({"prompt": "q", "output": "a"}, 'Pass fields={"response": "output"}.'),
    (
        {"instruction": "q", "completions": [{"response": "a"}], "models": ["x"]},
        'Pass fields={"prompt": "instruction"}.',
    ),
    (
        {"context": raw(U), "chosen": raw(A)[0], "rejected": raw(B)[0]},
        'Pass fields={"prompt": "context"}.',
    ),
    (
        {"conversation_a": raw(U, A), "conversation_b": raw(U, B), "winner": "model_b"},
        'Pass format=lambda row: {"chosen": row["conversation_a"], "rejected": row["conversation_b"]} '
        'if row["winner"] == "model_a" else',
    ),
    (
        {"prompt": "q", "response_1": "a", "response_2": "b", "preference_strength": 1},
        'Pass format=lambda row: {"prompt": row["prompt"], "chosen": row["response_1"], "rejected": row["response_2"]} '
        'if row["preference_strength"] … else',
    ),
]


@pytest.mark.parametrize(("row", "line"), READY)
def test_refused_with_the_line_to_add(row: dict[str, Any], line: str) -> None:
    said = refusal(Reason.MISSING_FIELD, read, row)
    assert line in said
    assert "nearest" not in said


@pytest.mark.parametrize(("row", "line"), [(row, line) for row, line in READY if "fields=" in line])
def test_the_line_makes_the_row_readable(row: dict[str, Any], line: str) -> None:
    fields = eval(line[line.index("{") : line.rindex("}") + 1])
    if "completions" in row:
        row = {**row, "completions": [{"response": "a", "score": 2}, {"response": "b", "score": 1}]}
    read(row, fields=fields)


def test_a_prompt_alone_beside_two_answers() -> None:
    row = {"prompt": "q", "response_a": "a", "response_b": "b", "preferred": "a"}
    assert set(mps.encode(row, task=mps.RLHF(64, 128), tokenizer="bytes").unread) == {
        "response_a",
        "response_b",
        "preferred",
    }
    problem = mps.encode(row, task=mps.DPO(32), tokenizer="bytes").problem
    assert "nothing reads the fields preferred, response_a, response_b" in problem
    assert 'Pass format=lambda row: {"prompt": row["prompt"], "chosen": row["response_a"]' in problem


def test_calls_of_several_turns_in_a_row_are_one_turn() -> None:
    def call(name: str) -> dict[str, Any]:
        return {"type": "function", "function": {"name": name, "arguments": {}}}

    spoken = [
        {"from": "human", "value": "Hi"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
        {"from": "function_call", "value": '{"name": "g", "arguments": {}}'},
        {"from": "observation", "value": "2"},
        {"from": "function_call", "value": '{"name": "h", "arguments": {}}'},
        {"from": "gpt", "value": "Hello"},
    ]
    found = read({"conversations": spoken})
    calls = [(message.extra or {}).get("tool_calls") for message in found.response]
    assert calls == [[call("f"), call("g")], None, [call("h")], None]
    written = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Wait.", "tool_calls": [call("f")]},
        {"role": "assistant", "content": None, "tool_calls": [call("g"), call("h")]},
        {"role": "assistant", "content": "And", "tool_calls": [call("f")]},
    ]
    found = read({"prompt": raw(U), "chosen": written[1:], "rejected": raw(B)})
    assert [message.content for message in found.chosen] == ["Wait.", "And"]
    assert found.chosen[0].extra == {"tool_calls": [call("f"), call("g"), call("h")]}
    kept = read({"prompt": raw(U), "chosen": [*raw(A), written[2]], "rejected": raw(B)})
    assert len(kept.chosen) == 2


def test_a_prompt_that_ends_inside_an_answer_stays_as_it_is() -> None:
    """The encoder decides: `continue_final_message`."""
    begun = (user("Name a colour."), assistant("The colour is"))
    found = read({"prompt": raw(*begun), "chosen": " blue.", "rejected": " square."})
    assert found == Pair(begun, (assistant(" blue."),), (assistant(" square."),))
    assert Reason("prompt_ends_with_answer").malformed
