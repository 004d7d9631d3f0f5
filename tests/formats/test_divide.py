from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ms_prefstream.errors import OptionError, Reason, RowError
from ms_prefstream.formats.divide import check_history, divide, split_response
from ms_prefstream.formats.record import Message, Messages

from .conversations import assistant, refusal, system, tool, user

U, V, A, B, C, D = user("u"), user("v"), assistant("a"), assistant("b"), assistant("c"), assistant("d")
X, Y, S = tool("x"), tool("y"), system("s")


def test_whole_conversations_divide_at_the_first_differing_message() -> None:
    assert divide((), (U, A, V, C), (U, A, V, D)) == ((U, A, V), (C,), (D,))
    assert divide((), (S, U, C), (S, U, D)) == ((S, U), (C,), (D,))


def test_tool_turns_may_differ_behind_the_divide() -> None:
    assert divide((), (U, A, X, C), (U, B, Y, D)) == ((U,), (A, X, C), (B, Y, D))
    assert divide((), (U, A, X, C), (U, A, X, D)) == ((U, A, X), (C,), (D,))  # trap 22: the shared call is prompt
    assert divide((), (U, A, X, C), (U, D)) == ((U,), (A, X, C), (D,))


def test_history_that_differs_is_an_error_by_default_and_cut_by_common() -> None:  # trap 5
    left, right = (U, A, V, C), (U, B, V, D)
    with pytest.raises(RowError) as caught:
        divide((), left, right)
    assert caught.value.reason is Reason.HISTORY_DIFFERS
    assert "turn 2" in str(caught.value)
    assert 'history="common"' in str(caught.value)
    assert divide((), left, right, "common") == ((U,), (A, V, C), (B, V, D))


def test_user_turns_that_differ() -> None:
    left, right = (U, A, V, C), (U, A, U, D)
    refusal(Reason.HISTORY_DIFFERS, lambda _: divide((), left, right), None)
    assert divide((), left, right, "common") == ((U, A), (V, C), (U, D))


def test_nothing_in_common_is_never_a_pair() -> None:
    for history in ("strict", "common"):
        refusal(Reason.HISTORY_DIFFERS, lambda _, h=history: divide((), (U, A), (V, B), h), None)
        refusal(Reason.HISTORY_DIFFERS, lambda _, h=history: divide((), (S, U, A), (U, B), h), None)
        refusal(Reason.MISSING_FIELD, lambda _, h=history: divide((), (A,), (B,), h), None)


def test_both_sides_keep_a_turn_of_the_assistant() -> None:
    assert divide((), (U, A), (U, A)) == ((U,), (A,), (A,))  # identical: the encoder's matter
    assert divide((), (U, A), (U, A, V, B), "common") == ((U,), (A,), (A, V, B))
    for side, reason in (((), Reason.EMPTY_RESPONSE), ((U,), Reason.UNKNOWN_ROLE), ((U, X), Reason.UNKNOWN_ROLE)):
        said = refusal(reason, lambda _, s=side: divide((U,), (A,), s), None)
        assert "'rejected'" in said


def test_conversations_that_end_with_the_user_are_not_guessed_at() -> None:
    refusal(Reason.HISTORY_DIFFERS, lambda _: divide((), (U, A, V), (U, B, V)), None)
    assert divide((), (U, A, V), (U, B, V), "common") == ((U,), (A, V), (B, V))


def test_a_prompt_is_continued() -> None:
    assert divide((U,), (A,), (B,)) == ((U,), (A,), (B,))
    assert divide((U,), (A, X, C), (A, X, D)) == ((U, A, X), (C,), (D,))
    assert divide((U, A), (V, C), (V, D)) == ((U, A, V), (C,), (D,))


def test_a_repeated_prompt_is_recognised_by_equality_only() -> None:
    assert divide((U,), (U, A), (U, B)) == ((U,), (A,), (B,))
    assert divide((U,), (S, U, A), (S, U, B)) == ((S, U), (A,), (B,))
    assert divide((S, U), (S, U, A), (S, U, B)) == ((S, U), (A,), (B,))
    assert divide((V,), (U, A, V, C), (U, A, V, D)) == ((U, A, V), (C,), (D,))  # one user turn: the last one
    assert divide((U,), (U, A), (B,)) == ((U,), (A,), (B,))  # one side repeats it, one does not
    for spaced in ("u ", " u", "U", ""):
        said = refusal(Reason.HISTORY_DIFFERS, lambda _, t=spaced: divide((user(t),), (U, A), (U, B)), None)
        assert "does not repeat" in said


def test_a_prompt_never_shrinks() -> None:
    said = refusal(Reason.HISTORY_DIFFERS, lambda _: divide((U,), (S, U, A), (U, B), "common"), None)
    assert "share no prompt" in said
    # the prompt is the last turn of the user, and the turns before it differ
    refusal(Reason.HISTORY_DIFFERS, lambda _: divide((V,), (U, A, V, C), (U, B, V, D), "common"), None)


def test_extra_keys_count_when_histories_are_compared() -> None:
    left, right = Message("assistant", "a", {"name": "x"}), Message("assistant", "a", {"name": "y"})
    refusal(Reason.HISTORY_DIFFERS, lambda _: divide((), (U, left, V, C), (U, right, V, D)), None)


def test_split_response() -> None:
    assert split_response((U, A, V, B)) == ((U, A, V), (B,))
    assert split_response((U, A, X, B)) == ((U,), (A, X, B))
    assert split_response((U, A, V)) == ((U, A, V), ())
    assert split_response((U, A, X)) == ((U, A, X), ())
    assert split_response(()) == ((), ())


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(OptionError, match="history is 'loose'; allowed: 'strict'"):
        check_history("loose")


turn = st.sampled_from([U, V, A, B, X, S])
conversation = st.lists(turn, max_size=6).map(tuple)


@given(conversation, conversation, conversation, st.sampled_from(["strict", "common"]))
def test_no_message_is_lost_and_the_prompt_is_shared(
    p: Messages, left: Messages, right: Messages, history: str
) -> None:
    try:
        prompt, chosen, rejected = divide(p, left, right, history)  # type: ignore[arg-type]
    except RowError:
        return
    assert prompt + chosen in (left, p + left)
    assert prompt + rejected in (right, p + right)
    for side in (chosen, rejected):
        assert any(message.role == "assistant" for message in side)
    if history == "strict" and (len(chosen) > 1 or len(rejected) > 1):
        assert not any(message.role in ("user", "system") for message in itertools.chain(chosen, rejected))
