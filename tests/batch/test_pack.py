"""The options of packing: what they check by themselves, and which tasks they refuse and why."""

from __future__ import annotations

import dataclasses

import pytest

from ms_prefstream.batch.pack import Pack
from ms_prefstream.errors import OptionError
from ms_prefstream.tasks import DPO, RLHF, Reward


def test_options_are_frozen_and_have_the_promised_defaults():
    pack = Pack(2048)
    assert (pack.tokens, pack.max_segments, pack.batch_size) == (2048, 128, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        pack.tokens = 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tokens": 1}, "tokens is 1; expected a whole number in 2..16777216"),
        ({"tokens": "2k"}, "tokens is '2k'"),
        ({"max_segments": 1}, "max_segments is 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": True}, "batch_size is True"),
    ],
)
def test_numbers_are_checked(options, words):
    with pytest.raises(OptionError, match=words):
        Pack(**{"tokens": 64, **options})


@pytest.mark.parametrize(
    "task",
    [
        DPO(32),
        DPO(32, labels="shifted"),
        DPO(32, margin=True),
        Reward(32, layout="reward_token"),
        RLHF(max_prompt_length=16, seq_length=64),
    ],
)
def test_what_fits_is_accepted(task):
    Pack(64).check(task)


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        (DPO(33), {}, "tokens is 64, .* max_length is 33, so a pair may take 66. Give tokens=66 .* max_length to 32"),
        (Reward(33, layout="reward_token"), {}, "max_length is 33, so a pair may take 66"),
        (
            RLHF(max_prompt_length=16, seq_length=65),
            {},
            "seq_length is 65, which one sample may take. Give tokens=65 .* seq_length to 64",
        ),
        (DPO(16, layout="concat"), {}, "layout='concat' .* Leave layout out"),
        (Reward(16), {}, "'mindformers' scores one sequence a row .* layout='reward_token'"),
        (DPO(16), {"max_segments": 2}, "max_segments is 2, but a pair takes two .* max_segments=3"),
    ],
)
def test_what_cannot_be_packed_is_refused_with_the_remedy(task, options, words):
    with pytest.raises(OptionError, match=words):
        Pack(64, **options).check(task)


def test_the_last_segment_is_the_end_of_the_row():
    assert Pack(64, max_segments=128).samples_per_row(DPO(32)) == 63
    assert Pack(64, max_segments=129).samples_per_row(DPO(32)) == 64
    assert Pack(64, max_segments=128).samples_per_row(RLHF(16, 64)) == 127


def test_there_is_one_shape():
    pack = Pack(64)
    assert pack.widths(32) == (64,)
    assert pack.width_for(50, pack.widths(32)) == 64


def test_the_layout_follows_the_task():
    assert not Pack(64).layout(DPO(32)).scores
    assert not Pack(64).layout(RLHF(16, 64)).scores
    layout = Pack(64, max_segments=9).layout(Reward(32, layout="reward_token"))
    assert (layout.scores, layout.tokens, layout.max_segments) == (True, 64, 9)
