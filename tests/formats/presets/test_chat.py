from __future__ import annotations

from typing import Any

import pytest

from ms_prefstream.errors import OptionError, Reason
from ms_prefstream.formats import messages
from ms_prefstream.formats.record import Completion, Message, Pair

from ..conversations import assistant, raw, refusal, system, tool, user

U, A, B, C = user("Hi"), assistant("Hello"), assistant("What"), assistant("Bye")


def test_polarity_and_meaning() -> None:
    row = {"prompt": raw(system("s"), U), "chosen": raw(A), "rejected": raw(B), "margin": 1.5}
    assert messages()(row) == Pair((system("s"), U), (A,), (B,), margin=1.5)


@pytest.mark.parametrize("prompt", ["Hi", raw(U), raw(U)[0]])
@pytest.mark.parametrize("chosen", ["Hello", raw(A), raw(A)[0]])
@pytest.mark.parametrize("rejected", ["What", raw(B), raw(B)[0]])
def test_strings_single_turns_and_lists_mean_the_same(prompt: Any, chosen: Any, rejected: Any) -> None:
    assert messages()({"prompt": prompt, "chosen": chosen, "rejected": rejected}) == Pair((U,), (A,), (B,))


def test_the_implicit_prompt_is_the_shared_history() -> None:
    history = (U, A, user("more"))
    row = {"chosen": raw(*history, B), "rejected": raw(*history, C)}
    assert messages()(row) == Pair(history, (B,), (C,))


def test_histories_that_differ() -> None:
    row = {"chosen": raw(U, A, user("x"), C), "rejected": raw(U, B, user("x"), A)}
    refusal(Reason.HISTORY_DIFFERS, messages(), row)
    assert messages(history="common")(row) == Pair((U,), (A, user("x"), C), (B, user("x"), A))


def test_a_prompt_repeated_in_the_sides_stays_once() -> None:
    for prompt in ("Hi", raw(U)):
        assert messages()({"prompt": prompt, "chosen": raw(U, A), "rejected": raw(U, B)}) == Pair((U,), (A,), (B,))
    refusal(Reason.HISTORY_DIFFERS, messages(), {"prompt": "Hi ", "chosen": raw(U, A), "rejected": raw(U, B)})


def test_system_field_tools_and_tool_turns() -> None:
    calls = [{"type": "function", "function": {"name": "add", "arguments": "{}"}}]
    schema = {"type": "function", "function": {"name": "add"}}
    row = {
        "system": "s",
        "tools": [schema],
        "prompt": "Hi",
        "chosen": [{"role": "assistant", "content": None, "tool_calls": calls}, *raw(tool("4"), A)],
        "rejected": "What",
    }
    call = Message("assistant", "", {"tool_calls": calls})
    assert messages()(row) == Pair((system("s"), U), (call, tool("4"), A), (B,), tools=(schema,))


def test_an_empty_system_message_is_absent_unless_kept() -> None:  # trap 19
    row = {"prompt": raw(system(""), U), "chosen": "Hello", "rejected": "What"}
    assert messages()(row).prompt == (U,)  # type: ignore[union-attr]
    assert messages(keep_empty_system=True)(row).prompt == (system(""), U)  # type: ignore[union-attr]
    beside = {"system": "", "prompt": "Hi", "chosen": "Hello", "rejected": "What"}
    assert messages()(beside).prompt == (U,)  # type: ignore[union-attr]
    assert messages(keep_empty_system=True)(beside).prompt == (system(""), U)  # type: ignore[union-attr]


def test_prompts_with_a_response() -> None:
    assert messages()({"prompt": "Hi", "response": "Hello"}) == Completion((U,), (A,))
    assert messages()({"prompt": raw(U), "response": raw(A)}) == Completion((U,), (A,))
    assert messages()({"prompt": "Hi", "response": raw(U, A)}) == Completion((U,), (A,))
    assert messages()({"prompt": "Hi"}) == Completion((U,))
    assert messages()({"prompt": "Hi", "chosen": None, "rejected": None}) == Completion((U,))


def test_whole_conversations_as_completions() -> None:
    assert messages()({"messages": raw(U, A)}) == Completion((U,), (A,))
    assert messages()({"messages": raw(U, A, user("x"))}) == Completion((U, A, user("x")))
    assert messages()({"messages": raw(U, B, user("x"), A), "tools": None}) == Completion((U, B, user("x")), (A,))
    assert messages()({"prompt": "Hi", "messages": raw(U, A)}) == Completion((U,), (A,))
    refusal(Reason.HISTORY_DIFFERS, messages(), {"prompt": "Ho", "messages": raw(U, A)})


def test_missing_fields_are_named() -> None:
    assert "'rejected' is missing" in refusal(Reason.MISSING_FIELD, messages(), {"prompt": "Hi", "chosen": "x"})
    assert "'chosen' is missing" in refusal(Reason.MISSING_FIELD, messages(), {"prompt": "Hi", "rejected": "x"})
    assert "'prompt' is missing" in refusal(Reason.MISSING_FIELD, messages(), {"chosen": "x", "rejected": "y"})
    assert "'prompt' is missing" in refusal(Reason.MISSING_FIELD, messages(), {"response": "x"})
    assert "'prompt' is missing" in refusal(Reason.MISSING_FIELD, messages(), {"text": "x"})
    assert "is null" in refusal(Reason.BAD_TYPE, messages(), {"prompt": "Hi", "chosen": "x", "rejected": None})
    no_prompt = {"chosen": raw(A), "rejected": raw(B)}
    assert "no prompt" in refusal(Reason.MISSING_FIELD, messages(), no_prompt)


def test_sides_without_an_answer() -> None:
    refusal(Reason.EMPTY_RESPONSE, messages(), {"prompt": "Hi", "chosen": [], "rejected": "x"})
    refusal(Reason.UNKNOWN_ROLE, messages(), {"prompt": "Hi", "chosen": "x", "rejected": raw(U)})
    refusal(Reason.EMPTY_RESPONSE, messages(), {"prompt": "Hi", "response": []})


def test_two_fields_for_one_thing() -> None:
    refusal(Reason.AMBIGUOUS_FORMAT, messages(), {"prompt": "Hi", "response": "x", "messages": raw(U, A)})


def test_rows_that_are_no_rows() -> None:
    for row in (None, "text", ["Hi"], 5):
        assert "the row is" in refusal(Reason.BAD_TYPE, messages(), row)


def test_options_check_themselves() -> None:
    with pytest.raises(OptionError, match="history is 'first'"):
        messages(history="first")  # type: ignore[arg-type]


def test_the_row_is_not_changed() -> None:
    row = {"prompt": raw(system(""), U), "chosen": raw(A), "rejected": raw(B), "system": "s", "tools": "[]"}
    before = repr(row)
    messages()(row)
    assert repr(row) == before
