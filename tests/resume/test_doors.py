"""Three doors lead back into a run: `stream.resume`, `StreamCheckpoint` with it, and `Dataset.set_init_step`."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream.errors import OptionError
from tests.helpers import assert_same_batches, flat, pairs, rows_of, through_mindspore
from tests.kinds import source_of
from tests.training import trainer

pytestmark = pytest.mark.mindspore
K = 5
KINDS = ["list", "generator function"]


def make(source: Any = None, **options: Any) -> mps.Stream:
    settings = {"task": mps.DPO(128), "tokenizer": "bytes", "batching": mps.Bucket(2, multiple_of=64), "window": 2}
    return mps.stream(pairs(10) if source is None else source, **settings | options)


def whole(epochs: int = 3) -> list[list[int]]:
    return [rows for epoch in range(epochs) for rows in rows_of(make().batches(epoch))]


@pytest.mark.parametrize("step", range(2 * K + 1))
def test_resume_gives_a_short_first_pass_and_the_size_stays(step: int) -> None:
    stream = make().resume(make().state(step))
    dataset = stream.dataset()
    assert dataset.get_dataset_size() == stream.steps_per_epoch == K
    iterator = dataset.create_dict_iterator(num_epochs=3 - step // K, output_numpy=True)
    passes = [rows_of(iterator) for _ in range(3 - step // K)]
    assert len(passes[0]) == K - step % K
    assert [len(one) for one in passes[1:]] == [K] * (2 - step // K)
    assert flat(passes) == whole()[step:]


@pytest.mark.parametrize("step", [1, K, K + 2])
def test_an_endless_iterator_goes_on_as_well(step: int) -> None:
    """The usual loop says nothing of epochs; MindSpore cannot count to a step in endlessly many."""
    stream = make().resume(make().state(step))
    endless = stream.dataset().create_dict_iterator(output_numpy=True)
    passes = [rows_of(endless) for _ in range(3 - step // K)]
    assert flat(passes) == whole()[step:]
    fresh = make().dataset()
    fresh.set_init_step(step)
    first = next(fresh.create_tuple_iterator(output_numpy=True, num_epochs=-1))
    assert rows_of([dict(zip(stream.column_names, first, strict=True))]) == whole()[step : step + 1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", range(2 * K))
def test_set_init_step_on_a_fresh_stream(kind: str, step: int, tmp_path: pathlib.Path) -> None:
    """What MindFormers' resume calls: an absolute step, with the epochs of the whole run."""
    fresh = make(source_of(kind, tmp_path, pairs(10)))
    expected = [batch for epoch in range(2) for batch in fresh.batches(epoch)]
    dataset = fresh.dataset()
    dataset.set_init_step(step)
    assert dataset.get_dataset_size() == K
    iterator = dataset.create_dict_iterator(num_epochs=2, output_numpy=True)
    delivered = [batch for _ in range(2 - step // K) for batch in iterator]
    assert_same_batches(delivered, expected[step:])
    assert fresh.start_step == step


@pytest.mark.parametrize("step", [1, K - 1, K, K + 2])
def test_set_init_step_with_train_and_initial_epoch(step: int) -> None:
    stream, training = make(), trainer()
    dataset = stream.dataset()
    dataset.set_init_step(step)
    training.model.train(2, dataset, callbacks=training.recorder, dataset_sink_mode=False, initial_epoch=step // K)
    assert training.seen == whole(2)[step:]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [1, K, K + 2, 2 * K, 3 * K - 1])
def test_passes_that_are_skipped_whole_are_empty_at_the_end(kind: str, step: int, tmp_path: pathlib.Path) -> None:
    """MindSpore's own iterators raise there; a trainer that knows nothing of the skipped steps asks for all passes."""
    dataset = make(source_of(kind, tmp_path, pairs(10))).dataset()
    dataset.set_init_step(step)
    iterator = dataset.create_tuple_iterator(num_epochs=3, output_numpy=True)
    passes = [len(list(iterator)) for _ in range(3)]
    assert passes == [K - step % K] + [K] * (2 - step // K) + [0] * (step // K)
    with pytest.raises(RuntimeError, match="EOF buffer"):  # a fourth pass was not asked for in the first place
        next(iterator)


@pytest.mark.parametrize("step", [1, K, K + 2, 2 * K - 1])
def test_set_init_step_with_train_from_the_first_epoch(step: int) -> None:
    training, dataset = trainer(), make().dataset()
    dataset.set_init_step(step)
    training.model.train(2, dataset, callbacks=training.recorder, dataset_sink_mode=False)
    assert training.seen == whole(2)[step:]


@pytest.mark.parametrize(("step", "epochs"), [(K, 1), (2 * K, 2), (2 * K + 1, 2)])
def test_skipping_everything_is_refused(step: int, epochs: int) -> None:
    dataset = make().dataset()
    dataset.set_init_step(step)
    with pytest.raises(OptionError, match=rf"{step} steps are to be skipped, but {epochs} times {K} s") as refused:
        dataset.create_dict_iterator(num_epochs=epochs)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("step", [0, 1, K, K + 2])
def test_both_doors_at_once_are_refused(step: int) -> None:
    stream = make().resume(make().state(step))
    with pytest.raises(OptionError, match=r"set_init_step\(3\) on a dataset whose stream was resumed already"):
        stream.dataset().set_init_step(3)


def test_a_copy_of_the_dataset_knows_that_the_stream_was_resumed() -> None:
    import copy

    dataset = copy.deepcopy(make().resume(make().state(3)).dataset())
    with pytest.raises(OptionError, match="not both"):
        dataset.set_init_step(3)
    assert rows_of(through_mindspore(dataset)) == whole()[3:K]


def test_a_resumed_stream_goes_on_with_a_later_epoch_but_never_an_earlier_one() -> None:
    stream = make().resume(make().state(K + 2))
    with pytest.raises(OptionError, match=r"start_epoch is 0, but the stream was resumed in epoch 1"):
        stream.dataset(start_epoch=0)
    assert rows_of(through_mindspore(stream.dataset(start_epoch=1))) == whole()[K + 2 : 2 * K]
    assert rows_of(through_mindspore(stream.dataset(start_epoch=2))) == whole()[2 * K :]


def test_without_mindspore_a_resumed_stream_begins_at_its_step() -> None:
    stream = make().resume(make().state(K + 2))
    assert rows_of(stream.batches()) == whole()[K + 2 : 2 * K]
    assert rows_of(stream.batches(1)) == whole()[K + 2 : 2 * K]  # the resumed epoch goes on by its number too
    assert rows_of(stream.batches(1, 0)) == whole()[K : 2 * K]
    assert rows_of(stream.batches(1, 3)) == whole()[K + 3 : 2 * K]
    assert rows_of(stream.batches(2)) == whole()[2 * K :]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [2, K - 1, K, K + 3])
def test_an_iterator_that_is_made_twice_begins_twice(kind: str, step: int, tmp_path: pathlib.Path) -> None:
    source = source_of(kind, tmp_path, pairs(10))
    dataset = make(source).resume(make(source).state(step)).dataset()
    first, second = (rows_of(through_mindspore(dataset)) for _ in range(2))
    assert first == second
    assert len(first) == K - step % K
