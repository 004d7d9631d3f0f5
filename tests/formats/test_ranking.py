from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ms_prefstream.errors import OptionError
from ms_prefstream.formats.ranking import Pairing


def test_the_policies_on_three_scores() -> None:
    scores = [2.0, 3.0, 1.0]
    assert Pairing(policy="all").indices(scores) == [(1, 0), (1, 2), (0, 2)]
    assert Pairing(policy="adjacent").indices(scores) == [(1, 0), (0, 2)]
    assert Pairing(policy="best_worst").indices(scores) == [(1, 2)]


def test_max_pairs_keeps_the_largest_margins() -> None:
    scores = [10.0, 9.0, 5.0, 0.0]
    assert Pairing(policy="all", max_pairs=2).indices(scores) == [(0, 3), (1, 3)]
    assert Pairing(policy="all", max_pairs=99).indices(scores) == Pairing(policy="all").indices(scores)


def test_min_margin_is_inclusive() -> None:
    assert Pairing(policy="all", min_margin=2).indices([3.0, 1.0, 0.0]) == [(0, 1), (0, 2)]


def test_short_lists() -> None:
    for policy in ("all", "adjacent", "best_worst"):
        assert Pairing(policy=policy).indices([]) == [] == Pairing(policy=policy).indices([1.0])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [{"policy": "best"}, {"max_pairs": 0}, {"max_pairs": 1.5}, {"min_margin": -1}, {"min_margin": float("nan")}],
)
def test_options_check_themselves(options: dict[str, object]) -> None:
    (name,) = options
    with pytest.raises(OptionError, match=f"{name} is .*(allowed|expected)"):
        Pairing(**options)  # type: ignore[arg-type]


pairings = st.builds(
    Pairing,
    policy=st.sampled_from(["all", "adjacent", "best_worst"]),
    max_pairs=st.none() | st.integers(1, 4),
    min_margin=st.none() | st.floats(0, 3),
)


@given(st.lists(st.integers(0, 4).map(float), max_size=7), pairings)
def test_the_better_side_is_always_better_and_no_pair_comes_twice(scores: list[float], pairing: Pairing) -> None:
    pairs = pairing.indices(scores)
    assert len(set(pairs)) == len(pairs)
    for better, worse in pairs:
        assert scores[better] > scores[worse]
        assert scores[better] - scores[worse] >= (pairing.min_margin or 0)
    if pairing.policy == "all" and pairing.max_pairs is None and pairing.min_margin is None:
        assert len(pairs) == sum(a > b for a in scores for b in scores)
    if len(set(scores)) > 1 and pairing.min_margin is None:
        assert pairs
