"""Alpaca rows: an instruction with an input, and two outputs to compare (or one)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ms_prefstream.formats.base import OneRecord
from ms_prefstream.formats.fields import margin_of, optional_text, text, two_strings
from ms_prefstream.formats.messages import earlier_turns
from ms_prefstream.formats.record import Completion, Message, Messages, Pair


def alpaca() -> OneRecord:
    r"""Alpaca pairs; `chosen` (or the first of two outputs) is better, `rejected` (or the second) is worse.

    ``{instruction: "Add", input: "1 2", chosen: "3", rejected: "4"}`` ->
    ``Pair(prompt=(user "Add\n1 2"), chosen=(assistant 3), rejected=(assistant 4))``

    Instruction and input are joined by a newline; an input that is empty, null or missing adds nothing. ``output:
    [better, worse]`` may stand for the two sides; a string in `output` is a prompt with its response, for RLHF.
    Optional: `system` (a string), `tools` (schemas), `history` (pairs of question and answer that go before), `margin`
    (a float).
    """
    return OneRecord("alpaca", read_alpaca)


def read_alpaca(row: Mapping[str, Any]) -> Pair | Completion:
    """One row as a pair, or as a completion when `output` is one string."""
    prompt = _prompt(row)
    if row.get("chosen") is None and row.get("rejected") is None and row.get("output") is not None:
        output = row["output"]
        if isinstance(output, str):
            return Completion(prompt, (Message("assistant", text(row, "output")),))
        chosen, rejected = two_strings(output, "output", "a string, or a list of two strings, the better one first")
    else:
        chosen, rejected = text(row, "chosen"), text(row, "rejected")
    return Pair(prompt, (Message("assistant", chosen),), (Message("assistant", rejected),), margin_of(row))


def _prompt(row: Mapping[str, Any]) -> Messages:
    instruction, given = text(row, "instruction"), optional_text(row, "input")
    return (*earlier_turns(row), Message("user", f"{instruction}\n{given}" if given else instruction))
