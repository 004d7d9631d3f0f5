"""Datasets of steps deliver every step once, in order, from the requested epoch and step."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from fake_steps import FakeSteps

from ms_prefstream.errors import SourceError
from ms_prefstream.mindspore.dataset import to_dataset

pytestmark = pytest.mark.mindspore
K = 4


def passes(iterator: Any, count: int) -> list[list[int]]:
    """The steps that each of `count` passes over one iterator delivers."""
    return [[int(row["step"][0]) for row in iterator] for _ in range(count)]


def run(dataset: Any, epochs: int, count: int | None = None) -> list[list[int]]:
    return passes(dataset.create_dict_iterator(num_epochs=epochs, output_numpy=True), count or epochs)


def test_the_size_is_known_without_making_a_step() -> None:
    from mindspore.dataset import GeneratorDataset

    steps = FakeSteps(K)
    dataset = to_dataset(steps)
    assert isinstance(dataset, GeneratorDataset)
    assert dataset.get_dataset_size() == len(dataset) == K
    assert dataset.get_col_names() == ["step", "wide"]
    assert steps.asked == []


def test_epochs_of_one_iterator_are_successive() -> None:
    assert run(to_dataset(FakeSteps(K)), 3) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_columns_keep_their_order_shape_and_type() -> None:
    row = next(iter(to_dataset(FakeSteps(K)).create_tuple_iterator(num_epochs=1, output_numpy=True)))
    assert [column.shape for column in row] == [(2,), (2, 3)]
    assert [column.dtype for column in row] == [np.int32, np.int32]


def test_a_new_iterator_begins_at_the_start_epoch_again() -> None:
    dataset = to_dataset(FakeSteps(K), start_epoch=2)
    assert run(dataset, 1) == run(dataset, 1) == [[8, 9, 10, 11]]


def test_interleaved_iterators_do_not_disturb_each_other() -> None:
    dataset = to_dataset(FakeSteps(K))
    left = dataset.create_dict_iterator(num_epochs=2, output_numpy=True)
    first = [int(next(left)["step"][0]) for _ in range(3)]
    right = dataset.create_dict_iterator(num_epochs=2, output_numpy=True)
    assert passes(right, 1) == [[0, 1, 2, 3]]
    assert first + passes(left, 2)[0] == [0, 1, 2, 3]
    assert passes(right, 1) == [[4, 5, 6, 7]]


def test_repeat_continues_with_the_next_epoch() -> None:
    dataset = to_dataset(FakeSteps(K), start_epoch=1).repeat(2)
    assert dataset.get_dataset_size() == 2 * K
    assert run(dataset, 2) == [[4, 5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 16, 17, 18, 19]]


def test_an_endless_iterator_goes_through_the_epochs() -> None:
    assert run(to_dataset(FakeSteps(K)), -1, 3) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


@pytest.mark.parametrize("step", [1, K - 1, K, K + 1, 2 * K - 1, 2 * K])
def test_set_init_step_begins_exactly_there(step: int) -> None:
    steps = FakeSteps(K)
    dataset = to_dataset(steps)
    dataset.set_init_step(step)
    delivered = run(dataset, 3, 3 - step // K)
    assert [s for one in delivered for s in one] == list(range(step, 3 * K))
    assert [len(one) for one in delivered[1:]] == [K] * (2 - step // K)
    assert dataset.get_dataset_size() == K
    assert min(steps.asked) == step  # no skipped step is made


@pytest.mark.parametrize("step", [1, K + 1, 2 * K, 3 * K, 3 * K + 1])
def test_set_init_step_counts_through_a_repeat(step: int) -> None:
    dataset = to_dataset(FakeSteps(K)).repeat(2)
    dataset.set_init_step(step)
    delivered = run(dataset, 2, 2 - step // (2 * K))
    assert [s for one in delivered for s in one] == list(range(step, 4 * K))


def test_an_error_after_the_init_step_is_raised_at_its_step() -> None:
    dataset = to_dataset(FakeSteps(K, {K + 3: SourceError("row 7")}), init_step=2)
    iterator = dataset.create_dict_iterator(num_epochs=2, output_numpy=True)
    assert passes(iterator, 1) == [[2, 3]]
    assert [int(next(iterator)["step"][0]) for _ in range(3)] == [4, 5, 6]
    with pytest.raises(SourceError, match="row 7"):
        next(iterator)


@pytest.mark.parametrize(("epoch", "step"), [(0, 1), (0, K - 1), (2, 0), (2, 3)])
def test_a_resumed_dataset_has_one_short_pass(epoch: int, step: int) -> None:
    dataset = to_dataset(FakeSteps(K), start_epoch=epoch, init_step=step)
    begin = epoch * K
    assert run(dataset, 2) == [list(range(begin + step, begin + K)), list(range(begin + K, begin + 2 * K))]
    assert dataset.get_dataset_size() == K


def test_rows_stay_as_they_were_while_others_arrive() -> None:
    rows = list(to_dataset(FakeSteps(K)).create_tuple_iterator(num_epochs=1, output_numpy=True))
    rows[0][1][:] = -1  # a batch is the reader's own
    assert [int(row[1][0, 0]) for row in rows] == [-1, 1, 2, 3]
    assert [int(row[0][0]) for row in rows] == [0, 1, 2, 3]


def test_the_dataset_can_be_copied_and_shares_its_steps() -> None:
    steps = FakeSteps(K)
    dataset = copy.deepcopy(to_dataset(steps, start_epoch=1))
    assert run(dataset, 1) == [[4, 5, 6, 7]]
    assert steps.asked[:K] == [4, 5, 6, 7]


@pytest.mark.parametrize("chosen", [16, 5])
def test_the_global_prefetch_setting_is_left_alone(chosen: int) -> None:
    import time

    from mindspore.dataset import config

    before = config.get_prefetch_size()
    config.set_prefetch_size(chosen)
    try:
        steps = FakeSteps(100)
        iterator = to_dataset(steps).create_tuple_iterator(num_epochs=1)
        next(iterator)
        time.sleep(0.2)
        assert config.get_prefetch_size() == chosen
        assert len(steps.asked) == (4 if chosen == 16 else 1 + 5 + 1)  # ours is 2 unless the user chose another
    finally:
        config.set_prefetch_size(before)


def test_a_one_pass_source_reads_nothing_after_its_epoch() -> None:
    steps = FakeSteps(K, passes=1)
    assert run(to_dataset(steps), 1) == [[0, 1, 2, 3]]
    assert steps.started == [0]


def test_a_spent_source_delivers_its_epoch_before_it_refuses_the_next() -> None:
    iterator = to_dataset(FakeSteps(K, passes=1)).create_dict_iterator(output_numpy=True)  # endless by default
    assert passes(iterator, 1) == [[0, 1, 2, 3]]
    with pytest.raises(SourceError, match="spent after one pass"):
        passes(iterator, 1)


def test_a_pass_that_is_too_short_is_an_error() -> None:
    steps = FakeSteps(K)
    steps.delivers = K - 1
    iterator = to_dataset(steps).create_dict_iterator(num_epochs=1, output_numpy=True)
    assert [int(next(iterator)["step"][0]) for _ in range(K - 1)] == [0, 1, 2]
    with pytest.raises(SourceError, match="epoch 0 ended after 3 of 4 steps"):
        next(iterator)


def test_a_pass_that_is_too_long_ends_after_its_steps() -> None:
    steps = FakeSteps(K)
    steps.delivers = K + 3
    assert run(to_dataset(steps), 2) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_sampler_reads_its_steps_in_any_order() -> None:
    from mindspore.dataset import SubsetSampler

    dataset = to_dataset(FakeSteps(K))
    dataset.use_sampler(SubsetSampler([3, 1, 2]))
    assert run(dataset, 1) == [[3, 1, 2]]
