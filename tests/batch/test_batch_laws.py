"""What holds for every batch of every layout: memory of its own, ids that come back, masks that keep their sum."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ms_prefstream.batch.layouts.registry import LAYOUT_NAMES, make_layout
from ms_prefstream.errors import OptionError
from ms_prefstream.sample import Block, Sample, Sequence

DPO = ("paired", "concat")
PAIRS = ("paired", "concat", "mindformers", "reward_token")


def layout_named(name, **options):
    return make_layout(name, max_prompt_length=12 if name == "rlhf" else None, **options)


@st.composite
def sequences(draw):
    """Up to 12 tokens, up to three spans, the first at token 1 or later; ids 0..3 so that pad ids occur in the text."""
    ids = draw(st.lists(st.integers(0, 3), min_size=2, max_size=12))
    borders = draw(st.lists(st.integers(1, len(ids)), max_size=6, unique=True).map(sorted))
    spans = tuple(zip(borders[0::2], borders[1::2], strict=False))
    return Sequence(np.array(ids, dtype=np.int32), spans)


@st.composite
def samples(draw):
    chosen, rejected = draw(sequences()), draw(sequences())
    if np.array_equal(chosen.ids, rejected.ids):  # a task drops such pairs
        rejected = Sequence(np.append(rejected.ids, np.int32(1))[-12:], ())
        chosen = Sequence(chosen.ids[:1], ())
    number = st.floats(-8, 8, width=32)
    return Sample(
        (chosen, rejected),
        draw(sequences()).ids,
        {"margin": draw(number), "desirable": 1},
        (draw(number), draw(number)),
    )


batches = st.lists(samples(), min_size=1, max_size=5)
pad_ids = st.sampled_from([0, 2, 99])


def without_logps(rows):
    return [row._replace(ref_logps=None, scores=(1.0,) * len(row.sequences[0].spans)) for row in rows]


def build(layout, rows, *options):
    """The batch of samples given one by one."""
    return layout.build(Block.of(rows), *options)


def ids_of(name, batch):
    """The padded ids of a batch, chosen rows first."""
    if name == "paired":
        return np.concatenate([batch["chosen_input_ids"], batch["rejected_input_ids"]])
    return batch[{"rlhf": "pretrain_ids", "prompts": "prompt_ids"}.get(name, "input_ids")]


def attention_of(name, batch):
    if name == "paired":
        return np.concatenate([batch["chosen_attention_mask"], batch["rejected_attention_mask"]])
    return batch["prompt_attention_mask" if name == "prompts" else "attention_mask"]


def loss_of(name, batch):
    if name == "paired":
        return np.concatenate([batch["chosen_loss_mask"], batch["rejected_loss_mask"]])
    return batch["loss_mask"]


def sources_of(name, rows):
    sides = (0, 1) if name in PAIRS else (0,)
    return [row.sequences[at] for at in sides for row in rows]


@pytest.mark.parametrize("name", LAYOUT_NAMES)
@given(rows=batches, pad_id=pad_ids, room=st.integers(0, 4))
@settings(settings.get_profile("costly"))
def test_unpadding_gives_back_the_ids_and_the_rest_is_padding(name, rows, pad_id, room):
    width = 12 + room
    batch = build(layout_named(name), without_logps(rows), width, pad_id, False)
    padded = ids_of(name, batch)
    sources = sources_of(name, rows)
    assert padded.shape == (len(sources), width)
    for row, sequence in zip(padded, sources, strict=True):
        np.testing.assert_array_equal(row[: len(sequence.ids)], sequence.ids)
        assert (row[len(sequence.ids) :] == pad_id).all()
    if name == "rlhf":
        for row, sample in zip(batch["prompt_ids"], rows, strict=True):
            np.testing.assert_array_equal(row[: len(sample.prompt)], sample.prompt)
            assert (row[len(sample.prompt) :] == pad_id).all()
    else:
        lengths = [len(sequence.ids) for sequence in sources]
        expected = [[1] * length + [0] * (width - length) for length in lengths]
        np.testing.assert_array_equal(attention_of(name, batch), expected)


@pytest.mark.parametrize("name", DPO)
@given(rows=batches, pad_id=pad_ids)
def test_shifting_keeps_the_mask_sum_of_every_row_and_what_it_selects(name, rows, pad_id):
    layout = layout_named(name)
    plain = build(layout, without_logps(rows), 12, pad_id, False)
    shifted = build(layout, without_logps(rows), 12, pad_id, True)
    totals = [sum(end - start for start, end in sequence.spans) for sequence in sources_of(name, rows)]
    assert loss_of(name, plain).sum(axis=1).tolist() == totals
    assert loss_of(name, shifted).sum(axis=1).tolist() == totals
    assert (loss_of(name, shifted)[:, -1] == 0).all()
    np.testing.assert_array_equal(loss_of(name, shifted)[:, :-1], loss_of(name, plain)[:, 1:])
    for side in ("chosen_", "rejected_") if name == "paired" else ("",):
        for batch in (plain, shifted):
            labels, mask = batch[f"{side}labels"], batch[f"{side}loss_mask"]
            target = plain[f"{side}input_ids"][plain[f"{side}loss_mask"] == 1]
            np.testing.assert_array_equal(labels[mask == 1], target)
            if name == "concat":
                assert (labels[mask == 0] == -100).all()


@given(rows=batches, pad_id=pad_ids)
def test_mindformers_loss_mask_by_its_definition(rows, pad_id):
    batch = build(layout_named("mindformers"), rows, 12, pad_id, False)
    for mask, sample in zip(batch["loss_mask"], rows, strict=True):
        chosen, rejected = (sequence.ids.tolist() for sequence in sample.sequences)
        first = 0
        while first < min(len(chosen), len(rejected)) and chosen[first] == rejected[first]:
            first += 1
        end = max(len(chosen), len(rejected))
        assert mask.tolist() == [1.0 if first <= column < end else 0.0 for column in range(12)]


ROWS = [
    Sample(
        (
            Sequence(np.arange(4, 10, dtype=np.int32), ((2, 5),)),
            Sequence(np.arange(4, 9, dtype=np.int32), ((2, 3), (4, 5))),
        ),
        np.arange(3, dtype=np.int32),
        {"margin": 1.0, "desirable": 1, "index": 2**40, "answer": "四"},
        (-1.0, -2.0),
    )
] * 2


def everything(name):
    """The layout with all its optional columns, and rows for it."""
    rows = ROWS if name == "paired" else without_logps(ROWS)
    columns = {"margin": "float32", "index": "int64", "answer": "text"}
    return layout_named(name, columns=columns, with_ref_logps=name == "paired"), rows


EVERY_BUILD = [(name, shifted) for name in LAYOUT_NAMES for shifted in ((False, True) if name in DPO else (False,))]


@pytest.mark.parametrize(("name", "shifted"), EVERY_BUILD)
@pytest.mark.parametrize("width", [6, 8])
def test_arrays_are_contiguous_and_own_their_memory(name, shifted, width):
    layout, rows = everything(name)
    block = Block.of(rows)
    batch = layout.build(block, width, 0, shifted)
    values = [*vars(block).values(), *block.columns.values()]
    inputs = [value for value in values if isinstance(value, np.ndarray)]
    arrays = list(batch.values())
    for at, array in enumerate(arrays):
        assert array.flags.c_contiguous
        assert array.flags.owndata
        assert array.flags.writeable
        assert array.dtype.isnative
        assert not any(np.shares_memory(array, other) for other in arrays[:at] + inputs)


@pytest.mark.parametrize(("name", "shifted"), EVERY_BUILD)
def test_writing_into_one_batch_never_changes_the_next(name, shifted):
    layout, rows = everything(name)
    first = build(layout, rows, 8, 0, shifted)
    kept = {column: array.copy() for column, array in first.items()}
    for array in first.values():
        array[...] = 7
    second = build(layout, rows, 8, 0, shifted)
    for column, array in second.items():
        np.testing.assert_array_equal(array, kept[column], err_msg=column)
        assert not np.shares_memory(array, first[column])


@pytest.mark.parametrize("name", LAYOUT_NAMES)
def test_columns_are_exact_and_a_layout_can_be_sent_to_a_worker(name):
    layout, rows = everything(name)
    sent = pickle.loads(pickle.dumps(layout))
    assert sent.name == name
    assert sent.columns == layout.columns
    batch = build(sent, rows, 8, 0)
    assert tuple(batch) == layout.columns
    for column, array in build(layout, rows, 8, 0).items():
        np.testing.assert_array_equal(batch[column], array)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("padded", {}, "layout is 'padded'; it must be one of paired, concat, mindformers, reward_token, rlhf"),
        ("concat", {"with_ref_logps": True}, "'concat' has no place for with_ref_logps=True; these have: paired"),
        ("paired", {"max_prompt_length": 4}, "'paired' has no place for max_prompt_length=4; these have: rlhf"),
        ("rlhf", {}, "needs max_prompt_length"),
    ],
)
def test_a_layout_says_what_it_has_no_place_for(name, options, said):
    with pytest.raises(OptionError, match=said):
        make_layout(name, **options)


def pair(chosen=((1, 3),), rejected=((1, 2),), ids=(5, 6, 7), others=(5, 8)):
    return Sample(
        (Sequence(np.array(ids, np.int32), tuple(chosen)), Sequence(np.array(others, np.int32), tuple(rejected)))
    )


@pytest.mark.parametrize(
    ("name", "rows", "shifted", "said"),
    [
        ("concat", [pair(chosen=[(0, 2)])], True, "begins at token 0"),
        ("paired", [pair(), pair(rejected=[(0, 2)])], True, "begins at token 0"),
        ("concat", [pair(rejected=[(1, 3)])], False, "ends after the last token of a sequence of 2 tokens"),
        ("concat", [pair(ids=range(9))], False, r"\[9 2\] tokens, but an array of 8 columns"),
        ("mindformers", [pair(others=())], False, r"\[3 0\] tokens"),
        ("mindformers", [pair(), pair(others=(5, 6, 7))], False, "the same tokens"),
        ("mindformers", [pair()], True, "'mindformers', which only has unshifted"),
        ("reward_token", [pair()], True, "'reward_token', which only has unshifted"),
        ("rlhf", [pair()._replace(prompt=np.array([1], np.int32))], True, "'rlhf', which only has unshifted"),
        ("rlhf", [pair()], False, "1 of 1 samples have no prompt"),
        ("rlhf", [pair()._replace(prompt=np.zeros(13, np.int32))], False, r"\[13\] tokens, but an array of 12"),
        ("paired", [], False, r"\[\] tokens"),
        ("paired", [pair()._replace(ref_logps=(1.0, 2.0))], False, "has no column"),
        ("concat", [pair()._replace(sequences=pair().sequences[:1])], False, "no sequence number 1"),
    ],
)
def test_what_no_row_can_cause_is_an_internal_error(name, rows, shifted, said):
    with pytest.raises(RuntimeError, match=f"internal error.*{said}.*please report"):
        layout_named(name).build(Block.of(rows) if rows else Block.empty(0, 2), 8, 0, shifted)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"columns": {"margin": "float32"}}, "1 of 2 samples have no margin"),
        ({"columns": {"answer": "text"}}, "2 of 2 samples have no answer"),
        ({"with_ref_logps": True}, "1 of 2 samples have no reference log-prob"),
    ],
)
def test_a_missing_value_of_an_optional_column_is_an_internal_error(options, said):
    rows = [pair()._replace(columns={"margin": 1.0}, ref_logps=(1.0, 2.0)), pair()]
    if "columns" in options:
        rows = without_logps(rows)
    with pytest.raises(RuntimeError, match=said):
        build(make_layout("paired", **options), rows, 8, 0, False)


def test_a_column_that_the_layout_has_keeps_its_place():
    layout = make_layout("concat", columns={"margin": "float32", "labels": "int32", "index": "int64"})
    assert layout.columns == ("input_ids", "labels", "attention_mask", "loss_mask", "margin", "index")
