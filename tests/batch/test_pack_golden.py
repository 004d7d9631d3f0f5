"""Packed batches written out by hand from their definition: two rows of a step, with pad ids inside the text and not.

Row 1 holds two pairs and a column of padding, row 2 one pair that fills it. Id 2 is the end of turn; the chosen side
of the first pair has template text (13) behind it, and its response contains id 0.
"""

from __future__ import annotations

import numpy as np
import pytest

from ms_prefstream.batch.layouts.packed import PackedLayout
from ms_prefstream.sample import Block, Sample, Sequence


def seq(ids, *spans):
    return Sequence(np.array(ids, dtype=np.int32), spans)


FIRST = Sample((seq([1, 0, 2, 13], (1, 3)), seq([1, 30, 2], (1, 3))), columns={"margin": 0.5})
SECOND = Sample((seq([1, 40], (1, 2)), seq([1, 41], (1, 2))))
THIRD = Sample((seq([1, 12, 51, 2, 14, 52, 2], (2, 4), (5, 7)), seq([1, 12, 53, 54, 2], (2, 5))))
PACKS = [Block.of([FIRST, SECOND]), Block.of([THIRD])]
IG = -100
every_pad_id = pytest.mark.parametrize("P", [0, 2, 99], ids=["pad0", "pad_is_eos", "pad99"])


def assert_batch(batch, expected):
    """The same columns in the same order, each int32 with exactly this content, contiguous and its own."""
    assert list(batch) == list(expected) == list(PackedLayout(tokens=12, max_segments=6).columns)
    for name, rows in expected.items():
        assert batch[name].dtype == np.int32, name
        assert batch[name].flags["C_CONTIGUOUS"], name
        assert batch[name].tolist() == rows, name


def where_things_are(P):  # noqa: N803
    return {
        "input_ids": [[1, 0, 2, 13, 1, 30, 2, 1, 40, 1, 41, P], [1, 12, 51, 2, 14, 52, 2, 1, 12, 53, 54, 2]],
        "position_ids": [[0, 1, 2, 3, 0, 1, 2, 0, 1, 0, 1, 0], [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4]],
        "segment_ids": [[1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 4, 0], [1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2]],
        "pair_ids": [[1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]],
        "actual_seq_len": [[4, 7, 9, 11, 12, 12], [19, 24, 24, 24, 24, 24]],
    }


def expected(P, labels, loss_mask):  # noqa: N803
    known = where_things_are(P) | {"labels": labels, "loss_mask": loss_mask}
    return {name: known[name] for name in PackedLayout(tokens=12, max_segments=6).columns}


@every_pad_id
def test_unshifted(P):  # noqa: N803
    batch = PackedLayout(tokens=12, max_segments=6).build(PACKS, P)
    labels = [
        [IG, 0, 2, IG, IG, 30, 2, IG, 40, IG, 41, IG],
        [IG, IG, 51, 2, IG, 52, 2, IG, IG, 53, 54, 2],
    ]
    loss_mask = [[0, 1, 1, 0, 0, 1, 1, 0, 1, 0, 1, 0], [0, 0, 1, 1, 0, 1, 1, 0, 0, 1, 1, 1]]
    assert_batch(batch, expected(P, labels, loss_mask))


@every_pad_id
def test_shifted(P):  # noqa: N803
    batch = PackedLayout(tokens=12, max_segments=6).build(PACKS, P, True)
    labels = [
        [0, 2, IG, IG, 30, 2, IG, 40, IG, 41, IG, IG],
        [IG, 51, 2, IG, 52, 2, IG, IG, 53, 54, 2, IG],
    ]
    loss_mask = [[1, 1, 0, 0, 1, 1, 0, 1, 0, 1, 0, 0], [0, 1, 1, 0, 1, 1, 0, 0, 1, 1, 1, 0]]
    assert_batch(batch, expected(P, labels, loss_mask))


@every_pad_id
def test_reward_token(P):  # noqa: N803
    batch = PackedLayout(tokens=12, max_segments=6, scores=True).build(PACKS, P)
    labels = [
        [IG, IG, IG, 0, IG, IG, 1, IG, 0, IG, 1, IG],
        [IG, IG, IG, IG, IG, IG, 0, IG, IG, IG, IG, 1],
    ]
    loss_mask = [[0, 0, 0, 1, 0, 0, 1, 0, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]]
    assert_batch(batch, expected(P, labels, loss_mask))


