"""An error inside a step reaches the user as it was raised, at its step, through every kind of iterator."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from fake_steps import FakeSteps

from ms_prefstream.errors import PrefStreamError, Reason, RowError, SourceError
from ms_prefstream.mindspore.dataset import to_dataset
from ms_prefstream.mindspore.readable import error_in, error_row, recovered, stand_in

# The words with which MindSpore's dictionary iterator kills its own process.
SENTENCE = "data/train.jsonl:17: Out of memory, MemoryError: found 3, expected a string."

ITERATORS: dict[str, Callable[[Any], Any]] = {
    "for row in dataset": iter,
    "dict": lambda d: d.create_dict_iterator(num_epochs=1),
    "dict, numpy": lambda d: d.create_dict_iterator(num_epochs=1, output_numpy=True),
    "tuple": lambda d: d.create_tuple_iterator(num_epochs=1),
    "one column": lambda d: d.create_tuple_iterator(columns=["wide"], num_epochs=1),
    "endless": lambda d: d.create_tuple_iterator(),
    "repeat": lambda d: d.repeat(2).create_dict_iterator(num_epochs=1),
    "take": lambda d: d.take(3).create_dict_iterator(num_epochs=1),
    "project, rename": lambda d: d.project(["wide"]).rename(["wide"], ["x"]).create_dict_iterator(num_epochs=1),
    "map": lambda d: d.map(lambda x: x, ["wide"]).create_dict_iterator(num_epochs=1),
}


@pytest.mark.mindspore
@pytest.mark.parametrize("kind_of_iterator", ITERATORS)
def test_iterators_raise_the_error_itself(kind_of_iterator: str) -> None:
    original = RowError(Reason.BAD_TYPE, SENTENCE)
    rows = ITERATORS[kind_of_iterator](to_dataset(FakeSteps(4, {2: original})))
    delivered: list[Any] = []
    with pytest.raises(RowError, match=r"data/train\.jsonl:17: Out of memory") as caught:
        delivered.extend(rows)
    assert caught.value is original
    assert caught.value.__cause__ is None
    if kind_of_iterator != "map":  # after an operation on rows MindSpore may lose earlier rows
        assert len(delivered) == 2
    with pytest.raises(RowError):  # a failed iterator neither ends silently nor continues after the error
        next(rows)


@pytest.mark.mindspore
def test_errors_of_other_types_arrive_as_well() -> None:
    rows = to_dataset(FakeSteps(4, {0: MemoryError("no room")})).create_dict_iterator(num_epochs=1)
    with pytest.raises(MemoryError, match="no room"):
        next(rows)


@pytest.mark.mindspore
def test_two_iterators_get_their_own_errors() -> None:
    left = iter(to_dataset(FakeSteps(2, {1: SourceError("left")})))
    right = iter(to_dataset(FakeSteps(2, {1: SourceError("right")})))
    next(left), next(right)
    with pytest.raises(SourceError, match="right"):
        next(right)
    with pytest.raises(SourceError, match="left"):
        next(left)


@pytest.mark.mindspore
def test_a_reader_that_is_not_ours_sees_the_sentence() -> None:
    from mindspore.dataset import zip as zip_datasets

    failing = to_dataset(FakeSteps(2, {0: SourceError(SENTENCE)}))
    other = to_dataset(FakeSteps(2)).rename(["step", "wide"], ["s", "w"])
    with pytest.raises(RuntimeError, match=r"StepError: data/train\.jsonl:17"):
        next(iter(zip_datasets((failing, other))))


@pytest.mark.mindspore
def test_mindspores_own_errors_stay_its_own() -> None:
    iterator = to_dataset(FakeSteps(2)).create_dict_iterator(num_epochs=1)
    assert len(list(iterator)) == 2
    with pytest.raises(RuntimeError, match="EOF buffer") as caught:
        next(iterator)
    assert not isinstance(caught.value, PrefStreamError)


def test_the_stand_in_holds_no_word_that_kills() -> None:
    text = str(stand_in(SourceError(SENTENCE)))
    assert "Out of memory" not in text
    assert "MemoryError" not in text
    assert text.startswith("data/train.jsonl:17: out of memory")


def test_an_error_is_found_by_its_number() -> None:
    first, second = SourceError("a"), SourceError("b")
    texts = [f"C++ says\n{stand_in(error)}\nmore" for error in (first, second)]
    assert recovered(texts[0]) is first
    assert recovered(texts[1]) is second
    assert recovered("something else") is None
    assert error_in(error_row(first, 3)) is first
    assert error_in([]) is None


INTERRUPTED = """
import time
import numpy as np
from ms_prefstream.mindspore.dataset import to_dataset

class Slow:
    column_names = ["x"]
    steps_per_epoch = 1000
    def start(self, epoch, step=0):
        for _ in range(step, self.steps_per_epoch):
            time.sleep(0.05)
            yield {"x": np.zeros(1, np.int32)}

try:
    for step, _ in enumerate(to_dataset(Slow()).create_dict_iterator(num_epochs=1)):
        if step == 0:
            print("ready", flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.slow
@pytest.mark.mindspore
def test_ctrl_c_ends_a_loop() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", INTERRUPTED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGINT)
        out, _ = child.communicate(timeout=20)
    assert out == "interrupted\n"
