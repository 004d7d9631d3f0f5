"""Rows that are already tokenized."""

from __future__ import annotations

from typing import Any

import numpy as np

from ms_prefstream.errors import Reason, RowError
from ms_prefstream.formats.auto import LIST, alone, needs
from ms_prefstream.formats.base import OneRecord, Row
from ms_prefstream.formats.fields import margin_of, present, wrong_type
from ms_prefstream.formats.record import TokenCompletion, TokenPair
from ms_prefstream.formats.registry import preset

_LARGEST = 2**31 - 1  # ids are int32 in batches


@preset(
    needs(prompt_ids=LIST, chosen_ids=LIST, rejected_ids=LIST),
    needs(prompt_ids=LIST, response_ids=LIST),
    alone(prompt_ids=LIST),
)
def tokenized() -> OneRecord:
    """Reads token ids; `chosen_ids` continue `prompt_ids` on the better side, `rejected_ids` on the worse one.

    ``{prompt_ids: [1, 2], chosen_ids: [3], rejected_ids: [4]}`` -> ``TokenPair((1, 2), (3,), (4,))``

    ``{prompt_ids, response_ids}`` or ``{prompt_ids}`` instead is a prompt with its response, for RLHF. Ids are whole
    numbers from 0 on in lists, tuples or numpy arrays, end of turn included, nothing padded. Optional: `margin`.
    """
    return OneRecord("tokenized", read_tokenized)


def read_tokenized(row: Row) -> TokenPair | TokenCompletion:
    """Returns one row as a token pair when it has `chosen_ids` or `rejected_ids`, as a token completion otherwise."""
    prompt = _ids(row, "prompt_ids")
    response = row.get("response_ids")
    if row.get("chosen_ids") is None and row.get("rejected_ids") is None:
        return TokenCompletion(prompt, () if response is None else _ids(row, "response_ids"))
    if response is not None:
        raise RowError(
            Reason.AMBIGUOUS_FORMAT,
            "the row has 'response_ids' beside 'chosen_ids' and 'rejected_ids'",
            "Keep one response, or the two to compare",
        )
    return TokenPair(prompt, _ids(row, "chosen_ids"), _ids(row, "rejected_ids"), margin_of(row))


def _ids(row: Row, name: str) -> tuple[int, ...]:
    value = present(row, name)
    if isinstance(value, np.ndarray) and value.ndim:
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        raise wrong_type(name, value, "a list of token ids")
    ids = tuple(value)
    if set(map(type, ids)) == {int} and min(ids) >= 0 and max(ids) <= _LARGEST:
        return ids
    return tuple([_id(found, f"item {index} of field {name!r}") for index, found in enumerate(ids)])


def _id(found: Any, place: str) -> int:
    if isinstance(found, (int, np.integer)) and not isinstance(found, bool) and 0 <= found <= _LARGEST:
        return int(found)
    raise wrong_type(place, found, f"a token id, a whole number from 0 to {_LARGEST}")
