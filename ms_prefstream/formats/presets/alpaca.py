"""Alpaca rows: an instruction with an input, and two outputs to compare (or one)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ms_prefstream.formats.base import OneRecord
from ms_prefstream.formats.fields import margin_of, optional_text, text, wrong_type
from ms_prefstream.formats.record import Completion, Message, Messages, Pair
from ms_prefstream.formats.turns import lead_with_system


def alpaca() -> OneRecord:
    r"""Alpaca pairs; `chosen` (or the first of two outputs) is better, `rejected` (or the second) is worse.

    ``{instruction: "Add", input: "1 2", chosen: "3", rejected: "4"}`` ->
    ``Pair(prompt=(user "Add\n1 2"), chosen=(assistant 3), rejected=(assistant 4))``

    Instruction and input are joined by a newline; an input that is empty, null or missing adds nothing. ``output:
    [better, worse]`` may stand for the two sides; a string in `output` is a prompt with its response, for RLHF.
    Optional: `system` (a string), `history` (pairs of question and answer that go before), `margin` (a float).
    """
    return OneRecord("alpaca", read_alpaca)


def read_alpaca(row: Mapping[str, Any]) -> Pair | Completion:
    """One row as a pair, or as a completion when `output` is one string."""
    prompt = _prompt(row)
    if row.get("chosen") is None and row.get("rejected") is None and row.get("output") is not None:
        output = row["output"]
        if isinstance(output, str):
            return Completion(prompt, (Message("assistant", text(row, "output")),))
        chosen, rejected = _two_strings(output, "output", "a string, or a list of two strings, the better one first")
    else:
        chosen, rejected = text(row, "chosen"), text(row, "rejected")
    return Pair(prompt, (Message("assistant", chosen),), (Message("assistant", rejected),), margin_of(row))


def _prompt(row: Mapping[str, Any]) -> Messages:
    instruction, given = text(row, "instruction"), optional_text(row, "input")
    turns = [*_history(row), Message("user", f"{instruction}\n{given}" if given else instruction)]
    return lead_with_system(row, tuple(turns))


def _history(row: Mapping[str, Any]) -> list[Message]:
    history = row.get("history")
    if history is None:
        return []
    expected = "a list of [question, answer] pairs"
    if not isinstance(history, (list, tuple, np.ndarray)):
        raise wrong_type("history", history, expected)
    turns = []
    for index, exchange in enumerate(history, 1):
        question, answer = _two_strings(exchange, f"item {index} of field 'history'", "[question, answer]")
        turns += [Message("user", question), Message("assistant", answer)]
    return turns


def _two_strings(value: Any, where: str, expected: str) -> tuple[str, str]:
    if isinstance(value, (list, tuple, np.ndarray)) and len(value) == 2 and all(isinstance(v, str) for v in value):
        return str(value[0]), str(value[1])
    raise wrong_type(where, value, expected)
