"""Nectar: a marked dialogue as prompt, and seven answers with their ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ms_prefstream.formats.auto import LIST, TEXT, needs
from ms_prefstream.formats.base import ManyRecords, OneRecord, Row
from ms_prefstream.formats.fields import as_number, present, text, wrong_type
from ms_prefstream.formats.messages import dialogue
from ms_prefstream.formats.presets.ranked import as_list
from ms_prefstream.formats.ranking import Pairing, Policy, ranked_format
from ms_prefstream.formats.record import Message, Messages, Ranked
from ms_prefstream.formats.registry import preset


@preset(needs(prompt=TEXT, answers=LIST), policy="best_worst")
def nectar(
    policy: Policy = "all", max_pairs: int | None = None, min_margin: float | None = None
) -> OneRecord | ManyRecords:
    r"""Reads Nectar rows; `rank` 1 is the best answer.

    ``{prompt: "\n\nHuman: Hi\n\nAssistant: ", answers: [{answer: "Hello", rank: 1}, {answer: "What", rank: 2}]}`` ->
    ``(Pair(prompt=(user Hi), chosen=(assistant Hello), rejected=(assistant What), margin=1),)``

    The prompt is read as in `hh_rlhf`, without the empty turn of the assistant at its end; a prompt without markers
    is one turn of the user. The margin is the difference of the ranks.

    Args:
        policy: As in `ranked`.
        max_pairs: As in `ranked`.
        min_margin: As in `ranked`, in ranks.
    """
    pairing = Pairing(policy=policy, max_pairs=max_pairs, min_margin=min_margin)
    return ranked_format("nectar", read_nectar, read_ranks, pairing)


def read_nectar(row: Row) -> Ranked:
    """Returns one row as a ranked list."""
    sides = []
    for index, answer in enumerate(_answers(row), 1):
        if not isinstance(answer.get("answer"), str):
            raise wrong_type(f"the answer of {_item(index)}", answer.get("answer"), "a string")
        sides.append((Message("assistant", str(answer["answer"])),))
    return Ranked(_prompt(text(row, "prompt")), tuple(zip(sides, read_ranks(row), strict=True)))


def read_ranks(row: Row) -> list[float]:
    """Returns the negative rank of each answer, so that higher is better."""
    return [
        -as_number(answer.get("rank"), f"the rank of {_item(index)}") for index, answer in enumerate(_answers(row), 1)
    ]


def _item(index: int) -> str:
    return f"item {index} of field 'answers'"


def _answers(row: Row) -> list[Mapping[str, Any]]:
    answers = as_list(present(row, "answers"), "answers")
    for index, answer in enumerate(answers, 1):
        if not isinstance(answer, Mapping):
            raise wrong_type(_item(index), answer, "an object with 'answer' and 'rank'")
    return list(answers)


def _prompt(prompt: str) -> Messages:
    if not prompt.startswith(("\n\nHuman:", "\n\nAssistant:", "Human:", "Assistant:")):
        return (Message("user", prompt),)
    messages = dialogue(prompt, "prompt")
    last = messages[-1]
    return messages[:-1] if len(messages) > 1 and last.role == "assistant" and not last.content.strip() else messages
