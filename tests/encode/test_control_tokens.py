"""Control tokens in text: found, cut out, hidden and shown again."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ms_prefstream.encode.backends.added import Cut
from ms_prefstream.encode.control_tokens import ControlTokens

TOKENS = ControlTokens({"<|a|>": 5, "<|a|><|b|>": 6, "<|b|>": 7, "</s>": 8, "": 9})
texts = st.lists(
    st.sampled_from(
        ["<|a|>", "<|b|>", "</s>", "<|", "|>", "a", "\ue002", "\ue003", "\ue0020\ue003", "0", "\ue0024\ue003", "你"]
    )
).map("".join)


@settings(settings.get_profile("cheap"), derandomize=True)
@given(texts)
def test_hiding_is_undone_and_leaves_no_control_token(text: str) -> None:
    hidden = TOKENS.hide(text)
    assert TOKENS.find(hidden) is None
    assert TOKENS.reveal(hidden) == text


@settings(settings.get_profile("cheap"), derandomize=True)
@given(texts, st.integers(0, 5))
def test_cuts_make_up_the_text(text: str, begin: int) -> None:
    cuts = list(TOKENS.cut(text, begin))
    assert "".join(text[cut.begin : cut.end] for cut in cuts) == text[begin:]
    for cut in cuts:
        assert TOKENS.ids.get(text[cut.begin : cut.end], -1) == cut.id
    assert (TOKENS.find(text) is None) == all(cut.id < 0 for cut in TOKENS.cut(text))


def test_the_longest_token_wins() -> None:
    assert list(TOKENS.cut("x<|a|><|b|>y")) == [Cut(0, 1, -1), Cut(1, 11, 6), Cut(11, 12, -1)]
    assert TOKENS.find("x<|b|><|a|>") == "<|b|>"


def test_structures() -> None:
    value = {"k</s>": ["<|a|>", ("x", 3, None)], "n": {"m": "</s>"}}
    hidden = TOKENS.hide(value)
    assert TOKENS.find_in(value) is not None
    assert TOKENS.find_in(hidden) is None
    assert TOKENS.find_in({"x": [1, "<|b|>"]}) == "<|b|>"
    assert hidden["n"] != value["n"]
    assert TOKENS.find_in(7) is None


@pytest.mark.parametrize(
    ("text", "begin", "first", "last"),
    [("a</s>b</s> \n", 0, 1, 6), ("a</s>b", 0, 1, None), ("ab", 0, None, None), ("</s></s>", 1, 4, 4)],
)
def test_first_and_last(text: str, begin: int, first: int | None, last: int | None) -> None:
    found, closing = TOKENS.first(text, begin, len(text)), TOKENS.last(text, begin, len(text))
    assert (found.begin if found else None) == first
    assert (closing.begin if closing else None) == last


def test_no_tokens_at_all() -> None:
    none = ControlTokens({})
    assert none.find("a") is None
    assert list(none.cut("a")) == [Cut(0, 1, -1)]
    assert none.reveal(none.hide("\ue002")) == "\ue002"
