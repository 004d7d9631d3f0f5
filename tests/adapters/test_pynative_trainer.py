"""The PyNative trainers of MindFormers 2.0 and 2.1 with a stream: their sequence of calls, by a stand-in.

Both need hyper-parallel, which no index has. `Trainer` makes the calls that theirs make, in their order: the dataset
is created, a checkpoint may be loaded, one iterator is created, and batches are taken from it until the last step.
"""

from __future__ import annotations

import json
import pathlib
import sys
import types
from typing import Any

import numpy as np
import pytest

import ms_prefstream as mps
from ms_prefstream.adapters import pynative_trainer, trainer_hooks
from ms_prefstream.errors import OptionError, StateError
from tests.helpers import pairs, rows_in

pytestmark = pytest.mark.mindspore

BATCH, COUNT = 2, 23
K = COUNT // BATCH


class CheckpointCallback:
    """Saves the trainer's numbers into ``iteration_00000003/common.json``."""

    def __init__(self, save_path: pathlib.Path) -> None:
        self.save_path = str(save_path)

    def _save_checkpoint(self, args: Any, state: Any, **kwargs: Any) -> None:
        folder = pathlib.Path(_iteration(self.save_path, state.global_step))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "common.json").write_text(json.dumps(vars(state)))


class Trainer:
    """The part of the trainer that touches a dataset.

    Args:
        release: ``2.0``, whose rows are optimizer steps, or ``2.1``, whose rows are micro-batches.
        ramp: Numbers of micro-batches of the first optimizer steps; 1 after them.
        layout: Ranks, and how many share a model: (world, tensor parallel).
    """

    def __init__(
        self,
        dataset: Any,
        release: str,
        *,
        steps: int,
        local: int = BATCH,
        ramp: tuple[int, ...] = (),
        layout: tuple[int, int] = (1, 1),
        broadcasts: bool = False,
        **section: Any,
    ) -> None:
        self.world_size, tensor = layout
        shards = self.world_size // tensor
        parallel = types.SimpleNamespace(
            data_parallel=shards, tensor_parallel=tensor, pipeline_parallel=1, context_parallel=1
        )
        training = types.SimpleNamespace(local_batch_size=local, steps=steps)
        checkpoint = types.SimpleNamespace(no_load_optim=False)
        self.config = types.SimpleNamespace(parallelism=parallel, training=training, checkpoint=checkpoint)
        self.release, self.ramp = release, ramp
        self.enable_data_broadcast, self.data_broadcast_src_rank = broadcasts, 0
        self.num_accumulation_steps = self._micro_batches(0)
        self.state = types.SimpleNamespace(global_step=0)
        if release == "2.1":
            self._base_units, self._resumed = shards * local, False
            self.state.consumed_samples = 0
            self.state.num_accumulation_steps = self.num_accumulation_steps
            self.state.global_batch_size = self.num_accumulation_steps * self._base_units
        self.train_dataset = self._create_dataset(dataset, types.SimpleNamespace(**section))
        size = self.train_dataset.get_dataset_size()
        most = steps * max(1, *ramp, 1)
        self.train_num_epochs = -(-most // size) + 1 if release == "2.1" else max(steps // size, 1)

    def _micro_batches(self, step: int) -> int:
        return self.ramp[step] if step < len(self.ramp) else 1

    def _create_dataset(self, dataset: Any, dataset_config: Any, use_data_broadcast: bool = False) -> Any:
        return dataset

    def _create_dataset_iterator(self, dataset: Any) -> Any:
        return dataset.create_dict_iterator(output_numpy=False, num_epochs=self.train_num_epochs)

    def _load_checkpoint(self, checkpoint_path: str, model: Any, optimizer: Any = None) -> None:
        saved = json.loads((pathlib.Path(get_checkpoint_path(checkpoint_path)) / "common.json").read_text())
        self.state.global_step = saved["global_step"]
        skipped = saved["global_step"]
        if self.release == "2.1":
            self._resumed, self.state.consumed_samples = True, saved["consumed_samples"]
            skipped = saved["consumed_samples"] // self._base_units
        self.train_dataset.set_init_step(skipped)

    def _next(self) -> Any:
        try:
            return next(self._iterator)
        except StopIteration:
            self._iterator = self._create_dataset_iterator(self.train_dataset)
            return next(self._iterator)

    def train(self, saver: CheckpointCallback | None = None, checkpoint: str | None = None) -> list[list[int]]:
        """The rows of each batch that a step took."""
        if checkpoint:
            self._load_checkpoint(checkpoint, None)
        taken = []
        self._iterator = self._create_dataset_iterator(self.train_dataset)
        while self.state.global_step < self.config.training.steps:
            times = 1
            if self.release == "2.1":
                times = self._micro_batches(self.state.global_step)
                self.state.num_accumulation_steps = times
                self.state.global_batch_size = times * self._base_units
            for _ in range(times):
                batch = {name: column.asnumpy() for name, column in self._next().items()}
                taken.append(rows_in(batch))
            if self.release == "2.1":
                self.state.consumed_samples += self.state.global_batch_size
            self.state.global_step += 1
            if saver is not None:
                saver._save_checkpoint(self.config, self.state, model=None, train_dataset=self.train_dataset)
        return taken


def _iteration(root: str, step: int) -> str:
    return f"{root}/iteration_{step:08d}"


def get_checkpoint_path(path: str) -> str:
    return path


@pytest.fixture(autouse=True)
def hooked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the stand-ins in the places of MindFormers' modules, and wraps them as an import would."""
    utils = types.ModuleType("mindformers.checkpoint.utils")
    utils.__dict__["get_checkpoint_iter_dir"] = _iteration
    monkeypatch.setitem(sys.modules, utils.__name__, utils)
    for name, kind in ((trainer_hooks._PYNATIVE, Trainer), (trainer_hooks._SAVER, CheckpointCallback)):
        module = types.ModuleType(name)
        module.__dict__[kind.__name__] = kind
        monkeypatch.setitem(sys.modules, name, module)
        for hook in trainer_hooks.HOOKS:  # put back after the test
            if hook.module == name:
                monkeypatch.setattr(kind, hook.method, getattr(kind, hook.method))
        trainer_hooks._wrap_methods(name)


def stream(seed: int = 3, **options: Any) -> mps.Stream:
    return mps.stream(
        pairs(COUNT), task=mps.DPO(160), tokenizer="bytes", seed=seed,
        **({"batching": mps.Pad(BATCH), "num_shards": 1, "shard_id": 0} | options),
    )  # fmt: skip


def delivered(steps: int, **options: Any) -> list[list[int]]:
    """The rows of the first batches of a stream, over its epochs."""
    made, epochs = stream(**options), -(-steps // K)
    return [rows_in(batch) for epoch in range(epochs) for batch in made.batches(epoch)][:steps]


CASES = {"2.0": {"steps": 2 * K + 3}, "2.1": {"steps": 15, "ramp": (3, 3, 2, 4, 1, 2)}}


@pytest.mark.parametrize("release", CASES)
def test_a_resumed_run_takes_the_rows_that_are_left(release: str, tmp_path: pathlib.Path) -> None:
    options: dict[str, Any] = CASES[release]
    ramp = options.get("ramp", ())
    batches = sum(ramp) + options["steps"] - len(ramp)
    assert batches > 2 * K - 2  # more than one epoch
    whole = Trainer(stream().dataset(), release, **options).train(CheckpointCallback(tmp_path))
    assert whole == delivered(batches)
    for step in range(1, options["steps"]):
        done = sum(ramp[:step]) + max(0, step - len(ramp))
        checkpoint = _iteration(str(tmp_path), step)
        state = json.loads((pathlib.Path(checkpoint) / "stream_state.json").read_text())
        assert (state["epoch"], state["step"]) == (done // K, done)
        resumed = Trainer(stream().dataset(), release, **options)
        assert resumed.train(CheckpointCallback(tmp_path / "again"), checkpoint) == whole[done:], step
    again = (tmp_path / "again" / f"iteration_{options['steps']:08d}" / "stream_state.json").read_bytes()
    assert again == (tmp_path / f"iteration_{options['steps']:08d}" / "stream_state.json").read_bytes()


def test_a_run_that_began_in_the_middle_saves_steps_of_the_stream(tmp_path: pathlib.Path) -> None:
    first = stream()
    trainer = Trainer(first.resume(first.state(4)).dataset(), "2.1", steps=3)
    assert trainer.train(CheckpointCallback(tmp_path)) == delivered(7)[4:]
    assert json.loads((tmp_path / "iteration_00000003" / "stream_state.json").read_text())["step"] == 7


def test_other_rows_and_other_steps_are_refused(tmp_path: pathlib.Path) -> None:
    Trainer(stream().dataset(), "2.1", steps=4).train(CheckpointCallback(tmp_path))
    checkpoint = _iteration(str(tmp_path), 3)
    with pytest.raises(StateError, match="seed"):
        Trainer(stream(seed=4).dataset(), "2.1", steps=4).train(checkpoint=checkpoint)
    common = json.loads((pathlib.Path(checkpoint) / "common.json").read_text())
    (pathlib.Path(checkpoint) / "common.json").write_text(json.dumps(common | {"consumed_samples": 4 * BATCH}))
    with pytest.raises(StateError, match="finished step 3 of the data, but this one would resume after step 4"):
        Trainer(stream().dataset(), "2.1", steps=4).train(checkpoint=checkpoint)
    weights_alone = Trainer(stream().dataset(), "2.1", steps=4)
    weights_alone.config.checkpoint.no_load_optim = True
    weights_alone.train(checkpoint=checkpoint)
    (pathlib.Path(checkpoint) / "stream_state.json").unlink()  # nothing to compare with
    Trainer(stream().dataset(), "2.1", steps=4).train(checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("release", "options", "said"),
    [
        (
            "2.1",
            {"local": 4},
            "batches of 2 rows, but a row of the dataset has 4 rows for this trainer .training.local_batch_size..",
        ),
        ("2.0", {"ramp": (4,)}, "has 8 rows for this trainer .training.local_batch_size times 4 accumulation"),
        ("2.1", {"layout": (4, 2)}, "rank 0 of 1, but the parallel layout asks for shard 1 of 2"),
        ("2.1", {"layout": (2, 1), "balance_enabled": True}, "balance_enabled is True"),
    ],
)
def test_what_does_not_fit_is_refused(
    release: str, options: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pynative_trainer, "_rank", lambda: 3)
    with pytest.raises(OptionError, match=said):
        Trainer(stream().dataset(), release, steps=2, **options)


def test_other_datasets_are_left_alone() -> None:
    dataset = types.SimpleNamespace(get_dataset_size=lambda: 5)
    assert Trainer(dataset, "2.1", steps=2, local=7, balance_enabled=True).train_dataset is dataset


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_sending_rank_of_a_group_reads(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pynative_trainer, "_rank", lambda: rank)
    trainer = Trainer(stream().dataset(), "2.1", steps=2, layout=(2, 2), broadcasts=True)
    taken = [rows_in({name: np.asarray(column) for name, column in batch.items()})
             for batch in trainer._create_dataset_iterator(trainer.train_dataset)]  # fmt: skip
    assert taken[:K] == (delivered(K) if rank == 0 else [])
