"""Pad and Bucket: the widths a batch may have, and what the options say when they are wrong."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ms_prefstream.batch.pack import Pack
from ms_prefstream.batch.padding import Bucket, Pad
from ms_prefstream.errors import OptionError


def test_pad_takes_the_length_of_the_task_or_its_own():
    assert Pad(8).widths(1024) == (1024,)
    assert Pad(batch_size=8, length=1025).widths(1024) == (1025,)
    assert Pad(8, length=1024).widths(1024) == (1024,)
    assert Pad(8).width_for(3, (1024,)) == 1024


def test_pad_smaller_than_the_task_names_both_and_the_remedy():
    with pytest.raises(OptionError, match=r"length is 512.*up to 1024 tokens.*length=1024.*lower.*512"):
        Pad(8, length=512).widths(1024)


def test_multiples_are_a_ceiling():
    assert Bucket(8).widths(1024) == tuple(range(64, 1025, 64))  # aligned already: no block on top
    assert Bucket(8, multiple_of=8).widths(16) == (8, 16)
    assert Bucket(8, multiple_of=8).widths(17) == (8, 16, 24)
    assert Bucket(8, multiple_of=128).widths(100) == (128,)
    bucket = Bucket(8, multiple_of=8)
    assert [bucket.width_for(longest, (8, 16, 24)) for longest in (1, 8, 9, 16, 17, 24)] == [8, 8, 16, 16, 24, 24]


def test_extra_columns_come_on_top():
    bucket = Bucket(8, multiple_of=8, extra=1)
    assert bucket.widths(16) == (9, 17)
    assert [bucket.width_for(longest, (9, 17)) for longest in (8, 9, 16)] == [9, 17, 17]
    assert Bucket(8, boundaries=(4, 16), extra=2).widths(16) == (6, 18)
    assert Bucket(8, max_shapes=1, extra=1).widths(30, np.array([5])) == (33,)


def test_boundaries_are_taken_as_given_and_must_reach_the_task():
    assert Bucket(8, boundaries=[100, 300, 2048]).widths(300) == (100, 300, 2048)
    with pytest.raises(OptionError, match=r"boundaries is 300.*up to 301 tokens.*boundary of 301.*to 300"):
        Bucket(8, boundaries=(100, 300)).widths(301)


def test_max_shapes_needs_lengths():
    for lengths in (None, np.array([], dtype=np.int64)):
        with pytest.raises(OptionError, match=r"max_shapes=4 .* none are known. Build a length index, or"):
            Bucket(8, max_shapes=4).widths(1024, lengths)


def test_a_sequence_that_fits_nowhere_is_an_internal_error():
    with pytest.raises(RuntimeError, match=r"internal error.*has 17 tokens, but the largest width holds 16"):
        Bucket(8, multiple_of=8, extra=1).width_for(17, (9, 17))
    with pytest.raises(RuntimeError, match=r"internal error.*lengths run from 1 to 1025"):
        Bucket(8, max_shapes=2).widths(1024, np.array([1, 1025]))


@given(
    max_length=st.integers(1, 400),
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=30),
    rule=st.one_of(
        st.builds(lambda m: {"multiple_of": m}, st.integers(1, 100)),
        st.builds(lambda k, r: {"max_shapes": k, "round_to": r}, st.integers(1, 9), st.integers(1, 40)),
        st.builds(
            lambda some: {"boundaries": (*sorted(some), 400)}, st.lists(st.integers(1, 399), max_size=5, unique=True)
        ),
    ),
    extra=st.integers(0, 3),
)
@settings(settings.get_profile("cheap"))
def test_widths_are_closed_and_sufficient_and_never_one_too_wide(max_length, lengths, rule, extra):
    bucket = Bucket(4, extra=extra, **rule)
    widths = bucket.widths(max_length, np.minimum(lengths, max_length))
    assert list(widths) == sorted(set(widths))
    assert all(type(width) is int for width in widths)
    for longest in range(1, max_length + 1):
        width = bucket.width_for(longest, widths)
        assert width in widths
        assert width - extra >= longest
        assert not any(other - extra >= longest for other in widths if other < width)
    if "boundaries" not in rule:
        block = rule.get("multiple_of") or rule["round_to"]
        assert all((width - extra) % block == 0 for width in widths)
        assert 0 <= widths[-1] - extra - max_length < block  # a ceiling, never a block more
    if "max_shapes" in rule:
        assert len(widths) <= rule["max_shapes"]


WRONG = [
    *(
        (Bucket, {"batch_size": 8, name: 2**24 + 1}, f"Bucket: {name} is 16777217; expected a whole number in")
        for name in ("batch_size", "multiple_of", "extra", "max_shapes", "round_to")
    ),
    (Bucket, {"batch_size": 8, "boundaries": (64, 10**30)}, r"boundaries\[1\] is 10{30}; expected a whole number in"),
    (Bucket, {"max_tokens": 10**30}, r"max_tokens is 10{30}; expected a whole number in 1\.\.9223372036854775807\."),
    (Pad, {"batch_size": 10**30}, r"batch_size is 10{30}; expected a whole number in 1\.\.16777216\."),
    (Pack, {"tokens": 10**30}, r"tokens is 10{30}; expected a whole number in 2\.\.16777216\."),
    (Pack, {"tokens": 64, "max_segments": 10**30}, r"max_segments is 10{30}; expected a whole number in"),
    (Pack, {"tokens": 64, "batch_size": 10**30}, r"batch_size is 10{30}; expected a whole number in"),
    (Pad, {"batch_size": 0}, "Pad: batch_size is 0; expected a whole number in 1..16777216"),
    (Pad, {"batch_size": -3}, "Pad: batch_size is -3; expected"),
    (Pad, {"batch_size": True}, "Pad: batch_size is True \\(bool\\); expected"),
    (Pad, {"batch_size": np.bool_(True)}, "expected a whole number"),
    (Pad, {"batch_size": 8.0}, r"Pad: batch_size is 8.0 \(float\); expected a whole number"),
    (Pad, {"batch_size": "8"}, r"Pad: batch_size is '8' \(str\)"),
    (Pad, {"batch_size": None}, r"Pad: batch_size is None"),
    (Pad, {"batch_size": 8, "length": 0}, "Pad: length is 0"),
    (Pad, {"batch_size": 8, "length": True}, "Pad: length is True"),
    (Bucket, {"batch_size": 0}, "Bucket: batch_size is 0"),
    (Bucket, {"batch_size": True}, "Bucket: batch_size is True"),
    (Bucket, {"batch_size": 8, "multiple_of": 0}, "Bucket: multiple_of is 0"),
    (Bucket, {"batch_size": 8, "multiple_of": True}, "Bucket: multiple_of is True"),
    (Bucket, {"batch_size": 8, "extra": -1}, "Bucket: extra is -1; expected a whole number in 0..16777216"),
    (Bucket, {"batch_size": 8, "extra": False}, "Bucket: extra is False"),
    (Bucket, {"batch_size": 8, "max_shapes": 0}, "Bucket: max_shapes is 0"),
    (Bucket, {"batch_size": 8, "max_shapes": 2, "round_to": 0}, "Bucket: round_to is 0"),
    (Bucket, {"batch_size": 8, "multiple_of": 8, "round_to": 8}, "round_to is 8, but it only rounds .* max_shapes"),
    (Bucket, {"batch_size": 8, "boundaries": ()}, r"Bucket: boundaries is \(\); .*boundaries=\(128, 256, 1024\)"),
    (
        Bucket,
        {"batch_size": 8, "boundaries": 512},
        "boundaries is 512; expected whole numbers in ascending order",
    ),
    (Bucket, {"batch_size": 8, "boundaries": "512"}, r"Bucket: boundaries\[0\] is '5' \(str\)"),
    (Bucket, {"batch_size": 8, "boundaries": (64, 32)}, r"boundaries is \(64, 32\); .*boundaries=\(32, 64\)"),
    (
        Bucket,
        {"batch_size": 8, "boundaries": (32, 32)},
        r"\(32, 32\); .*none of them twice.*=\(32,\)",
    ),
    (Bucket, {"batch_size": 8, "boundaries": (0, 32)}, r"Bucket: boundaries\[0\] is 0"),
    (Bucket, {"batch_size": 8, "boundaries": (32, True)}, r"Bucket: boundaries\[1\] is True"),
    (Bucket, {"batch_size": 8, "boundaries": (64,), "multiple_of": 64}, "multiple_of and boundaries are both given"),
    (Bucket, {"batch_size": 8, "max_shapes": 4, "multiple_of": 64}, "multiple_of and max_shapes are both given"),
    (Bucket, {"batch_size": 8, "max_shapes": 4, "boundaries": (64,)}, "boundaries and max_shapes are both given"),
]


@pytest.mark.parametrize(("rule", "options", "said"), WRONG)
def test_a_wrong_option_is_named_with_what_was_given_and_what_is_allowed(rule, options, said):
    with pytest.raises(OptionError, match=said):
        rule(**options)


def test_options_are_frozen_plain_and_equal_when_they_mean_the_same():
    assert Bucket(8) == Bucket(batch_size=np.int64(8), multiple_of=np.int32(64))
    assert Bucket(8, boundaries=[1, np.int64(2)]) == Bucket(8, boundaries=(1, 2))
    assert repr(Bucket(np.int64(8))) == repr(Bucket(8, multiple_of=64))
    assert type(Pad(np.int64(8), length=np.int32(4)).length) is int
    assert hash(Bucket(8, boundaries=[1, 2])) == hash(Bucket(8, boundaries=(1, 2)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Pad(8).batch_size = 4  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Bucket(8).extra = 4  # type: ignore[misc]
