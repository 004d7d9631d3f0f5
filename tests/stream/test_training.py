"""A stream inside MindSpore: every way to iterate, `Model.train` and `Model.fit`, and how an error ends a run."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream.errors import NoUsableRowsError, PrefStreamError, RowError
from tests.helpers import json_lines, pairs, rows_in, rows_of, through_mindspore
from tests.kinds import source_of
from tests.training import trainer

pytestmark = pytest.mark.mindspore
K = 5
BROKEN = {"prompt": "#6# Out of memory, MemoryError", "chosen": 3, "rejected": "no"}  # words that kill an iterator


def make(source: Any = None, **options: Any) -> mps.Stream:
    settings = {"task": mps.DPO(128), "tokenizer": "bytes", "batching": mps.Bucket(2, multiple_of=64), "window": 2}
    return mps.stream(pairs(10) if source is None else source, **settings | options)


def epochs(stream: mps.Stream, *which: int) -> list[list[int]]:
    return [rows for epoch in which for rows in rows_of(stream.batches(epoch))]


KINDS = ["json lines", "generator function"]


@pytest.mark.parametrize("kind", KINDS)
def test_train_sees_every_step_of_every_epoch(kind: str, tmp_path: pathlib.Path) -> None:
    stream = make(source_of(kind, tmp_path, pairs(10)))
    training = trainer()
    training.model.train(2, stream.dataset(), callbacks=training.recorder, dataset_sink_mode=False)
    assert training.seen == epochs(stream, 0, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_two_successive_calls_of_train_with_start_epoch(kind: str, tmp_path: pathlib.Path) -> None:
    stream = make(source_of(kind, tmp_path, pairs(10)))
    training = trainer()
    for epoch in range(2):
        dataset = stream.dataset(start_epoch=epoch)
        training.model.train(1, dataset, callbacks=training.recorder, dataset_sink_mode=False)
    assert training.seen == epochs(stream, 0, 1)


def test_a_generator_is_enough_for_an_epoch() -> None:
    """Nothing of MindSpore's own preparations takes rows from a source that can be read only once."""
    training = trainer()
    stream = make((row for row in pairs(10)), steps_per_epoch=K)
    training.model.train(1, stream.dataset(), callbacks=training.recorder, dataset_sink_mode=False)
    assert training.seen == epochs(make(lambda: iter(pairs(10))), 0)


def test_fit_with_validation() -> None:
    stream, validation = make(), make(pairs(4), shuffle=False)
    training = trainer()
    training.model.fit(
        2,
        stream.dataset(),
        validation.dataset(),
        callbacks=training.recorder,
        dataset_sink_mode=False,
        valid_dataset_sink_mode=False,
    )
    assert training.seen == epochs(stream, 0, 1)
    assert training.evaluated == [[0, 1], [2, 3]] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_repeat_and_an_endless_iterator_go_through_the_epochs(kind: str, tmp_path: pathlib.Path) -> None:
    stream = make(source_of(kind, tmp_path, pairs(10)))
    expected = epochs(stream, 0, 1, 2)
    assert rows_of(through_mindspore(stream.dataset().repeat(3))) == expected
    endless = stream.dataset().create_dict_iterator(num_epochs=-1, output_numpy=True)
    assert [rows_in(batch) for _ in range(3) for batch in endless] == expected


@pytest.mark.parametrize("kind", KINDS)
def test_two_iterators_at_once_do_not_disturb_each_other(kind: str, tmp_path: pathlib.Path) -> None:
    stream = make(source_of(kind, tmp_path, pairs(10)))
    dataset, expected = stream.dataset(), epochs(stream, 0, 1)
    left, right = (through_mindspore(dataset, 2) for _ in range(2))
    seen: list[list[list[int]]] = [[], []]
    for first, second in zip(left, right, strict=True):
        seen[0].append(rows_in(first))
        seen[1].append(rows_in(second))
    assert seen == [expected, expected]


def test_a_functional_loop_trains() -> None:
    import mindspore as ms

    training, stream = trainer(), make()
    weights = ms.ParameterTuple(training.network.trainable_params())
    step = ms.value_and_grad(lambda *batch: training.network(*batch), None, weights)
    optimizer = ms.nn.SGD(weights, 0.01)
    seen = []
    iterator = stream.dataset().create_tuple_iterator(num_epochs=2)
    for _ in range(2):
        for batch in iterator:
            _, gradients = step(*batch)
            optimizer(gradients)
            seen.append(rows_in({"chosen_input_ids": batch[0].asnumpy()}))
    assert seen == epochs(stream, 0, 1)


DOORS: dict[str, Callable[[Any], Any]] = {
    "dict iterator": lambda dataset: list(dataset.create_dict_iterator(num_epochs=1)),
    "tuple iterator": lambda dataset: list(dataset.create_tuple_iterator(num_epochs=1)),
    "Model.train": lambda dataset: trainer().model.train(1, dataset, dataset_sink_mode=False),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", ["json lines", "gz"])
def test_a_bad_row_is_named_through_every_door(kind: str, door: str, tmp_path: pathlib.Path) -> None:
    rows = pairs(10)
    rows[6] = BROKEN
    source = source_of(kind, tmp_path, rows)
    with pytest.raises(RowError) as caught:
        DOORS[door](make(source).dataset())
    sentence = str(caught.value)
    assert sentence.startswith(f"{source}:7: field 'chosen' is int 3")
    assert "\n" not in sentence


def test_the_steps_in_front_of_a_bad_row_are_trained() -> None:
    rows = pairs(10)
    rows[6] = BROKEN
    training = trainer()
    stream = make(rows, shuffle=False)
    with pytest.raises(RowError, match="row 6 of list"):
        training.model.train(1, stream.dataset(), callbacks=training.recorder, dataset_sink_mode=False)
    assert training.seen == [[0, 1], [2, 3], [4, 5]]


def test_other_errors_of_rows_and_files_arrive_as_they_are(tmp_path: pathlib.Path) -> None:
    path = json_lines(tmp_path / "rows.jsonl", pairs(10))
    stream = make(path)
    dataset = stream.dataset()
    json_lines(path, pairs(11))
    with pytest.raises(PrefStreamError, match=r"rows\.jsonl"):
        list(through_mindspore(dataset))
    same = [{"prompt": "x", "chosen": "same", "rejected": "same"}] * 10
    with pytest.raises(NoUsableRowsError, match="identical 4"):
        list(through_mindspore(make(same).dataset()))


def test_dropped_rows_are_counted_once_although_mindspore_reads_ahead(tmp_path: pathlib.Path) -> None:
    rows = pairs(10)
    rows[6] = BROKEN
    path = tmp_path / "bad.jsonl"
    stream = make(rows, on_bad_row="drop", quarantine=path, window=64)
    assert len(list(through_mindspore(stream.dataset(), 2))) == 2 * K
    assert stream.report.dropped == {"bad_type": 1}
    assert len(path.read_text().splitlines()) == 1
