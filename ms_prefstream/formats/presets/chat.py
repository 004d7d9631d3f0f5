"""Chat messages in OpenAI form: what XTuner, TRL and most preference data sets call conversational."""

from __future__ import annotations

from dataclasses import replace

from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats.auto import LIST, PAIR_OF_LISTS, PAIR_OF_TURNS, TURNS, alone, needs, unless
from ms_prefstream.formats.base import OneRecord, Row
from ms_prefstream.formats.divide import (
    INPUT_ROLES,
    History,
    check_history,
    complete,
    divide,
    last_assistant,
    split_response,
)
from ms_prefstream.formats.fields import margin_of, missing, present, response_field, short
from ms_prefstream.formats.messages import marked, turns
from ms_prefstream.formats.record import Completion, Messages, Pair
from ms_prefstream.formats.registry import preset


@preset(
    needs(prompt=TURNS, **PAIR_OF_TURNS),
    needs(**PAIR_OF_LISTS),
    unless(messages=LIST, **PAIR_OF_TURNS),
    needs(prompt=TURNS, response=TURNS),
    unless(prompt=TURNS, completion=TURNS),
    alone(prompt=TURNS, messages=LIST),
    alone(messages=LIST),
    alone(prompt=TURNS),
)
def messages(history: History = "strict", keep_empty_system: bool = False) -> OneRecord:
    """Reads chat messages; `chosen` is the better continuation, `rejected` the worse one.

    ``{prompt: [user Hi], chosen: [assistant Hello], rejected: [assistant What]}`` ->
    ``Pair(prompt=(user Hi), chosen=(assistant Hello), rejected=(assistant What))``

    * `prompt`: a list of turns or a string (a turn of the user). Without it the two sides are whole conversations and
      divide at the first turn that differs. With it, whole conversations must repeat it to the letter.
    * `chosen`, `rejected`: a list of turns, one turn, or a string (a turn of the assistant).
    * `messages` beside the two sides, without `prompt`: the turns before them, as axolotl has it.
    * ``{prompt, response}``, ``{prompt, completion}``, ``{messages}`` or ``{prompt}`` instead: a prompt with its
      response, for RLHF.
    * Optional: `system` (a string), `tools` (schemas), `margin` (a float).

    A turn is ``{role, content}`` (or ``{from, value}``); its further keys (`tool_calls`, `name`, ...) go to the
    template. Roles: developer = system, human = user, gpt and bot = assistant, observation, ipython and
    function = tool. Content is a string or a list of text blocks.

    Args:
        history: What happens when a user or system turn follows the point where the sides divide: ``"strict"`` makes
            the row a history_differs error, ``"common"`` takes the longest common run of turns as the prompt.
        keep_empty_system: Whether a system message without text counts; by default it is absent, and the template may
            insert its own.
    """
    check_history(history)
    return OneRecord("messages", read_messages, {"history": history, "keep_empty_system": keep_empty_system})


def read_messages(row: Row, history: History = "strict", keep_empty_system: bool = False) -> Pair | Completion:
    """Returns one row as a pair when it has `chosen` or `rejected`, as a completion otherwise."""
    if row.get("chosen") is None and row.get("rejected") is None:
        return _completion(row, keep_empty_system)
    prompt: Messages = ()
    if row.get("prompt") is not None:
        prompt = turns(row["prompt"], "prompt", "user", keep_empty_system)
    elif row.get("messages") is not None:
        return _with_messages(row, history, keep_empty_system)
    return read_pair(row, prompt, history, keep_empty_system)


def _with_messages(row: Row, history: History, keep_empty_system: bool) -> Pair:
    """Returns the pair of `messages` with the row's two sides.

    Beside whole conversations `messages` usually repeats one of them; if they do not contain it, nothing reads it.
    """
    before = turns(row["messages"], "messages", "user", keep_empty_system)
    sides = []
    for name in ("chosen", "rejected"):
        side = present(row, name)
        if isinstance(side, str) and marked(side):
            raise RowError(
                Reason.AMBIGUOUS_FORMAT,
                f"field {name!r} is a dialogue with role markers ({short(side)}) beside the field 'messages'",
                "Leave out 'messages' for format='hh_rlhf', or write the sides as turns",
            )
        sides.append(turns(side, name, "assistant", keep_empty_system))
    if any(side[:1] and side[0].role not in INPUT_ROLES for side in sides):
        return read_pair(row, before, history, keep_empty_system)
    if all(side[: len(before)] == before and len(side) > len(before) for side in sides):
        return read_pair(row, before, history, keep_empty_system)
    pair = read_pair(row, (), history, keep_empty_system)
    return pair if before in sides else replace(pair, unread=("messages",))


def read_pair(
    row: Row, prompt: Messages, history: History, keep_empty_system: bool, margin: float | None = None
) -> Pair:
    """Returns the pair of a prompt with the row's `chosen` and `rejected`; `margin` is for rows without that field."""
    left, right = present(row, "chosen"), present(row, "rejected")
    if not prompt and (isinstance(left, str) or isinstance(right, str)):
        raise missing(row, "prompt")
    shared, chosen, rejected = divide(
        prompt,
        turns(left, "chosen", "assistant", keep_empty_system),
        turns(right, "rejected", "assistant", keep_empty_system),
        history,
    )
    return Pair(shared, chosen, rejected, margin_of(row, margin))


def _completion(row: Row, keep_empty_system: bool) -> Completion:
    given = row.get("prompt")
    prompt = () if given is None else turns(given, "prompt", "user", keep_empty_system)
    field = response_field(row)
    if field is not None:
        prompt, response = _with_response(row, field, prompt, keep_empty_system)
    elif row.get("messages") is not None:
        conversation = turns(row["messages"], "messages", "user", keep_empty_system)
        prompt, response = split_response(complete(prompt, conversation, "messages")[0])
    else:
        response = ()
    if not prompt:
        raise missing(row, "chosen" if {"chosen", "rejected"} & row.keys() else "prompt")
    return Completion(prompt, response)


def _with_response(row: Row, field: str, prompt: Messages, keep_empty_system: bool) -> tuple[Messages, Messages]:
    """Returns prompt and response of a row with both; the response begins at the first new assistant turn."""
    if row.get("messages") is not None:
        raise RowError(Reason.AMBIGUOUS_FORMAT, f"the row has both {field!r} and 'messages'", "Keep one of the two")
    if not prompt:
        raise missing(row, "prompt")
    response = turns(row[field], field, "assistant", keep_empty_system)
    last_assistant(response, field)
    whole, start = complete(prompt, response, field)
    while start < len(whole) and whole[start].role != "assistant":
        start += 1
    return whole[:start], whole[start:]
