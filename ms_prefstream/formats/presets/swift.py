"""ms-swift rows: a conversation with its answer, and another answer that is rejected."""

from __future__ import annotations

from ms_prefstream.formats.auto import LIST, TEXT, TURNS, unless
from ms_prefstream.formats.base import OneRecord, Row
from ms_prefstream.formats.divide import INPUT_ROLES, History, check_history, divide, split_response
from ms_prefstream.formats.fields import margin_of, missing, present, text
from ms_prefstream.formats.messages import earlier_turns, turns
from ms_prefstream.formats.record import Completion, Message, Messages, Pair
from ms_prefstream.formats.registry import preset


@preset(
    unless(messages=LIST, rejected_response=TURNS),
    unless(messages=LIST, rejected_messages=LIST),
    unless(conversations=LIST, rejected_response=TURNS),
    unless(query=TEXT, response=TEXT, rejected_response=TURNS),
    unless(query=TEXT, response=TEXT),
)
def swift(history: History = "strict", keep_empty_system: bool = False) -> OneRecord:
    """Reads ms-swift rows; the last answer of `messages` is better, `rejected_response` is worse.

    ``{messages: [user Hi, assistant Hello], rejected_response: "What"}`` ->
    ``Pair(prompt=(user Hi), chosen=(assistant Hello), rejected=(assistant What))``

    * `messages` (or `conversations`): turns with the roles system, user, assistant, tool_call (JSON text of the
      assistant's tool calls) and tool_response. ``{query, response}`` with an optional `history` instead: one exchange.
    * `rejected_response`: a string, which replaces the last turn, or turns that replace what follows the last turn of
      the user. `rejected_messages` instead: a whole conversation.
    * ``{query, response}`` alone is a prompt with its response, for RLHF.
    * Optional: `system` (a string), `tools` (schemas), `margin` (a float).

    Args:
        history: As in `messages`.
        keep_empty_system: As in `messages`.
    """
    check_history(history)
    return OneRecord("swift", read_swift, {"history": history, "keep_empty_system": keep_empty_system})


def read_swift(row: Row, history: History = "strict", keep_empty_system: bool = False) -> Pair | Completion:
    """Returns one row as a pair when it has a rejected answer, as a completion otherwise."""
    field = next((name for name in ("messages", "conversations") if row.get(name) is not None), "query")
    if field == "query":
        question, answer = Message("user", text(row, "query")), Message("assistant", text(row, "response"))
        whole: Messages = (*earlier_turns(row), question, answer)
    else:
        whole = turns(row[field], field, "user", keep_empty_system)
    prompt, chosen = split_response(whole)
    if row.get("rejected_messages") is not None:
        rejected = turns(row["rejected_messages"], "rejected_messages", "assistant", keep_empty_system)
    elif row.get("rejected_response") is not None or field != "query":
        rejected = turns(present(row, "rejected_response"), "rejected_response", "assistant", keep_empty_system)
        if isinstance(row["rejected_response"], str):
            prompt = whole[:-1]
    else:
        return Completion(prompt, chosen)
    if not chosen:
        raise missing(row, "response", f"field {field!r} does not end with an answer")
    if not rejected or rejected[0].role not in INPUT_ROLES:
        rejected = (*prompt, *rejected)
    return Pair(*divide((), whole, rejected, history, ("the answer", "the rejected answer")), margin_of(row))
