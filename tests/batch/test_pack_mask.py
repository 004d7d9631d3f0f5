"""Dense masks from packed batches: block-diagonal, causal, one value for what is visible."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ms_prefstream.batch.layouts.packed import causal_mask
from ms_prefstream.errors import OptionError

SEGMENTS = np.array([[1, 1, 2, 0, 0]], np.int32)
SEEN = [
    [1, 0, 0, 0, 0],
    [1, 1, 0, 0, 0],
    [0, 0, 1, 0, 0],
    [0, 0, 0, 1, 0],
    [0, 0, 0, 1, 1],
]


def test_masked_is_one_as_mindformers_has_it():
    mask = causal_mask({"segment_ids": SEGMENTS, "input_ids": SEGMENTS})
    assert (mask.dtype, mask.shape) == (np.uint8, (1, 1, 5, 5))
    assert mask[0, 0].tolist() == (1 - np.array(SEEN)).tolist()


def test_visible_is_one_on_request_and_the_axis_of_heads_goes():
    mask = causal_mask(SEGMENTS, visible=1, heads=False)
    assert mask.tolist() == [SEEN]


class Tensor:
    def asnumpy(self):
        return SEGMENTS


def test_tensors_are_welcome():
    assert (causal_mask({"segment_ids": Tensor()}) == causal_mask(SEGMENTS)).all()


@given(
    st.integers(1, 12).flatmap(
        lambda width: st.lists(
            st.lists(st.integers(1, 4), min_size=0, max_size=width).map(
                lambda ids: sorted(ids) + [0] * (width - len(ids))
            ),
            min_size=1,
            max_size=3,
        )
    ),
    st.sampled_from([0, 1]),
)
@settings(settings.get_profile("cheap"))
def test_a_token_sees_what_stands_before_it_in_its_own_segment(rows, visible):
    mask = causal_mask(np.array(rows), visible=visible, heads=False)
    for row, ids in enumerate(rows):
        for query in range(len(ids)):
            for key in range(len(ids)):
                seen = key <= query and ids[key] == ids[query]
                assert mask[row, query, key] == (visible if seen else 1 - visible)


@pytest.mark.parametrize(
    ("batch", "options", "words"),
    [
        ({"input_ids": SEGMENTS}, {}, "no segment_ids; found columns: input_ids"),
        (SEGMENTS[0], {}, r"\(5,\) int32; expected whole numbers"),
        (SEGMENTS.astype(float), {}, "float64; expected whole numbers"),
        (SEGMENTS, {"visible": 2}, "visible is 2; expected 0"),
        (SEGMENTS, {"visible": True}, "visible is True; expected 0"),
    ],
)
def test_what_has_no_mask_is_refused(batch, options, words):
    with pytest.raises(OptionError, match=words):
        causal_mask(batch, **options)
