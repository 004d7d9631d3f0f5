"""Plain strings: a prompt with two responses, or with one."""

from __future__ import annotations

from collections.abc import Iterable

from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats.auto import PAIR_OF_TEXTS, TEXT, alone, needs, unless
from ms_prefstream.formats.base import OneRecord, Row, pair_of
from ms_prefstream.formats.fields import response_field, short, text
from ms_prefstream.formats.messages import earlier_turns, marked
from ms_prefstream.formats.record import Completion, Message, Pair
from ms_prefstream.formats.registry import preset


@preset(
    needs(prompt=TEXT, **PAIR_OF_TEXTS),
    needs(prompt=TEXT, response=TEXT),
    unless(prompt=TEXT, completion=TEXT),
    alone(prompt=TEXT),
    dialogues=False,
)
def strings(dialogues: bool = True) -> OneRecord:
    r"""Reads plain strings; `chosen` is the better response, `rejected` the worse one.

    ``{prompt: "Hi", chosen: "Hello", rejected: "What"}`` ->
    ``Pair(prompt=(user Hi), chosen=(assistant Hello), rejected=(assistant What))``

    ``{prompt, response}``, ``{prompt, completion}`` or ``{prompt}`` instead is a prompt with its response, for RLHF.
    Optional: `system` (a string), `tools` (schemas), `history` (pairs of question and answer that go before), `margin`
    (a float). With ``template=None`` the texts are joined as they are.

    Args:
        dialogues: Whether texts may be dialogues with the markers of hh-rlhf (``\n\nHuman:``), which are then the text
            of one turn. ``format="auto"`` refuses such rows: they may be meant for `hh_rlhf`.
    """
    return OneRecord("strings", read_strings, {} if dialogues else {"dialogues": False})


def read_strings(row: Row, dialogues: bool = True) -> Pair | Completion:
    """Returns one row as a pair when it has `chosen` or `rejected`, as a completion otherwise."""
    paired = row.get("chosen") is not None or row.get("rejected") is not None
    response = None if paired else response_field(row)
    if not dialogues:
        _refuse_dialogues(row, ["prompt", "chosen", "rejected"] if paired else ["prompt", *filter(None, [response])])
    prompt = (*earlier_turns(row), Message("user", text(row, "prompt")))
    if paired:
        return pair_of(row, prompt, "chosen", "rejected")
    return Completion(prompt, () if response is None else (Message("assistant", text(row, response)),))


def _refuse_dialogues(row: Row, fields: Iterable[str]) -> None:
    for name in fields:
        value = row.get(name)
        if isinstance(value, str) and marked(value):
            raise RowError(
                Reason.AMBIGUOUS_FORMAT,
                f"field {name!r} is a dialogue with role markers ({short(value)}), which format 'hh_rlhf' reads as "
                "turns and 'strings' as the text of one turn",
                "Name the one that is meant, for example format='hh_rlhf'",
            )
