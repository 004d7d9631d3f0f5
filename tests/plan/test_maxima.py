from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ms_prefstream.batch.best_widths import batch_maxima, best_widths
from ms_prefstream.plan import IndexedPlan, PlanOptions


def lognormal(rows: int, seed: int) -> np.ndarray:
    return np.clip(np.random.default_rng(seed).lognormal(5.3, 0.5, rows), 8, 1024).astype(np.int32)


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    batch=st.integers(1, 9),
    window=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
    sort=st.booleans(),
)
@settings(settings.get_profile("cheap"))
def test_there_is_one_for_each_batch_and_it_is_a_length_of_a_row(lengths, batch, window, seed, sort):
    found = batch_maxima(np.array(lengths, np.int32), batch, window, seed, sort)
    assert set(found.tolist()) <= set(lengths)
    whole = len(lengths) // batch
    if not whole:
        assert found.tolist() == lengths
    else:
        windows = whole // min(window, whole)
        assert len(found) % (windows * min(window, whole)) == 0
        assert (max(lengths) in found) or windows * min(window, whole) * batch < len(lengths)
    assert np.array_equal(found, batch_maxima(np.array(lengths, np.int32), batch, window, seed, sort))


def test_in_one_sorted_window_each_is_the_end_of_a_batch():
    lengths = np.random.default_rng(0).permutation(np.arange(1, 25))
    found = batch_maxima(lengths, 4, 6, 1, True).reshape(-1, 6)
    assert len(found) > 1
    assert (found == [4, 8, 12, 16, 20, 24]).all()
    assert not (batch_maxima(lengths, 4, 6, 1, False).reshape(-1, 6) == [4, 8, 12, 16, 20, 24]).all(axis=1).any()
    assert len(batch_maxima(lengths, 4, 4, 1, True)) == 4 * len(found)  # the rest is no whole window


def test_widths_chosen_for_batches_are_within_a_point_of_the_best() -> None:
    """Measured on the batches of a plan: against the best widths for exactly these, and against a choice by rows."""
    lengths = lognormal(20_000, 1)
    plan = IndexedPlan(PlanOptions(rows=20_000, global_batch=32, seed=9), lengths)
    gained = []
    for epoch in range(3):
        longest = np.array([plan.step_length(epoch, step) for step in range(plan.steps_per_epoch)])
        real = sum(int(lengths[plan.rows(epoch, step, 0, 1)].sum()) for step in range(plan.steps_per_epoch))

        def padding(chosen_for, shapes, longest=longest, real=real):
            widths = np.array(best_widths(chosen_for, 1024, shapes, 16))
            return 1 - real / float(32 * widths[np.searchsorted(widths, longest)].sum())

        for shapes in (4, 8, 16):
            found = padding(batch_maxima(lengths, 32, 64, 9, True), shapes)
            assert found - padding(longest, shapes) < 0.01
            gained.append(padding(lengths, shapes) - found)
    assert np.mean(gained) > 0.001
