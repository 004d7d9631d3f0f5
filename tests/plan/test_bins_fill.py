"""Packing of lengths: every row in one bin, no bin too full, little padding, and the same bins for the same lengths."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ms_prefstream.plan.bin_packing import _Histogram, pack_rows


def groups(bins):
    return [bins.of(number).tolist() for number in range(bins.count)]


def pair_sizes(rows, seed=0, longest=512):
    """Tokens of simulated CValues-like pairs: two lognormal responses with a prompt and a template, 361 on average."""
    numbers = np.random.default_rng(seed)
    prompt = 24 + 0.6 * numbers.lognormal(2.75, 0.35, rows)
    sides = [np.minimum(prompt + 0.6 * numbers.lognormal(mean, 0.55, rows), longest) for mean in (5.2, 5.45)]
    return np.sum(np.array(sides, np.int32), axis=0)


def test_a_bin_that_two_rows_can_close_is_closed_by_the_most_alike():
    # 10 is the longest; 3 + 3 fill its bin as 4 + 2 and 5 + 1 would, and leave the short rows for others.
    assert groups(pack_rows(np.array([1, 2, 3, 10, 3, 4, 5]), 16, 8)) == [[0, 1, 5, 6], [2, 3, 4]]


def test_rows_of_one_size_go_into_bins_in_order():
    assert groups(pack_rows(np.array([6, 4, 4, 6, 6, 4]), 10, 8)) == [[0, 1], [2, 3], [4, 5]]


@given(st.integers(1, 10**6), st.integers(250, 350))
def test_never_more_bins_than_best_fit_decreasing_finds(seed, count):
    sizes = np.random.default_rng(seed).integers(200, 1400, count)  # two or three a bin: pairs seldom close one
    rooms: list[int] = []
    for size in sorted(sizes.tolist(), reverse=True):
        fits = [room for room in rooms if room >= size]
        if fits:
            rooms.remove(min(fits))
        rooms.append((min(fits) if fits else 2048) - size)
    assert pack_rows(sizes, 2048, 999).count <= len(rooms)


def test_a_row_may_fill_a_bin_alone():
    assert groups(pack_rows(np.array([8, 8]), 8, 5)) == [[0], [1]]


@st.composite
def lengths(draw):
    capacity = draw(st.integers(1, 300))
    count = draw(st.integers(1, 200))
    top = draw(st.integers(1, capacity))
    numbers = np.random.default_rng(draw(st.integers(0, 2**20)))
    return numbers.integers(1, top + 1, count), capacity, draw(st.integers(1, 12))


@given(lengths())
@settings(settings.get_profile("cheap"))
def test_every_row_is_in_one_bin_and_no_bin_is_too_full(case):
    sizes, capacity, most = case
    bins = pack_rows(sizes, capacity, most)
    assert sorted(bins.rows.tolist()) == list(range(sizes.size))
    found = groups(bins)
    assert all(1 <= len(bin_) <= most and sizes[bin_].sum() <= capacity for bin_ in found)
    assert all(bin_ == sorted(bin_) for bin_ in found)
    assert [bin_[0] for bin_ in found] == sorted(bin_[0] for bin_ in found)


@given(lengths())
@settings(settings.get_profile("cheap"))
def test_two_bins_never_fit_into_one(case):
    sizes, capacity, _ = case
    bins = pack_rows(sizes, capacity, sizes.size)
    fill = np.sort(np.add.reduceat(sizes[bins.rows], bins.starts[:-1]))
    assert bins.count == 1 or fill[0] + fill[1] > capacity


@given(lengths())
def test_the_result_depends_on_the_sizes_alone(case):
    sizes, capacity, most = case
    one, other = pack_rows(sizes, capacity, most), pack_rows(sizes.astype(np.int32).copy(), capacity, most)
    assert one.rows.tolist() == other.rows.tolist()
    assert one.starts.tolist() == other.starts.tolist()


@pytest.mark.parametrize(
    ("rows", "tokens", "worst"), [(1500, 1024, 0.02), (60_000, 1024, 0.012), (60_000, 4096, 0.004)]
)
def test_padding_of_cvalues_like_pairs(rows, tokens, worst):
    sizes = pair_sizes(rows, longest=tokens // 2)
    bins = pack_rows(sizes, tokens, 63)
    assert 1 - sizes.sum() / (bins.count * tokens) < worst


def test_a_cap_on_rows_is_met_with_hardly_more_bins_than_it_forces():
    sizes = pair_sizes(20_000)  # about 90 would fit
    bins = pack_rows(sizes, 32_768, 63)
    assert bins.count <= 1.01 * sizes.size / 63 + 1


def test_rows_of_one_length_are_placed_many_at_a_time(monkeypatch):
    made = []
    one_bin = _Histogram._one_bin
    monkeypatch.setattr(_Histogram, "_one_bin", lambda *given: made.append(1) or one_bin(*given))
    bins = pack_rows(pair_sizes(200_000), 1024, 63)
    assert len(made) < 0.05 * bins.count


@pytest.mark.parametrize("sizes", [[], [0, 3], [3, 11]])
def test_sizes_out_of_bounds_are_refused(sizes):
    with pytest.raises(ValueError, match="expected 1 to 10"):
        pack_rows(np.array(sizes, np.int64), 10, 4)
