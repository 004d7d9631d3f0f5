from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from ms_prefstream.errors import OptionError
from ms_prefstream.plan import PlanOptions

GOOD: dict[str, Any] = {"rows": 100, "global_batch": 8, "logical_shards": 4}


def test_defaults() -> None:
    options = PlanOptions(rows=100, global_batch=8)
    assert (options.logical_shards, options.window, options.seed, options.shuffle) == (1, 64, 0, True)
    assert options.drop_remainder
    assert options.sorts
    assert not options.longest_first


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"global_batch": 10},
            r"global_batch=10 is not a multiple of logical_shards=4.*logical_shards=2 or 5.*12 rows",
        ),
        ({"global_batch": 0}, r"global_batch is 0.* at least 1"),
        ({"rows": 7}, r"rows=7 is less than one global batch \(global_batch=8\).*at most 7.*drop_remainder=False"),
        ({"rows": 0, "drop_remainder": False}, r"rows is 0.* at least 1"),
        ({"rows": 100.0}, r"rows is 100.0"),
        ({"window": 0}, r"window is 0.* at least 1"),
        ({"window": True}, r"window is True"),
        ({"window": 2**31}, r"window is 2147483648.* in 1\.\.2147483647"),
        ({"logical_shards": -1}, r"logical_shards is -1.* at least 1"),
        ({"seed": -1}, r"seed is -1.* 0\.\.4294967295"),
        ({"seed": 2**32}, r"seed is 4294967296.* 0\.\.4294967295"),
        ({"seed": None}, r"seed is None"),
        ({"shuffle": "rows"}, r"shuffle='rows' .* True, False or 'window'"),
        ({"shuffle": 1}, r"shuffle=1 .* True, False or 'window'"),
        ({"drop_remainder": "no"}, r"drop_remainder='no' .* True, False or 'mask'"),
        ({"longest_first": True, "sort": False}, r"longest_first=True .*batches of one width"),
        ({"longest_first": True, "shuffle": False}, r"longest_first=True .*shuffle=False"),
    ],
)
def test_what_is_not_allowed_is_said(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        PlanOptions(**{**GOOD, **changes})


def test_few_rows_are_allowed_when_rows_repeat() -> None:
    assert PlanOptions(rows=3, global_batch=8, drop_remainder=False).rows == 3


def test_rows_alone_may_be_more_than_31_bits_count() -> None:
    assert PlanOptions(rows=2**33, global_batch=8).rows == 2**33
    assert PlanOptions(rows=2**33, global_batch=2**31 - 1).global_batch == 2**31 - 1
    for name in ("global_batch", "window"):
        with pytest.raises(OptionError, match=rf"{name} is 2147483648; expected a whole number in 1\.\.2147483647"):
            PlanOptions(**{"rows": 2**33, "global_batch": 8} | {name: 2**31})


def test_source_order_is_never_sorted() -> None:
    assert not PlanOptions(**GOOD, shuffle=False).sorts
    assert not PlanOptions(**GOOD, sort=False).sorts
    assert PlanOptions(**GOOD, shuffle="window").sorts


def test_numpy_integers_become_plain_ones() -> None:
    options = PlanOptions(rows=np.int64(100), global_batch=np.int32(8), seed=np.uint8(3))
    assert [type(v) for v in (options.rows, options.global_batch, options.seed)] == [int, int, int]


def test_options_are_frozen_and_named() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PlanOptions(**GOOD).rows = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        PlanOptions(100, 8)  # type: ignore[misc]
