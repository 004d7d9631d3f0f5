from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ms_prefstream.plan.indexed import UsableRows


@given(hnp.arrays(np.bool_, st.integers(1, 60)))
@settings(settings.get_profile("cheap"))
def test_numbers_kept_rows_in_order(mask: np.ndarray) -> None:
    kept = UsableRows(mask)
    assert kept.count == mask.sum()
    ids = kept.ids(np.arange(kept.count))
    assert ids.dtype == np.int64
    assert np.array_equal(ids, np.flatnonzero(mask))


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98])
def test_holds_two_bytes_a_row_at_most(share: float) -> None:
    mask = np.random.default_rng(0).random(100_000) >= share
    kept = UsableRows(mask)
    held = sum(v.nbytes for v in vars(kept).values() if isinstance(v, np.ndarray))
    assert held <= 2 * mask.size + 8
    shuffled = np.random.default_rng(1).permutation(kept.count)
    assert np.array_equal(kept.ids(shuffled), np.flatnonzero(mask)[shuffled])
