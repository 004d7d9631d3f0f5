"""A source that can save and restore its own position is asked to, instead of giving rows again that are skipped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

import ms_prefstream as mps
from tests.helpers import Row, assert_same_batches, pairs

ROWS = pairs(41)
TASK = mps.DPO(96)


class Stateful:
    """Rows with a position of its own, as data loaders have it; counts what it produces."""

    def __init__(self, rows: list[Row], extra: Any = None) -> None:
        self.rows, self.extra = rows, extra
        self.at = self.produced = self.saved = 0
        self.loaded: list[int] = []
        self.restored = False

    def __iter__(self) -> Iterator[Row]:
        if not self.restored:
            self.at = 0
        self.restored = False
        while self.at < len(self.rows):
            self.at += 1
            self.produced += 1
            yield self.rows[self.at - 1]

    def state_dict(self) -> dict[str, Any]:
        self.saved += 1
        return {"at": self.at, "extra": self.extra}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at, self.restored = state["at"], True
        self.loaded.append(self.at)


def stream_of(source: Any, **options: Any) -> mps.Stream:
    settings: dict[str, Any] = {"batching": mps.Bucket(2, multiple_of=16), "window": 3, "seed": 1}
    return mps.stream(source, task=TASK, tokenizer="bytes", template=None, **settings | options)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("step", [1, 5, 6, 13, 19, 20, 27, 39])
def test_it_goes_on_at_the_window(step: int, workers: int) -> None:
    whole = stream_of(Stateful(ROWS))
    steps = whole.steps_per_epoch
    epochs = [list(whole.batches(epoch)) for epoch in range(2)]
    run = stream_of(Stateful(ROWS), workers=workers)
    for number, _ in enumerate((batch for epoch in range(2) for batch in run.batches(epoch)), start=1):
        if number == step:
            break
    state = json.loads(json.dumps(run.state(step)))
    source = Stateful(ROWS)
    fresh = stream_of(source, workers=workers).resume(state)
    counted = source.produced  # the rows were counted once, since steps_per_epoch was not given
    epoch, inside = divmod(step, steps)
    tail = list(fresh.batches())
    assert_same_batches(tail, epochs[epoch][inside:])
    window = inside // 3 * 6
    # A step that begins a window is saved before anybody has read that window: then the one before is known.
    known = source.loaded[0] if source.loaded else 0
    assert known in (window, window - 6) or window == 0
    assert source.produced - counted <= len(ROWS) - known
    if epoch == 0:
        assert_same_batches(list(fresh.batches(1)), epochs[1])


def test_a_resumed_run_can_be_saved_in_its_first_window() -> None:
    whole = list(stream_of(Stateful(ROWS)).batches())
    run = stream_of(Stateful(ROWS))
    for _, _ in zip(range(10), run.batches(), strict=False):
        pass
    second = stream_of(Stateful(ROWS)).resume(run.state(10))
    next(second.batches())
    source = Stateful(ROWS)
    third = stream_of(source).resume(second.state(11))
    assert_same_batches(list(third.batches()), whole[11:])
    assert source.loaded == [18]


def test_a_state_that_json_cannot_hold_is_left_out() -> None:
    whole = list(stream_of(Stateful(ROWS)).batches())
    run = stream_of(Stateful(ROWS, extra={1, 2}))
    for _, _ in zip(range(10), run.batches(), strict=False):
        pass
    state = run.state(10)
    assert "source" not in state
    source = Stateful(ROWS)
    assert_same_batches(list(stream_of(source).resume(state).batches()), whole[10:])
    assert not source.loaded


def test_huggingface() -> None:
    datasets = pytest.importorskip("datasets")

    def made() -> Any:
        return datasets.Dataset.from_list(ROWS).to_iterable_dataset(num_shards=3)

    whole = list(stream_of(made()).batches())
    run = stream_of(made())
    for _, _ in zip(range(10), run.batches(), strict=False):
        pass
    state = json.loads(json.dumps(run.state(10)))
    assert state["source"]["first"] == 18
    assert_same_batches(list(stream_of(made()).resume(state).batches()), whole[10:])


@pytest.mark.mindspore
def test_through_mindspore() -> None:
    run = stream_of(Stateful(ROWS))
    whole = [batch for epoch in range(2) for batch in run.batches(epoch)]
    run = stream_of(Stateful(ROWS))
    rows = run.dataset().create_dict_iterator(num_epochs=2, output_numpy=True)
    for _, _ in zip(range(11), rows, strict=False):
        pass
    source = Stateful(ROWS)
    fresh = stream_of(source).resume(run.state(11))
    found = list(fresh.dataset().create_dict_iterator(num_epochs=1, output_numpy=True))
    assert_same_batches(found, whole[11 : fresh.steps_per_epoch])
    assert 18 in source.loaded
