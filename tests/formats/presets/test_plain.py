from __future__ import annotations

from ms_prefstream.errors import Reason
from ms_prefstream.formats import strings
from ms_prefstream.formats.record import Completion, Pair

from ..conversations import assistant, refusal, system, user

ROW = {"prompt": "Hi ", "chosen": "\nHello", "rejected": " What"}


def test_polarity_and_exact_text() -> None:
    assert strings()(ROW) == Pair((user("Hi "),), (assistant("\nHello"),), (assistant(" What"),))
    assert strings()({**ROW, "margin": 1, "system": "s"}) == Pair(
        (system("s"), user("Hi ")), (assistant("\nHello"),), (assistant(" What"),), 1.0
    )


def test_completions() -> None:
    assert strings()({"prompt": "Hi", "response": "Hello"}) == Completion((user("Hi"),), (assistant("Hello"),))
    assert strings()({"prompt": "Hi"}) == Completion((user("Hi"),))


def test_earlier_turns_tools_and_system() -> None:
    row = {**ROW, "history": [["a", "b"], ("c", "d")], "tools": [{"name": "add"}], "system": "s"}
    found = strings()(row)
    assert isinstance(found, Pair)
    assert found.prompt == (system("s"), user("a"), assistant("b"), user("c"), assistant("d"), user("Hi "))
    assert found.tools == ({"name": "add"},)
    refusal(Reason.BAD_TYPE, strings(), {**ROW, "history": "a b"})
    assert strings()({**ROW, "history": [], "tools": None, "system": ""}) == strings()(ROW)


def test_what_is_refused() -> None:
    refusal(Reason.MISSING_FIELD, strings(), {"prompt": "Hi", "chosen": "x"})
    refusal(Reason.MISSING_FIELD, strings(), {"chosen": "x", "rejected": "y"})
    refusal(Reason.BAD_TYPE, strings(), {**ROW, "chosen": ["x"]})
    refusal(Reason.BAD_TYPE, strings(), {**ROW, "margin": "high"})


def test_dialogues_are_text_unless_refused() -> None:
    row = {**ROW, "prompt": "\n\nHuman: Hi\n\nAssistant:"}
    found = strings()(row)
    assert isinstance(found, Pair)
    assert found.prompt == (user(row["prompt"]),)
    refusal(Reason.AMBIGUOUS_FORMAT, strings(dialogues=False), row)
    assert (repr(strings()), repr(strings(dialogues=False))) == ("strings()", "strings(dialogues=False)")
