from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ms_prefstream.errors import Reason
from ms_prefstream.formats.messages import dialogue
from ms_prefstream.formats.record import Message

from .conversations import assistant, refusal, user

MARKERS = {"user": "Human", "assistant": "Assistant"}


def test_turns_keep_their_text_to_the_letter() -> None:
    text = "\n\nHuman: Hi \n\nAssistant:  two\n\nlines\n\n\nHuman:no space\n\nAssistant: end \n"
    assert dialogue(text, "chosen") == (
        user("Hi "),
        assistant(" two\n\nlines\n"),
        user("no space"),
        assistant("end \n"),
    )


def test_names_inside_a_turn_are_text() -> None:
    text = "\n\nHuman: a\nAssistant: b Human: c\n\nhuman: d\n\nHumans: e\n\nAssistant: f"
    assert dialogue(text, "chosen") == (user("a\nAssistant: b Human: c\n\nhuman: d\n\nHumans: e"), assistant("f"))


def test_the_first_marker_may_lack_its_newlines() -> None:
    assert dialogue("Human: a\n\nAssistant: b", "chosen") == (user("a"), assistant("b"))


def test_empty_turns_stay() -> None:
    assert dialogue("\n\nHuman:\n\nAssistant: ", "chosen") == (user(""), assistant(""))


@pytest.mark.parametrize("text", ["", "Hello", " \n\nHuman: a", "text\n\nHuman: a", "\nHuman: a"])
def test_text_before_the_first_marker_is_not_lost_but_refused(text: str) -> None:
    assert "field 'chosen'" in refusal(Reason.BAD_TYPE, lambda t: dialogue(t, "chosen"), text)


pieces = st.sampled_from(["\n", "\n\n", "Human", "Assistant", ": ", " ", "a", "你", "\r", "\u2028"])
spoken = (st.text() | st.lists(pieces, max_size=8).map("".join)).filter(
    lambda text: "\n\nHuman:" not in text and "\n\nAssistant:" not in text
)
spoken_turns = st.lists(
    st.builds(Message, st.sampled_from(["user", "assistant"]), spoken, st.none()), min_size=1, max_size=6
)


@given(spoken_turns)
def test_the_dialogue_rebuilt_from_messages_gives_the_messages(messages: list[Message]) -> None:
    text = "".join(f"\n\n{MARKERS[message.role]}: {message.content}" for message in messages)
    assert dialogue(text, "chosen") == tuple(messages)


@given(st.lists(pieces, max_size=20).map("".join))
def test_joining_the_turns_gives_the_dialogue_back(tail: str) -> None:
    text = "\n\nHuman:" + tail
    rebuilt = "".join(f"\n\n{MARKERS[m.role]}: {m.content}" for m in dialogue(text, "chosen"))
    for name in MARKERS.values():  # the space that belongs to a marker is the only thing that may be added
        rebuilt = rebuilt.replace(f"\n\n{name}: ", f"\n\n{name}:")
        text = text.replace(f"\n\n{name}: ", f"\n\n{name}:")
    assert rebuilt == text
