"""Which rows a stream delivers, and in which order: read from the batches, compared with what is promised."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream.errors import OptionError
from tests.helpers import assert_epoch_conserves_rows, flat, global_steps, pairs, rows_of, token_pairs

N = 43
MODES = {
    "pad": mps.Pad(4),
    "multiple_of": mps.Bucket(4, multiple_of=16),
    "boundaries": mps.Bucket(4, boundaries=(48, 64, 128)),
    "max_shapes": mps.Bucket(4, max_shapes=3),
}


def make(source: Any = None, **options: Any) -> mps.Stream:
    settings: dict[str, Any] = {
        "task": mps.DPO(128),
        "tokenizer": "bytes",
        "batching": mps.Bucket(4, multiple_of=16),
        "window": 3,
    } | options
    return mps.stream(pairs(N) if source is None else source, **settings)


def order(stream: mps.Stream, epoch: int = 0) -> list[list[int]]:
    return rows_of(stream.batches(epoch))


@pytest.mark.parametrize("drop", [True, False])
@pytest.mark.parametrize("shuffle", [True, "window", False])
@pytest.mark.parametrize("mode", MODES)
def test_every_row_comes_once_an_epoch_and_is_the_row_announced(mode: str, shuffle: Any, drop: bool) -> None:
    stream = make(batching=MODES[mode], shuffle=shuffle, drop_remainder=drop, seed=3)
    assert stream.steps_per_epoch == (10 if drop else 11)
    for epoch in range(3):
        assert_epoch_conserves_rows(global_steps([stream], epoch), N, stream.report)
    assert stream.report.remainder_per_epoch == (3 if drop else 0)
    assert stream.report.repeats_per_epoch == (0 if drop else 1)


@pytest.mark.parametrize("shuffle", [True, "window"])
@pytest.mark.parametrize("mode", MODES)
def test_epochs_and_seeds_differ_and_the_same_seed_repeats(mode: str, shuffle: Any) -> None:
    options = {"batching": MODES[mode], "shuffle": shuffle}
    first = make(seed=7, **options)
    orders = [order(first, epoch) for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert [order(make(seed=7, **options), epoch) for epoch in range(3)] == orders
    assert order(make(seed=8, **options)) not in orders
    assert order(first, 0) == orders[0]  # asking again changes nothing


def test_epoch_1_of_a_seed_is_not_epoch_0_of_the_next_seed() -> None:
    """Steps are compared whatever their order, since windows are permuted with a key of their own."""
    left, right = (make(seed=seed, batching=mps.Pad(4), window=64) for seed in (0, 1))
    assert sorted(map(sorted, order(left, 1))) != sorted(map(sorted, order(right, 0)))


@pytest.mark.parametrize("mode", MODES)
def test_without_shuffling_rows_come_in_source_order(mode: str) -> None:
    stream = make(batching=MODES[mode], shuffle=False)
    for epoch in range(2):
        assert flat(order(stream, epoch)) == list(range(40))


@pytest.mark.parametrize("mode", MODES)
def test_shuffling_in_windows_keeps_rows_near_their_place(mode: str) -> None:
    stream = make(batching=MODES[mode], shuffle="window")
    for epoch in range(2):
        steps = order(stream, epoch)
        for begin in range(0, 9, 3):  # 3 steps of 4 rows: one range of 12 rows of the source
            ranges = {row // 12 for step in steps[begin : begin + 3] for row in step}
            assert len(ranges) == 1
        assert {row // 12 for row in steps[9]} == {3}  # the range that is not full stays last


def test_what_is_left_out_is_another_each_epoch() -> None:
    stream = make()
    left_out = [set(range(N)) - set(flat(order(stream, epoch))) for epoch in range(4)]
    assert all(len(rows) == 3 for rows in left_out)
    assert len(set(map(frozenset, left_out))) > 1


def keys(batch: Any) -> list[int]:
    """Tokens of the longer side of each row, ascending."""
    masks = [batch[f"{side}_attention_mask"].sum(1) for side in ("chosen", "rejected")]
    return sorted(max(lengths) for lengths in zip(*masks, strict=True))


@pytest.mark.parametrize("mode", ["multiple_of", "boundaries", "max_shapes"])
def test_the_batches_of_a_window_are_cut_from_its_rows_sorted_by_length(mode: str) -> None:
    batches = [keys(batch) for batch in make(batching=MODES[mode]).batches()]
    for begin in (0, 3, 6):
        window = flat(sorted(batches[begin : begin + 3]))
        assert window == sorted(window)


def test_batches_of_a_window_do_not_grow_together() -> None:
    widths = [batch["chosen_input_ids"].shape[1] for batch in make(window=10).batches()]
    assert widths != sorted(widths)


@pytest.mark.parametrize("seed", range(4))
def test_longest_first_brings_the_longest_batch_of_the_first_window_to_step_0(seed: int) -> None:
    plain, first = (make(window=5, seed=seed, longest_first=longest) for longest in (False, True))
    assert rows_of(first.batches(1)) == rows_of(plain.batches(1))
    window = [list(batches)[:5] for batches in (plain.batches(), first.batches())]
    lengths = [keys(batch)[-1] for batch in window[1]]
    assert lengths[0] == max(lengths)
    assert sorted(rows_of(window[0])) == sorted(rows_of(window[1]))
    assert order(plain)[5:] == order(first)[5:]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"shuffle": False}, "shuffle=False and"), ({"batching": mps.Pad(4)}, "batches of one width have none")],
)
def test_longest_first_needs_sorted_windows(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        make(longest_first=True, **options)


def test_repeats_fill_the_last_step_of_a_source_that_is_smaller_than_a_batch() -> None:
    stream = make(token_pairs(3), tokenizer=None, pad_token_id=0, batching=mps.Pad(8), drop_remainder=False)
    assert stream.steps_per_epoch == 1
    assert stream.report.repeats_per_epoch == 5
    (step,) = order(stream)
    assert sorted(Counter(step).values()) == [2, 3, 3]


def test_batches_begin_at_any_step_of_any_epoch() -> None:
    stream = make()
    for epoch in range(2):
        whole = order(stream, epoch)
        for step in range(11):
            assert rows_of(stream.batches(epoch, step)) == whole[step:]


@pytest.mark.parametrize(
    ("epoch", "step", "sentence"),
    [
        (-1, 0, "epoch is -1; expected"),
        (0, -1, "start_step is -1; expected"),
        (0, "1", "start_step is '1' \\(str\\); expected"),
        (0, 11, r"start_step is 11; expected .* 0\.\.10"),
    ],
)
def test_steps_that_do_not_exist_are_refused(epoch: int, step: Any, sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        make().batches(epoch, step)


@pytest.mark.parametrize("mode", ["pad", "multiple_of"])
@pytest.mark.parametrize("step", [-1, 10, 0.5])
def test_rows_of_a_step_that_does_not_exist(mode: str, step: Any) -> None:
    with pytest.raises(OptionError, match=rf"step is {step}"):
        make(batching=MODES[mode]).rows(0, step)
