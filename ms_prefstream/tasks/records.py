"""Records as tasks encode them: a pair for tasks of pairs; prompt and chosen side for the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats.fields import names, wrong_type
from ms_prefstream.formats.record import Completion, Message, Pair, Ranked, Record, Stepwise, TokenCompletion, TokenPair
from ms_prefstream.formats.suggest import ready_line

TaskRecord: TypeAlias = Pair | Completion | TokenPair | TokenCompletion


def prompt_record(record: Record) -> TaskRecord:
    """Returns the prompt of a record, without any response."""
    if isinstance(record, (TokenPair, TokenCompletion)):
        return TokenCompletion(record.prompt_ids, (), record.origin, record.unread, carried=record.carried)
    variables = None if isinstance(record, Ranked) else record.variables
    return Completion(record.prompt, (), record.tools, record.origin, record.unread, variables, carried=record.carried)


def labelled_record(record: Record) -> Completion | TokenCompletion:
    """Returns a record of one response that is marked as good or bad.

    Raises:
        RowError: The record is another one.
    """
    if isinstance(record, (Pair, TokenPair)):
        raise RowError(
            Reason.BAD_TYPE,
            "the row is a pair; expected one response, as in the rows of this source that were looked at first",
            "Put pairs in a source of their own, as a part of mps.mix, or at the beginning of this one",
        )
    if not isinstance(record, (Completion, TokenCompletion)) or isinstance(record, Stepwise):
        raise RowError(
            Reason.MISSING_FIELD,
            "the row has several responses or steps; expected one response with a label",
            "Name a format that makes pairs of them, such as format='ranked'",
        )
    if not (record.response if isinstance(record, Completion) else record.response_ids):
        raise RowError(Reason.MISSING_FIELD, "the row has no response; expected one, with a label")
    if record.desirable is None:
        raise RowError(
            Reason.MISSING_FIELD,
            "nothing says whether the row's response is a good one; expected a field 'label' or 'kto_tag' that is true "
            "or false",
            'Pass fields={"label": "<its name>"}, or give format= a function row -> row',
        )
    if isinstance(record.desirable, Mapping):
        raise _unclear(record.desirable)
    return record


def _unclear(marks: Mapping[str, Any]) -> RowError:
    """Returns the error for fields that should say whether a response is a good one, and do not."""
    if len([value for value in marks.values() if isinstance(value, (bool, np.bool_))]) > 1:
        problem = f"the fields {names(marks)} contradict each other about the row's response"
        return RowError(Reason.AMBIGUOUS_FORMAT, problem, "Keep one of the two")
    name, value = next(iter(marks.items()))
    return wrong_type(name, value, "true or false, for a good or a bad response")


def step_record(record: Record, separator: str) -> Stepwise:
    """Returns a record with steps, with a response in which the separator follows every step.

    Raises:
        RowError: The record has no steps.
    """
    if isinstance(record, Stepwise):
        response = "".join([step + separator for step in record.steps])
        return dataclasses.replace(record, response=(Message("assistant", response),))
    raise RowError(
        Reason.MISSING_FIELD,
        "the row has no steps with labels; expected {prompt, completions: [step, ...], labels: [true, ...]}",
        'Rename the fields, pass format="stepwise" if further ones suggest another format, or give format= a function '
        "row -> row",
    )


def usual_record(record: Record, pairs: bool) -> TaskRecord:
    """Returns a pair for tasks of pairs; prompt and chosen side for the others.

    Raises:
        RowError: The record is no pair, and the task needs one.
    """
    if isinstance(record, Stepwise):
        raise RowError(
            Reason.MISSING_FIELD,
            "the row has steps with labels, and no response; expected a prompt with "
            + ("a chosen and a rejected response" if pairs else "its response"),
            "Use mps.ProcessReward for such rows",
        )
    if pairs and isinstance(record, Completion) and isinstance(record.desirable, bool):
        raise RowError(
            Reason.MISSING_FIELD,
            "the row is unpaired: 'label' or 'kto_tag' marks its one response as good or bad; expected a chosen and a "
            "rejected response to one prompt",
            "Use mps.KTO for such rows, or mps.RLHF",
        )
    if pairs and not isinstance(record, (Pair, TokenPair)):
        line = ready_line({"prompt": "…", **dict.fromkeys(record.unread, "…")})
        raise RowError(
            Reason.MISSING_FIELD,
            "the row has no rejected side; expected a chosen and a rejected one"
            + (f" (nothing reads the fields {names(record.unread)})" if record.unread else ""),
            "Use mps.RLHF for rows of prompt and response, or correct the row" if line is None else f"Pass {line}",
        )
    if isinstance(record, Pair) and not pairs:
        about = record.tools, record.origin, record.unread, record.variables
        return Completion(record.prompt, record.chosen, *about, carried=record.carried)
    if isinstance(record, TokenPair) and not pairs:
        return TokenCompletion(
            record.prompt_ids, record.chosen_ids, record.origin, record.unread, carried=record.carried
        )
    return record  # type: ignore[return-value]  # a ranked list becomes pairs in its format
