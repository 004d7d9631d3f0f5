"""What holds for every packed batch: unpacking gives back the samples, and no label crosses a border."""

from __future__ import annotations

import pickle

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ms_prefstream.batch.layouts.packed import PackedLayout
from ms_prefstream.sample import Block, Sample, Sequence

TOKENS, SEGMENTS = 48, 9


def sequence(numbers):
    """Up to 6 tokens and two spans, at token 0, too; ids 0..3 so that pad ids occur in the text."""
    length = int(numbers.integers(1, 7))
    borders = np.sort(numbers.choice(length + 1, min(length + 1, 2 * numbers.integers(3)), replace=False)).tolist()
    return Sequence(numbers.integers(0, 4, length, np.int32), tuple(zip(borders[0::2], borders[1::2], strict=False)))


@st.composite
def packs(draw, sides=2):
    """One to four packed rows of one or more samples; drawn as a seed, since drawing token by token takes seconds."""
    numbers = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = draw(st.lists(st.integers(1, (SEGMENTS - 1) // sides), min_size=1, max_size=4))
    return [Block.of([Sample(tuple(sequence(numbers) for _ in range(sides))) for _ in range(n)]) for n in sizes]


def layout(**options):
    return PackedLayout(tokens=TOKENS, max_segments=SEGMENTS, **options)


def unpack(batch):
    """The ids of every sequence by (row, pair, segment), found by segment_ids and pair_ids alone."""
    rows = []
    for ids, segments, pairs in zip(batch["input_ids"], batch["segment_ids"], batch["pair_ids"], strict=True):
        samples = []
        for pair in range(1, pairs.max() + 1):
            numbers = sorted(set(segments[pairs == pair].tolist()))
            samples.append([ids[segments == number].tolist() for number in numbers])
        rows.append(samples)
    return rows


@given(st.sampled_from([1, 2]).flatmap(packs), st.sampled_from([0, 2, 99]), st.booleans())
def test_unpacking_gives_back_exactly_the_samples(rows, pad_id, shifted):
    batch = layout().build(rows, pad_id, shifted)
    assert unpack(batch) == [[[s.ids.tolist() for s in one.sample.sequences] for one in row] for row in rows]
    outside = batch["segment_ids"] == 0
    assert (batch["input_ids"][outside] == pad_id).all()
    assert ((batch["pair_ids"] == 0) == outside).all()
    for name in ("position_ids", "loss_mask"):
        assert (batch[name][outside] == 0).all()


@given(packs(), st.booleans())
def test_positions_and_ends_say_where_sequences_are(rows, shifted):
    batch = layout().build(rows, 0, shifted)
    for row, samples in enumerate(rows):
        lengths = [len(sequence.ids) for one in samples for sequence in one.sample.sequences]
        filled = sum(lengths)
        counted = [place for length in lengths for place in range(length)]
        assert batch["position_ids"][row].tolist() == counted + [0] * (TOKENS - filled)
        ends = (np.cumsum(lengths) + row * TOKENS).tolist()
        assert batch["actual_seq_len"][row].tolist() == ends + [(row + 1) * TOKENS] * (SEGMENTS - len(ends))
    line = batch["actual_seq_len"].reshape(-1)
    assert (np.diff(line) >= 0).all()
    assert line[-1] == len(rows) * TOKENS


@given(packs())
def test_no_label_crosses_a_border_and_shifting_changes_no_sum(rows):
    plain, shifted = layout().build(rows, 0, False), layout().build(rows, 0, True)
    for row, samples in enumerate(rows):
        for number, sequence in enumerate((s for one in samples for s in one.sample.sequences), 1):
            here = plain["segment_ids"][row] == number
            trained = [place for begin, end in sequence.spans for place in range(max(begin, 1), end)]
            assert np.flatnonzero(plain["loss_mask"][row][here]).tolist() == trained
            assert np.flatnonzero(shifted["loss_mask"][row][here]).tolist() == [place - 1 for place in trained]
            ids = sequence.ids.tolist()
            assert plain["labels"][row][here][trained].tolist() == [ids[place] for place in trained]
            predicted = shifted["labels"][row][here][[place - 1 for place in trained]]
            assert predicted.tolist() == [ids[place] for place in trained]
    for batch in (plain, shifted):
        assert ((batch["labels"] == -100) == (batch["loss_mask"] == 0)).all()


@given(packs())
def test_scores_stand_at_the_last_token_of_each_side(rows):
    batch = layout(scores=True).build(rows, 0)
    for row, samples in enumerate(rows):
        ends = batch["actual_seq_len"][row][: 2 * len(samples)] - row * TOKENS
        assert np.flatnonzero(batch["loss_mask"][row]).tolist() == (ends - 1).tolist()
        assert batch["labels"][row][ends - 1].tolist() == [0, 1] * len(samples)
        assert (batch["labels"][row] != -100).sum() == len(ends)


@given(packs())
@settings(settings.get_profile("costly"))
def test_every_array_is_memory_of_its_own(rows):
    first, second = layout().build(rows, 0), layout().build(rows, 0)
    arrays = [*first.values(), *second.values(), *(row.ids for row in rows)]
    for at, one in enumerate(arrays[: len(first)]):
        assert one.flags["OWNDATA"] or one.base.flags["OWNDATA"]
        assert not any(np.shares_memory(one, other) for other in arrays[at + 1 :])


def test_a_layout_can_be_sent_to_another_process():
    sent = pickle.loads(pickle.dumps(layout(scores=True)))
    assert sent == layout(scores=True)
    assert sent.columns == layout().columns
