"""Laws of counts by value, of groups of prompts, and of the pass: they hold for any values and any cut into chunks."""

from __future__ import annotations

import itertools
import pickle
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import ms_prefstream as mps
from ms_prefstream.formats.identity import equal_groups
from ms_prefstream.stats import run as pass_over
from ms_prefstream.stats.near import near_groups, signatures
from ms_prefstream.stats.tally import Tally
from tests.helpers import pairs

VALUES = st.lists(st.integers(-3000, 3000), min_size=1, max_size=60)
LENGTHS = st.lists(st.integers(0, 10**7), min_size=1, max_size=60)


def tally(values: list[int], chunk: int = 7) -> Tally:
    found = Tally()
    for begin in range(0, len(values), chunk):
        found.add(np.array(values[begin : begin + chunk], np.int32))
    return found


@given(LENGTHS, st.integers(1, 9))
def test_quantiles_are_numpys(values: list[int], chunk: int) -> None:
    found = tally(values, chunk).lengths()
    assert (found.p50, found.p90, found.p99) == tuple(np.quantile(values, (0.5, 0.9, 0.99)))
    assert (found.count, found.max) == (len(values), max(values))
    assert found.mean == pytest.approx(np.mean(values))


@given(VALUES)
def test_histograms_hold_every_value_once(values: list[int]) -> None:
    found = tally(values).gap("tokens").histogram
    assert list(found.edges) == sorted(set(found.edges))
    assert len(found.edges) == len(found.counts) + 1 <= 34
    assert found.edges[0] <= min(values)
    assert max(values) <= found.edges[-1]
    assert found.counts == tuple(np.histogram(values, bins=found.edges)[0])
    assert len(set(np.diff(found.edges[1:-1]))) <= 1  # of one width, the outer ones aside


@given(VALUES)
def test_gaps(values: list[int]) -> None:
    found = tally(values).gap("characters")
    assert found.chosen_longer + found.rejected_longer + values.count(0) == found.pairs == len(values)
    above, below = [one for one in values if one > 0], [-one for one in values if one < 0]
    assert found.by == (np.median(above) if above else 0)
    assert found.rejected_by == (np.median(below) if below else 0)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=40))
def test_equal_hashes_are_a_group(hashes: list[tuple[int, int]]) -> None:
    groups = equal_groups(np.array(hashes, np.uint64))
    for (one, left), (other, right) in itertools.product(zip(hashes, groups, strict=True), repeat=2):
        assert (one == other) == (left == right)
    assert set(groups.tolist()) == set(range(len(set(hashes))))


def by_force(found: NDArray[np.uint16]) -> list[int]:
    """The smallest number that each signature is linked with by 52 equal slots, directly or over others."""
    labels = list(range(len(found)))
    for _ in labels:
        for one, other in itertools.combinations(range(len(found)), 2):
            if (found[one] == found[other]).sum() >= 52:
                labels[one] = labels[other] = min(labels[one], labels[other])
    return labels


@settings(derandomize=True)  # hardly ever is not never
@given(st.integers(0, 2**32), st.integers(1, 40))
def test_near_groups_are_those_of_all_pairs(seed: int, count: int) -> None:
    """Of signatures that share many slots or few; in bands or not."""
    draw = np.random.default_rng(seed)
    base = draw.integers(1, 2**16, (4, 64), dtype=np.uint16)
    found = base[draw.integers(0, 4, count)]
    for row in found:
        changed = draw.permutation(64)[: draw.integers(0, 20)]
        row[changed] = draw.integers(1, 2**16, len(changed), dtype=np.uint16)
    groups = near_groups(np.arange(count), found)
    expected = by_force(found)
    linked = list(zip(groups.tolist(), expected, strict=True))
    for (mine, theirs), (my_other, their_other) in itertools.combinations(linked, 2):
        assert mine != my_other or theirs == their_other, "two prompts in a group that nothing links"
    assert len(set(linked)) == len(set(groups.tolist()))
    assert len(set(groups.tolist())) <= len(set(expected)) + 2  # of 16 bands hardly ever all differ


def near_texts(count: int, seed: int = 5) -> list[str]:
    """Texts of random characters; each second one differs from the one before in its last character alone."""
    draw = random.Random(seed)
    found: list[str] = []
    for _ in range(count):
        text = "".join(chr(0x4E00 + draw.randrange(5000)) for _ in range(60))
        found += [text, f" {text[:-1]}!？ "]
    return found


def test_prompts_that_differ_in_a_character_are_found() -> None:
    pytest.importorskip("rensa")
    texts = near_texts(40)
    groups = near_groups(np.arange(80), signatures(texts))
    assert groups.tolist() == [row // 2 * 2 for row in range(80)]
    prompts = mps.stats([{"prompt": text, "chosen": "a", "rejected": "b"} for text in texts]).prompts
    assert prompts.repeated.rows == 0
    assert prompts.near is not None
    assert (prompts.near.rows, prompts.near.groups) == (80, 40)
    assert prompts.near.first[0] == (0, 1)


def test_case_punctuation_and_the_system_message_do_not_count() -> None:
    pytest.importorskip("rensa")
    rows: list[dict[str, Any]] = [
        {"prompt": "Where does the river Rhine begin?", "chosen": "a", "rejected": "b"},
        {"prompt": "where does the RIVER  Rhine begin", "chosen": "a", "rejected": "b"},
        {"prompt": "Where does the river Rhine begin?", "system": "Be brief.", "chosen": "a", "rejected": "b"},
        {"prompt": "Where does the Danube reach the sea?", "chosen": "a", "rejected": "b"},
    ]
    prompts = mps.stats(rows).prompts
    assert prompts.distinct == 4
    assert prompts.near is not None
    assert (prompts.near.rows, prompts.near.groups) == (3, 1)


def test_texts_without_letters_or_with_few() -> None:
    pytest.importorskip("rensa")
    found = signatures(["", "?!", "?!", "a", "ab", "abc", "abcd", None])
    assert not found[-1].any()
    assert found[:-1].any(axis=1).all()
    groups = near_groups(np.arange(8), found)
    assert groups.tolist() == [0, 1, 1, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("together", [1, 3, 1000])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    rows = [*pairs(40), {"prompt": 3}, *pairs(10), {"prompt": "q", "chosen": "a", "rejected": "a", "pos": "x"}]
    expected = mps.stats(rows, tokenizer="bytes", limits=(40, 60))
    monkeypatch.setattr(pass_over, "_TOGETHER", together)
    assert mps.stats(rows, tokenizer="bytes", limits=(40, 60)) == expected


@pytest.mark.slow
def test_no_text_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    result = pass_over.Collected.result
    monkeypatch.setattr(pass_over.Collected, "result", lambda self, **given: kept.append(self) or result(self, **given))
    rows = [{"prompt": f"{row} " * 500, "chosen": "x" * 900, "rejected": "y" * 900} for row in range(3000)]
    mps.stats(rows, tokenizer="bytes")
    assert len(pickle.dumps(kept[0])) < 160 * len(rows)


def test_counts_of_types_and_fields_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {**row, "pos_type": f"good {n}", "neg_type": "bad", f"field {n}": "unread"} for n, row in enumerate(pairs(300))
    ]
    found = mps.stats(rows)
    assert len(found.by_type) == len(found.unread) == 256
    assert found.characters.prompt.count == 300
    assert Counter(found.unread.values()) == {1: 256}
