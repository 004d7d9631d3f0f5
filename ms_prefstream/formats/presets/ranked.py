"""Ranked and scored lists: a prompt with any number of responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats.auto import LIST, TURNS, needs
from ms_prefstream.formats.base import ManyRecords, OneRecord, Row
from ms_prefstream.formats.divide import complete, last_assistant
from ms_prefstream.formats.fields import as_number, missing, present, wrong_type
from ms_prefstream.formats.messages import turns
from ms_prefstream.formats.ranking import Pairing, Policy, ranked_format
from ms_prefstream.formats.record import Messages, Ranked
from ms_prefstream.formats.registry import preset

_TEXT_KEYS = ("content", "text", "response", "answer", "completion")


@preset(
    needs(prompt=TURNS, responses=LIST),
    needs(prompt=TURNS, responses=LIST, scores=LIST),
    needs(prompt=TURNS, completions=LIST, scores=LIST),
    needs(prompt=TURNS, completions=LIST),
    policy="best_worst",
)
def ranked(
    policy: Policy = "all", max_pairs: int | None = None, min_margin: float | None = None
) -> OneRecord | ManyRecords:
    """Reads scored lists; a higher `score` is better, a lower `rank` is better (1 is the best).

    ``{prompt: "Hi", responses: [{content: "Hello", score: 3}, {content: "What", score: 1}]}`` ->
    ``(Pair(prompt=(user Hi), chosen=(assistant Hello), rejected=(assistant What), margin=2),)``

    * `prompt`: a string or a list of turns.
    * `responses` or `completions`: objects with `content` (or `text`, `response`, `answer`, `completion`) and `score`
      or `rank`; or bare responses beside a list `scores` of the same length. A response is a string, a turn or a list
      of turns.

    Args:
        policy: Which pairs a list gives: ``"all"``, ``"adjacent"`` (neighbours in the order of scores) or
            ``"best_worst"``. Equal scores never form a pair.
        max_pairs: At most so many pairs a row, those with the largest margins.
        min_margin: Only pairs whose scores differ by at least this.

    Raises:
        OptionError: An option has a value that is not allowed.
    """
    pairing = Pairing(policy=policy, max_pairs=max_pairs, min_margin=min_margin)
    return ranked_format("ranked", read_ranked, read_scores, pairing)


def read_ranked(row: Row) -> Ranked:
    """Returns one row as a ranked list."""
    field, items = _items(row)
    scores = read_scores(row)
    prompt = turns(present(row, "prompt"), "prompt", "user")
    if not prompt:
        raise missing(row, "prompt")
    beside = row.get("scores") is not None
    responses = tuple(
        (_response(item if beside else _content(item, field, index), prompt, f"item {index} of field {field!r}"), score)
        for index, (item, score) in enumerate(zip(items, scores, strict=True), 1)
    )
    return Ranked(prompt, responses)


def read_scores(row: Row) -> list[float]:
    """Returns the score of each response, higher is better; ranks become negative scores."""
    field, items = _items(row)
    if row.get("scores") is None:
        return [_item_score(item, field, index) for index, item in enumerate(items, 1)]
    scores = as_list(row["scores"], "scores")
    if len(scores) != len(items):
        raise RowError(
            Reason.BAD_TYPE,
            f"field 'scores' has {len(scores)} items and field {field!r} has {len(items)}; expected one score each",
        )
    return [as_number(score, f"item {index} of field 'scores'") for index, score in enumerate(scores, 1)]


def as_list(value: Any, field: str) -> Sequence[Any]:
    """Returns `value` if it is a list, tuple or array."""
    if isinstance(value, (list, tuple)):
        return value
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return list(value)
    raise wrong_type(field, value, "a list")


def _items(row: Row) -> tuple[str, Sequence[Any]]:
    found = [name for name in ("responses", "completions") if row.get(name) is not None]
    if len(found) == 2:
        raise RowError(Reason.AMBIGUOUS_FORMAT, "the row has both 'responses' and 'completions'", "Keep one of the two")
    field = found[0] if found else "responses"
    return field, as_list(present(row, field), field)


def _item_score(item: Any, field: str, index: int) -> float:
    where = f"item {index} of field {field!r}"
    if not isinstance(item, Mapping):
        raise wrong_type(where, item, "an object with a score or rank", "Or give the scores as a list 'scores'")
    score, rank = item.get("score"), item.get("rank")
    if score is not None and rank is not None:
        raise RowError(Reason.AMBIGUOUS_FORMAT, f"{where} has both 'score' and 'rank'", "Keep one of the two")
    if rank is not None:
        return -as_number(rank, f"the rank of {where}")
    if score is None:
        raise missing(item, "score", where)
    return as_number(score, f"the score of {where}")


def _content(item: Mapping[str, Any], field: str, index: int) -> Any:
    for key in _TEXT_KEYS:
        if item.get(key) is not None:
            return item[key]
    raise missing(item, "content", f"item {index} of field {field!r}")


def _response(value: Any, prompt: Messages, where: str) -> Messages:
    side = turns(value, where, "assistant")
    whole, start = complete(prompt, side, where)
    response = whole[start:]
    last_assistant(response, where)
    return response
