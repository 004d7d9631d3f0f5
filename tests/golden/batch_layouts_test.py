"""Every layout written out by hand from its definition, for pad ids that do and do not occur in the text.

Two pairs. In pair 1 the chosen side ends with template text behind its end of turn (13) and its response contains
id 0; in pair 2 the rejected side fills the row exactly and is trained on in two places. Id 2 is the end of turn.
"""

from __future__ import annotations

import numpy as np
import pytest

from ms_prefstream.batch.layouts.registry import make_layout
from ms_prefstream.sample import Block, Sample, Sequence


def seq(ids, *spans):
    return Sequence(np.array(ids, dtype=np.int32), spans)


PAIRS = [
    Sample((seq([1, 10, 11, 0, 21, 2, 13], (3, 6)), seq([1, 10, 11, 30, 2], (3, 5))), columns={"margin": 0.5}),
    Sample(
        (seq([1, 12, 40, 2], (2, 4)), seq([1, 12, 41, 2, 14, 42, 2, 13], (2, 4), (5, 7))), columns={"margin": -1.25}
    ),
]
WITH_LOGPS = [
    PAIRS[0]._replace(ref_logps=(-1.5, -2.5)),
    PAIRS[1]._replace(ref_logps=(-3.0, -4.25)),
]
IG = -100
every_pad_id = pytest.mark.parametrize("P", [0, 2, 99], ids=["pad0", "pad_is_eos", "pad99"])


def assert_batch(batch, expected):
    """The same columns in the same order, each with exactly this dtype, shape and content."""
    assert list(batch) == list(expected)
    for name, (dtype, rows) in expected.items():
        wanted = np.array(rows, dtype=dtype)
        assert batch[name].dtype == wanted.dtype, name
        assert batch[name].shape == wanted.shape, name
        np.testing.assert_array_equal(batch[name], wanted, err_msg=name)


@every_pad_id
def test_paired_unshifted(P):  # noqa: N803
    chosen = [[1, 10, 11, 0, 21, 2, 13, P], [1, 12, 40, 2, P, P, P, P]]
    rejected = [[1, 10, 11, 30, 2, P, P, P], [1, 12, 41, 2, 14, 42, 2, 13]]
    layout = make_layout("paired")
    batch = layout.build(Block.of(PAIRS), 8, P, False)
    assert layout.columns == tuple(batch)
    assert_batch(
        batch,
        {
            "chosen_input_ids": ("i4", chosen),
            "chosen_labels": ("i4", chosen),
            "chosen_attention_mask": ("i4", [[1, 1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0, 0, 0]]),
            "chosen_loss_mask": ("i4", [[0, 0, 0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 0, 0, 0, 0]]),
            "rejected_input_ids": ("i4", rejected),
            "rejected_labels": ("i4", rejected),
            "rejected_attention_mask": ("i4", [[1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]]),
            "rejected_loss_mask": ("i4", [[0, 0, 0, 1, 1, 0, 0, 0], [0, 0, 1, 1, 0, 1, 1, 0]]),
        },
    )


@every_pad_id
def test_paired_shifted_with_reference_log_probabilities_and_margin(P):  # noqa: N803
    layout = make_layout("paired", with_ref_logps=True, columns={"margin": "float32"})
    batch = layout.build(Block.of(WITH_LOGPS), 8, P, True)
    assert layout.columns == tuple(batch)
    assert_batch(
        batch,
        {
            "chosen_input_ids": ("i4", [[1, 10, 11, 0, 21, 2, 13, P], [1, 12, 40, 2, P, P, P, P]]),
            "chosen_labels": ("i4", [[10, 11, 0, 21, 2, 13, P, P], [12, 40, 2, P, P, P, P, P]]),
            "chosen_attention_mask": ("i4", [[1, 1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0, 0, 0]]),
            "chosen_loss_mask": ("i4", [[0, 0, 1, 1, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0, 0]]),
            "chosen_ref_logps": ("f4", [[-1.5], [-3.0]]),
            "rejected_input_ids": ("i4", [[1, 10, 11, 30, 2, P, P, P], [1, 12, 41, 2, 14, 42, 2, 13]]),
            "rejected_labels": ("i4", [[10, 11, 30, 2, P, P, P, P], [12, 41, 2, 14, 42, 2, 13, P]]),
            "rejected_attention_mask": ("i4", [[1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]]),
            "rejected_loss_mask": ("i4", [[0, 0, 1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 1, 1, 0, 0]]),
            "rejected_ref_logps": ("f4", [[-2.5], [-4.25]]),
            "margin": ("f4", [0.5, -1.25]),
        },
    )


CONCAT_IDS = [
    [1, 10, 11, 0, 21, 2, 13, "P"],
    [1, 12, 40, 2, "P", "P", "P", "P"],
    [1, 10, 11, 30, 2, "P", "P", "P"],
    [1, 12, 41, 2, 14, 42, 2, 13],
]
CONCAT_ATTENTION = [
    [1, 1, 1, 1, 1, 1, 1, 0],
    [1, 1, 1, 1, 0, 0, 0, 0],
    [1, 1, 1, 1, 1, 0, 0, 0],
    [1, 1, 1, 1, 1, 1, 1, 1],
]


def with_pad(rows, pad_id):
    return [[pad_id if value == "P" else value for value in row] for row in rows]


