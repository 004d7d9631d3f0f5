"""ms-swift rows: a conversation with its answer, and another answer that is rejected."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats.auto import LIST, TEXT, TURNS, unless
from ms_prefstream.formats.base import OneRecord, Row
from ms_prefstream.formats.divide import INPUT_ROLES, History, check_history, divide, split_response
from ms_prefstream.formats.fields import margin_of, missing, present, short, text
from ms_prefstream.formats.messages import earlier_turns, tools_of, turns
from ms_prefstream.formats.record import Completion, Message, Messages, Pair
from ms_prefstream.formats.registry import preset
from ms_prefstream.formats.spelling import parsed_json


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
    * `rejected_response`: a string or turns, which replace everything after the last turn of the user, tool calls and
      their results included. `rejected_messages` instead: a whole conversation.
    * ``{query, response}`` alone is a prompt with its response, for RLHF.
    * Optional: `system` (a string), `tools` (schemas), `margin` (a float). `rejected_tools` must be the same schemas:
      both sides have one prompt.

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
        given = present(row, "rejected_response")
        _check_one_answer(given)
        rejected = turns(given, "rejected_response", "assistant", keep_empty_system)
    else:
        return Completion(prompt, chosen)
    _check_tools(row)
    if not chosen:
        raise missing(row, "response", f"field {field!r} does not end with an answer")
    if not rejected or rejected[0].role not in INPUT_ROLES:
        rejected = (*prompt, *rejected)
    return Pair(*divide((), whole, rejected, history, ("the answer", "the rejected answer")), margin_of(row))


def _check_one_answer(given: Any) -> None:
    """Checks that a rejected answer is one answer, not a list of texts, of lists, or of turns that all answer."""
    if not isinstance(given, (list, tuple, np.ndarray)):
        return
    answers = [
        isinstance(turn, Mapping)
        and turn.get("role", turn.get("from")) in ("assistant", "gpt")
        and not turn.get("tool_calls")
        for turn in given
    ]
    nested = any(isinstance(item, (str, list, tuple, np.ndarray)) for item in given)
    if nested or any(first and second for first, second in itertools.pairwise(answers)):
        raise RowError(
            Reason.BAD_TYPE,
            f"field 'rejected_response' is {short(given)}: several answers; expected one, as a string or its turns",
            "Write one row for each rejected answer, or {prompt, responses, scores} rows with format='ranked'",
        )


def _check_tools(row: Row) -> None:
    """Checks that the rejected side has the same tools, as both sides of a pair answer one prompt."""
    if row.get("rejected_tools") is not None and _schemas(row, "rejected_tools") != _schemas(row, "tools"):
        raise RowError(
            Reason.HISTORY_DIFFERS,
            "fields 'tools' and 'rejected_tools' differ; expected the same schemas, as both sides answer one prompt",
            "Correct the row, or remove 'rejected_tools' if 'tools' is meant for both sides",
        )


def _schemas(row: Row, field: str) -> list[Any]:
    return [parsed_json(schema) for schema in tools_of({"tools": row.get(field)}) or ()]
