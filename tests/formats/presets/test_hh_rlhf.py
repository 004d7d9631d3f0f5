from __future__ import annotations

import pytest

from ms_prefstream.errors import OptionError, Reason
from ms_prefstream.formats import hh_rlhf
from ms_prefstream.formats.record import Completion, Pair

from ..conversations import assistant, refusal, user

HISTORY = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: More"


def test_polarity_and_meaning() -> None:
    row = {"chosen": HISTORY + "\n\nAssistant: Yes", "rejected": HISTORY + "\n\nAssistant: No"}
    prompt = (user("Hi"), assistant("Hello"), user("More"))
    assert hh_rlhf()(row) == Pair(prompt, (assistant("Yes"),), (assistant("No"),))
    assert hh_rlhf()({**row, "margin": 1}) == Pair(prompt, (assistant("Yes"),), (assistant("No"),), 1.0)


def test_equal_beginnings_of_the_answers_stay_in_the_answers() -> None:  # trap 4
    row = {"chosen": HISTORY + "\n\nAssistant: I think yes", "rejected": HISTORY + "\n\nAssistant: I think no"}
    found = hh_rlhf()(row)
    assert isinstance(found, Pair)
    assert found.chosen == (assistant("I think yes"),)
    assert found.rejected == (assistant("I think no"),)


def test_identical_and_prefixed_answers_do_not_crash() -> None:
    same = HISTORY + "\n\nAssistant: Yes"
    assert hh_rlhf()({"chosen": same, "rejected": same}) == Pair(
        (user("Hi"), assistant("Hello"), user("More")), (assistant("Yes"),), (assistant("Yes"),)
    )
    found = hh_rlhf()({"chosen": same + " sir", "rejected": HISTORY + "\n\nAssistant:"})
    assert isinstance(found, Pair)
    assert (found.chosen, found.rejected) == ((assistant("Yes sir"),), (assistant(""),))


def test_histories_that_differ() -> None:  # trap 5
    row = {
        "chosen": "\n\nHuman: Hi\n\nAssistant: A\n\nHuman: More\n\nAssistant: x",
        "rejected": "\n\nHuman: Hi\n\nAssistant: B\n\nHuman: More\n\nAssistant: y",
    }
    refusal(Reason.HISTORY_DIFFERS, hh_rlhf(), row)
    found = hh_rlhf(history="common")(row)
    assert isinstance(found, Pair)
    assert found.prompt == (user("Hi"),)
    assert [m.content for m in found.rejected] == ["B", "More", "y"]


def test_what_is_refused() -> None:
    said = refusal(Reason.BAD_TYPE, hh_rlhf(), {"chosen": "Hello", "rejected": "What"})
    assert "begins with" in said
    assert "'prompt'" in said
    refusal(Reason.UNKNOWN_ROLE, hh_rlhf(), {"chosen": "\n\nHuman: Hi", "rejected": "\n\nHuman: Hi"})
    refusal(Reason.MISSING_FIELD, hh_rlhf(), {"chosen": HISTORY})
    with pytest.raises(OptionError):
        hh_rlhf(history="x")  # type: ignore[arg-type]


OPENED = HISTORY + "\n\nAssistant:"
PROMPT = (user("Hi"), assistant("Hello"), user("More"))


@pytest.mark.parametrize("prompt", [HISTORY, OPENED])
@pytest.mark.parametrize("begin", ["", " ", "\n\nAssistant:", "\n\nAssistant: ", OPENED, OPENED + " "])
def test_a_prompt_of_its_own(prompt: str, begin: str) -> None:
    """Responses with and without a marker, and whole dialogues, beside a prompt whose last turn may be opened."""
    row = {"prompt": prompt, "chosen": begin + "Yes", "rejected": begin + "No"}
    assert hh_rlhf()({**row, "margin": 1}) == Pair(PROMPT, (assistant("Yes"),), (assistant("No"),), 1.0)
    assert hh_rlhf()({"prompt": prompt, "response": begin + "Yes"}) == Completion(PROMPT, (assistant("Yes"),))
    assert hh_rlhf()({"prompt": prompt}) == Completion(PROMPT)


def test_the_white_space_of_responses_stays() -> None:
    found = hh_rlhf()({"prompt": OPENED, "chosen": "  Yes \n", "rejected": "\nNo"})
    assert isinstance(found, Pair)
    assert (found.chosen, found.rejected) == ((assistant(" Yes \n"),), (assistant("\nNo"),))
    assert hh_rlhf()({"prompt": OPENED + " Yes"}) == Completion(PROMPT, (assistant("Yes"),))


@pytest.mark.parametrize("prompt", ["More", "", None, HISTORY])
def test_whole_dialogues_beside_the_last_question_or_nothing(prompt: str | None) -> None:
    row = {"prompt": prompt, "chosen": OPENED + " Yes", "rejected": OPENED + " No"}
    assert hh_rlhf()(row) == Pair(PROMPT, (assistant("Yes"),), (assistant("No"),))


def test_prompts_that_are_refused() -> None:
    sides = {"chosen": " Yes", "rejected": " No"}
    said = refusal(Reason.BAD_TYPE, hh_rlhf(), {"prompt": OPENED + " Sure,", **sides})
    assert "'Sure,'" in said
    assert "into the responses" in said
    said = refusal(Reason.BAD_TYPE, hh_rlhf(), {"prompt": "Hi", **sides})
    assert "format='strings'" in said
    whole = {"chosen": OPENED + " Yes", "rejected": OPENED + " No"}
    refusal(Reason.HISTORY_DIFFERS, hh_rlhf(), {"prompt": "\n\nHuman: Another", **whole})
    refusal(Reason.HISTORY_DIFFERS, hh_rlhf(), {"prompt": "Another", **whole})
    refusal(Reason.MISSING_FIELD, hh_rlhf(), {"prompt": OPENED, "chosen": " Yes"})
    refusal(Reason.BAD_TYPE, hh_rlhf(), {"prompt": "\n\nAssistant:"})
