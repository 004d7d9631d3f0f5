"""Alpaca rows: an instruction with an input, and two outputs to compare (or one)."""

from __future__ import annotations

from ms_prefstream.formats.auto import LIST, PAIR_OF_TEXTS, TEXT, needs
from ms_prefstream.formats.base import OneRecord, Row, pair_of
from ms_prefstream.formats.fields import margin_of, text, two_strings
from ms_prefstream.formats.messages import earlier_turns
from ms_prefstream.formats.record import Completion, Message, Pair
from ms_prefstream.formats.registry import preset


@preset(
    needs(instruction=TEXT, **PAIR_OF_TEXTS), needs(instruction=TEXT, output=LIST), needs(instruction=TEXT, output=TEXT)
)
def alpaca() -> OneRecord:
    r"""Reads Alpaca pairs; `chosen` (or the first of two outputs) is better, `rejected` (or the second) is worse.

    ``{instruction: "Add", input: "1 2", chosen: "3", rejected: "4"}`` ->
    ``Pair(prompt=(user "Add\n1 2"), chosen=(assistant 3), rejected=(assistant 4))``

    Instruction and input are joined by a newline; an input that is empty, null or missing adds nothing. ``output:
    [better, worse]`` may stand for the two sides; a string in `output` is a prompt with its response, for RLHF.
    Optional: `system` (a string), `tools` (schemas), `history` (pairs of question and answer that go before), `margin`
    (a float).
    """
    return OneRecord("alpaca", read_alpaca)


def read_alpaca(row: Row) -> Pair | Completion:
    """Returns one row as a pair, or as a completion when `output` is one string."""
    instruction = text(row, "instruction")
    given = "" if row.get("input") is None else text(row, "input")
    prompt = (*earlier_turns(row), Message("user", f"{instruction}\n{given}" if given else instruction))
    if row.get("chosen") is not None or row.get("rejected") is not None or row.get("output") is None:
        return pair_of(row, prompt, "chosen", "rejected")
    output = row["output"]
    if isinstance(output, str):
        return Completion(prompt, (Message("assistant", text(row, "output")),))
    better, worse = two_strings(output, "output", "a string, or a list of two strings, the better one first")
    return Pair(prompt, (Message("assistant", better),), (Message("assistant", worse),), margin_of(row))
