"""Graph mode compiles once for each shape: how often it does in an epoch is what the batching rule promises.

Counted where MindSpore decides it: `_CellGraphExecutor.compile` returns ``(phase, True)`` when it has handed a graph to
the compiler, and ``(phase, False)`` when that phase was compiled before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import ms_prefstream as mps
from tests.helpers import pairs

pytestmark = pytest.mark.mindspore
ROWS = 90


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The phases that were compiled, in order, in graph mode."""
    import mindspore as ms

    try:
        from mindspore.graph import api
    except ImportError:  # before 2.9
        from mindspore.common import api

    before = ms.get_context("mode")
    ms.set_context(mode=ms.GRAPH_MODE)
    compile_cell, phases = api._CellGraphExecutor.compile, []

    def counted(self: Any, obj: Any, *args: Any, **options: Any) -> Any:
        phase, anew = compile_cell(self, obj, *args, **options)
        if anew:
            phases.append(phase)
        return phase, anew

    monkeypatch.setattr(api._CellGraphExecutor, "compile", counted)
    yield phases
    ms.set_context(mode=before)


def train(stream: mps.Stream, epochs: int, dynamic: bool = False) -> set[tuple[int, ...]]:
    """Trains a small network on all columns; the shapes of input_ids that it was given."""
    import mindspore as ms
    from mindspore import nn, ops

    class Network(nn.Cell):
        """The mean weight of the tokens under the loss mask."""

        def __init__(self) -> None:
            super().__init__()
            self.table = ms.Parameter(ms.Tensor(np.ones((300, 1)), ms.float32), name="table")

        def construct(self, input_ids: Any, labels: Any, *others: Any) -> Any:
            chosen = (labels >= 0).astype(ms.float32)
            return (ops.gather(self.table, input_ids, 0).squeeze(-1) * chosen).sum() / chosen.sum()

    class Shapes(ms.train.Callback):
        def on_train_step_end(self, run_context: Any) -> None:
            seen.add(run_context.original_args().train_dataset_element[0].shape)

    seen: set[tuple[int, ...]] = set()
    network = Network()
    if dynamic:
        network.set_inputs(*[ms.Tensor(shape=[4, None], dtype=ms.int32) for _ in stream.column_names])
    model = ms.train.Model(network, loss_fn=None, optimizer=nn.SGD(network.trainable_params(), 0.1))
    model.train(epochs, stream.dataset(), callbacks=[Shapes()], dataset_sink_mode=False)
    return seen


def make(batching: Any, **options: Any) -> mps.Stream:
    task = mps.DPO(128, layout="paired" if isinstance(batching, mps.Pack) else "concat")
    return mps.stream(pairs(ROWS), task=task, tokenizer="bytes", batching=batching, window=4, **options)


def test_the_counter_counts(compiled: list[str]) -> None:
    """Many shapes, each of them compiled once: what the other tests count is what the compiler does."""
    seen = train(make(mps.Bucket(2, multiple_of=4)), epochs=2)
    assert len(seen) > 8
    assert len(compiled) == len(set(compiled)) == len(seen)


def test_four_shapes_compile_at_most_four_times(compiled: list[str]) -> None:
    stream = make(mps.Bucket(2, max_shapes=4, round_to=4))
    seen = train(stream, epochs=2)
    assert 1 < len(seen) <= 4
    assert len(compiled) == len(seen)
    assert seen <= set(stream.shapes)


def test_a_width_that_set_inputs_leaves_open_compiles_once(compiled: list[str]) -> None:
    seen = train(make(mps.Bucket(2, multiple_of=4)), epochs=2, dynamic=True)
    assert len(seen) > 8
    assert len(compiled) == 1


@pytest.mark.parametrize(
    "options", [{"batching": mps.Pad(2)}, {"batching": mps.Pack(256), "steps_per_epoch": 12}], ids=["pad", "pack"]
)
def test_one_shape_compiles_once(options: dict[str, Any], compiled: list[str]) -> None:
    stream = make(**options)
    assert train(stream, epochs=2) == set(stream.shapes)
    assert len(compiled) == 1