@every_pad_id
def test_rlhf(P):  # noqa: N803
    prompt = np.array([1, 5], np.int32)
    packs = [Block.of([Sample((seq([1, 5, 6, 2], (2, 4)),), prompt), Sample((seq([1, 5]),), prompt)])]
    batch = PackedLayout(tokens=7, max_segments=4).build(packs, P)
    assert_batch(
        batch,
        {
            "input_ids": [[1, 5, 6, 2, 1, 5, P]],
            "labels": [[IG, IG, 6, 2, IG, IG, IG]],
            "loss_mask": [[0, 0, 1, 1, 0, 0, 0]],
            "position_ids": [[0, 1, 2, 3, 0, 1, 0]],
            "segment_ids": [[1, 1, 1, 1, 2, 2, 0]],
            "pair_ids": [[1, 1, 1, 1, 2, 2, 0]],
            "actual_seq_len": [[4, 6, 7, 7]],
        },
    )


def test_further_values_are_one_for_each_pair():
    rows = [[(0.5, 7, "a"), (-1.25, 8, "四 e")], [(2.0, -9, "")]]
    packs = [
        Block.of(
            [
                one._replace(columns={"margin": m, "index": i, "answer": a})
                for one, (m, i, a) in zip(pairs, row, strict=True)
            ]
        )
        for pairs, row in zip([[FIRST, SECOND], [THIRD]], rows, strict=True)
    ]
    layout = PackedLayout(tokens=12, max_segments=6, own={"margin": "float32"})
    layout = layout.with_columns({"index": "int64", "answer": "text"})
    batch = layout.build(packs, 0)
    plain = PackedLayout(tokens=12, max_segments=6).build(PACKS, 0)
    assert list(batch) == list(layout.columns)
    assert layout.columns == (*list(plain)[:-1], "margin", "actual_seq_len", "index", "answer")
    for name, array in plain.items():
        np.testing.assert_array_equal(batch[name], array)
    assert batch["margin"].dtype == np.float32
    assert batch["margin"].tolist() == [[0.5, -1.25, 0, 0, 0, 0], [2, 0, 0, 0, 0, 0]]
    assert batch["index"].dtype == np.int64
    assert batch["index"].tolist() == [[7, 8, 0, 0, 0, 0], [-9, 0, 0, 0, 0, 0]]
    assert batch["answer"].dtype == np.dtype("<U3")
    assert batch["answer"].tolist() == [["a", "四 e", "", "", "", ""], [""] * 6]


@pytest.mark.parametrize("shifted", [False, True])
def test_a_first_token_under_the_loss_is_taken_out_of_it(shifted):
    packs = [Block.of([Sample((seq([5, 6], (0, 2)), seq([7], (0, 1))))])]
    batch = PackedLayout(tokens=4, max_segments=4).build(packs, 0, shifted)
    assert batch["loss_mask"].tolist() == ([[1, 0, 0, 0]] if shifted else [[0, 1, 0, 0]])
    assert batch["labels"].tolist() == ([[6, IG, IG, IG]] if shifted else [[IG, 6, IG, IG]])


@pytest.mark.parametrize(
    ("packs", "options", "words"),
    [
        ([[FIRST, SECOND, SECOND]], {}, "6 sequences of 15 tokens"),
        ([[SECOND, SECOND]], {"max_segments": 4}, "4 sequences of 8 tokens, but a row holds 1 to 3 sequences"),
        ([[]], {}, "no samples"),
        ([[Sample((seq([]), seq([1])))]], {}, "none of them empty"),
        ([[FIRST._replace(ref_logps=(-1.0, -2.0))]], {}, "reference log-probabilities"),
        ([[Sample((seq([1, 2], (1, 3)), seq([1])))]], {}, "a span ends after its sequence"),
    ],
)
def test_packs_that_no_plan_makes_are_internal_errors(packs, options, words):
    with pytest.raises(RuntimeError, match=words):
        PackedLayout(**{"tokens": 12, "max_segments": 8, **options}).build(list(map(Block.of, packs)), 0)


def test_scores_cannot_be_shifted():
    with pytest.raises(RuntimeError, match="shifted labels were requested from the layout 'reward_token'"):
        PackedLayout(tokens=12, max_segments=6, scores=True).build(PACKS, 0, True)
