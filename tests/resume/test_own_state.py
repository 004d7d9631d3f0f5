"""A source that can save and restore its own position is asked to, instead of giving rows again that are skipped."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ms_prefstream as mps
from tests.helpers import Row, assert_same_batches, pairs, rows_of

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
    usual: dict[str, Any] = {"batching": mps.Bucket(2, multiple_of=16), "window": 3, "seed": 1}
    return mps.stream(source, task=TASK, tokenizer="bytes", template=None, **usual | options)


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


class Lying:
    """Rows whose stated position is wrong; it holds no other state, or goes on where it was left, as `keeps` says."""

    def __init__(self, rows: list[Row], lie: Callable[[int], Any], keeps: bool) -> None:
        self.rows, self.lie, self.keeps = rows, lie, keeps
        self.at = 0

    def __iter__(self) -> Iterator[Row]:
        begin, self.at = self.at, 0 if not self.keeps else self.at
        for place in range(begin, len(self.rows)):
            self.at = place + 1
            yield self.rows[place]
        self.at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.lie(self.at)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


LIES: dict[str, Callable[[int], Any]] = {
    "true": lambda at: at,
    "behind": lambda at: max(0, at - 3),
    "ahead": lambda at: at + 5,
    "far ahead": lambda at: at + 1000,
    "random": lambda at: random.Random(at * 7 + 1).randrange(60),
    "constant": lambda at: 4,
    "wrong type": lambda at: "seven",
    "none": lambda at: None,
}


@pytest.mark.parametrize("lie", LIES)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    step=st.integers(1, 19),
    batch=st.integers(1, 2),
    window=st.integers(1, 4),
    repeated=st.booleans(),
    keeps=st.booleans(),
    shuffle=st.booleans(),
)
def test_a_position_that_is_wrong_is_not_used(
    lie: str, step: int, batch: int, window: int, repeated: bool, keeps: bool, shuffle: bool
) -> None:
    rows = [row for row in pairs(20) for _ in range(2)] if repeated else pairs(40)
    options = {"batching": mps.Pad(batch), "window": window, "steps_per_epoch": 20, "shuffle": shuffle}
    run = stream_of(Lying(rows, LIES[lie], keeps), **options)
    whole = list(run.batches())
    run = stream_of(Lying(rows, LIES[lie], keeps), **options)
    for _ in zip(range(step), run.batches(), strict=False):
        pass
    state = json.loads(json.dumps(run.state(step)))
    resumed = stream_of(Lying(rows, LIES[lie], keeps), **options).resume(state)
    assert json.dumps(resumed.state(step)) == json.dumps(state)
    assert_same_batches(list(resumed.batches()), whole[step:])


@pytest.mark.parametrize("view", ["map", "filter", "batched map", "shuffled"])
def test_huggingface_behind_a_function(view: str, caplog: pytest.LogCaptureFixture) -> None:
    """Rows that Arrow hands over in blocks of a thousand make `IterableDataset` state a position far ahead."""
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt_ids": [*b"#%d#" % row], "chosen_ids": [120], "rejected_ids": [121]} for row in range(2500)]

    def made() -> Any:
        dataset = datasets.Dataset.from_list(rows).to_iterable_dataset()
        if view == "shuffled":
            return dataset.shuffle(seed=1, buffer_size=50)
        if view == "batched map":
            return dataset.map(lambda found: found, batched=True, batch_size=100)
        return dataset.map(lambda row: row) if view == "map" else dataset.filter(lambda row: True)

    def stream() -> mps.Stream:
        options: dict[str, Any] = {"tokenizer": None, "pad_token_id": 259, "steps_per_epoch": 600, "shuffle": False}
        return mps.stream(made(), task=TASK, batching=mps.Pad(4), window=5, **options)

    run = stream()
    for _ in zip(range(50), run.batches(), strict=False):
        pass
    state = json.loads(json.dumps(run.state(50)))
    assert state["source"]["digest"]
    resumed = stream().resume(state)
    found, expected = (list(itertools.islice(batches, 5)) for batches in (resumed.batches(), stream().batches(0, 50)))
    assert_same_batches(found, expected)
    if view != "shuffled":
        assert rows_of(found)[0] == [200, 201, 202, 203]
    said = [one for one in caplog.records if one.name.startswith("ms_prefstream") and one.levelname == "WARNING"]
    assert len(said) <= 1
    assert all("resumes by skipping" in one.getMessage() for one in said)


def test_the_position_of_an_earlier_version_is_not_believed(caplog: pytest.LogCaptureFixture) -> None:
    whole = list(stream_of(Stateful(ROWS)).batches())
    run = stream_of(Stateful(ROWS))
    for _ in zip(range(10), run.batches(), strict=False):
        pass
    state = run.state(10)
    del state["source"]["rows"], state["source"]["digest"]
    source = Stateful(ROWS)
    assert_same_batches(list(stream_of(source).resume(state).batches()), whole[10:])
    assert not source.loaded
    assert caplog.text.count("earlier version") == 1