@every_pad_id
def test_concat_unshifted(P):  # noqa: N803
    layout = make_layout("concat")
    batch = layout.build(Block.of(PAIRS), 8, P, False)
    assert layout.columns == tuple(batch)
    labels = [
        [IG, IG, IG, 0, 21, 2, IG, IG],
        [IG, IG, 40, 2, IG, IG, IG, IG],
        [IG, IG, IG, 30, 2, IG, IG, IG],
        [IG, IG, 41, 2, IG, 42, 2, IG],
    ]
    mask = [
        [0, 0, 0, 1, 1, 1, 0, 0],
        [0, 0, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 1, 1, 0],
    ]
    assert_batch(
        batch,
        {
            "input_ids": ("i4", with_pad(CONCAT_IDS, P)),
            "labels": ("i4", labels),
            "attention_mask": ("i4", CONCAT_ATTENTION),
            "loss_mask": ("i4", mask),
        },
    )


@every_pad_id
def test_concat_shifted_with_margin(P):  # noqa: N803
    layout = make_layout("concat", columns={"margin": "float32"})
    batch = layout.build(Block.of(PAIRS), 8, P, True)
    assert layout.columns == tuple(batch)
    labels = [
        [IG, IG, 0, 21, 2, IG, IG, IG],
        [IG, 40, 2, IG, IG, IG, IG, IG],
        [IG, IG, 30, 2, IG, IG, IG, IG],
        [IG, 41, 2, IG, 42, 2, IG, IG],
    ]
    mask = [
        [0, 0, 1, 1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 1, 1, 0, 0],
    ]
    assert_batch(
        batch,
        {
            "input_ids": ("i4", with_pad(CONCAT_IDS, P)),
            "labels": ("i4", labels),
            "attention_mask": ("i4", CONCAT_ATTENTION),
            "loss_mask": ("i4", mask),
            "margin": ("f4", [0.5, -1.25]),
        },
    )


def test_a_span_that_ends_with_the_row_leaves_its_last_column_free_when_shifted():
    sample = Sample((seq([1, 5, 2], (1, 3)), seq([1, 6, 2], (1, 3))))
    batch = make_layout("concat").build(Block.of([sample]), 3, 0, True)
    np.testing.assert_array_equal(batch["labels"], [[5, 2, IG], [6, 2, IG]])
    np.testing.assert_array_equal(batch["loss_mask"], [[1, 1, 0], [1, 1, 0]])


@every_pad_id
def test_mindformers_reward(P):  # noqa: N803
    # Pair 3: the chosen side is the beginning of the rejected one, which goes on with the pad id itself.
    pairs = [*PAIRS, Sample((seq([1, 5], (1, 2)), seq([1, 5, P, 6], (1, 4))), columns={"margin": 2.0})]
    layout = make_layout("mindformers", columns={"margin": "float32"})
    batch = layout.build(Block.of(pairs), 8, P, False)
    assert layout.columns == tuple(batch)
    ids = [
        [1, 10, 11, 0, 21, 2, 13, P],
        [1, 12, 40, 2, P, P, P, P],
        [1, 5, P, P, P, P, P, P],
        [1, 10, 11, 30, 2, P, P, P],
        [1, 12, 41, 2, 14, 42, 2, 13],
        [1, 5, P, 6, P, P, P, P],
    ]
    attention = [
        [1, 1, 1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 0, 0, 0, 0],
    ]
    loss = [
        [0, 0, 0, 1, 1, 1, 1, 0],
        [0, 0, 1, 1, 1, 1, 1, 1],
        [0, 0, 1, 1, 0, 0, 0, 0],
    ]
    assert_batch(
        batch,
        {
            "input_ids": ("i4", ids),
            "position_id": ("i4", [[0, 1, 2, 3, 4, 5, 6, 7]] * 6),
            "attention_mask": ("f2", attention),
            "loss_mask": ("f2", loss),
            "end_ind": ("i4", [7, 4, 2, 5, 8, 4]),
            "margin": ("f4", [0.5, -1.25, 2.0]),
        },
    )


@every_pad_id
def test_reward_token(P):  # noqa: N803
    pairs = [
        Sample((seq([1, 10, 11, 2, 77], (2, 4)), seq([1, 10, 30, 31, 2, 77], (2, 5)))),
        Sample((seq([1, 0, 77], (1, 2)), seq([1, 77], (1, 1)))),
    ]
    layout = make_layout("reward_token")
    batch = layout.build(Block.of(pairs), 6, P, False)
    assert layout.columns == tuple(batch)
    assert_batch(
        batch,
        {
            "input_ids": (
                "i4",
                [[1, 10, 11, 2, 77, P], [1, 0, 77, P, P, P], [1, 10, 30, 31, 2, 77], [1, 77, P, P, P, P]],
            ),
            "attention_mask": (
                "i4",
                [[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]],
            ),
            "labels": (
                "i4",
                [[IG, IG, IG, IG, 0, IG], [IG, IG, 0, IG, IG, IG], [IG, IG, IG, IG, IG, 1], [IG, 1, IG, IG, IG, IG]],
            ),
        },
    )


@every_pad_id
def test_rlhf(P):  # noqa: N803
    rows = [
        Sample((seq([1, 10, 11, 20, 2], (3, 5)),), prompt=np.array([1, 10, 11], np.int32)),
        Sample((seq([1, 12]),), prompt=np.array([1, 12], np.int32)),  # a row without response
        Sample((seq([1, 0, 0, 2, 13, 7], (1, 4)),), prompt=np.array([1, 0, 0, 4], np.int32)),
    ]
    layout = make_layout("rlhf", max_prompt_length=4)
    batch = layout.build(Block.of(rows), 6, P, False)
    assert layout.columns == tuple(batch)
    assert_batch(
        batch,
        {
            "prompt_ids": ("i4", [[1, 10, 11, P], [1, 12, P, P], [1, 0, 0, 4]]),
            "pretrain_ids": ("i4", [[1, 10, 11, 20, 2, P], [1, 12, P, P, P, P], [1, 0, 0, 2, 13, 7]]),
            "loss_mask": ("i4", [[0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0]]),
        },
    )
