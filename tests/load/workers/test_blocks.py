"""Samples come out of a block of bytes as they went in, for every task and every number that a row can have."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ms_prefstream import DPO, RLHF, Reward
from ms_prefstream.errors import Reason, RowError
from ms_prefstream.load.workers.pool import pack, unpack
from ms_prefstream.sample import Loaded, Note, Sample, Sequence
from tests.pools import pairs, plain, recipe


def through(loaded: list[Loaded]) -> list[Loaded]:
    return unpack(pickle.loads(pickle.dumps(pack(loaded), protocol=5)))


@pytest.mark.parametrize(
    "task",
    [DPO(60), DPO(60, margin=True), RLHF(40, 100), Reward(80, layout="reward_token", reward_token=3)],
    ids=repr,
)
def test_every_task_passes(task: Any) -> None:
    loaded = recipe(pairs(200), task).loader().load(range(200))
    assert any(one.notes for one in loaded)
    found = through(loaded)
    assert plain(found) == plain(loaded)
    good = next(one.sample for one in found if one.sample is not None)
    assert good.sequences[0].ids.flags.writeable


def test_the_fields_of_a_sample_are_all_packed() -> None:
    # A field that is added to one of these must be added to pack and unpack too.
    assert Sample._fields == ("sequences", "prompt", "margin", "ref_logps")
    assert Sequence._fields == ("ids", "spans", "truncated", "question_cut")
    assert Loaded._fields == ("sample", "error", "notes", "unread")


ids = st.lists(st.integers(0, 2**31 - 1), max_size=5).map(lambda found: np.array(found, np.int32))
spans = st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 2**20)), max_size=3).map(tuple)
sequences = st.builds(Sequence, ids, spans, st.booleans(), st.booleans())
samples = st.builds(
    Sample,
    st.lists(sequences, min_size=1, max_size=3).map(tuple),
    st.none() | ids,
    st.none() | st.floats(allow_nan=False),
    st.none() | st.tuples(st.floats(allow_nan=False), st.floats(allow_nan=False)),
)
notes = st.integers(0, 15).map(Note)
errors = st.builds(RowError, st.sampled_from(list(Reason)), st.text(), st.text(), st.text())
rows = st.builds(Loaded, samples, st.none(), notes) | st.builds(Loaded, st.none(), errors, notes)


@given(st.lists(rows, max_size=8))
def test_anything_passes(loaded: list[Loaded]) -> None:
    assert plain(through(loaded)) == plain(loaded)
