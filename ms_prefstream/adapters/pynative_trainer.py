"""A stream in MindFormers' trainer for PyNative mode: rows, shards, epochs, and states beside its checkpoints.

What a row of the dataset is differs between the releases:

    1.9, 2.0   an optimizer step          the trainer counts global_step
    2.1        a micro-batch of one       the trainer counts consumed_samples; `rampup_batch_size` changes how many
               rank (local_batch_size)    micro-batches make a step, and not their rows

So a stream delivers the same rows in the same order whatever the ramp, and its step is a number of micro-batches.
2.0 and 2.1 were followed in their source. Their trainers import hyper-parallel, which no index has.
"""

from __future__ import annotations

import itertools
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from ms_prefstream.adapters.run_states import saved_step, write_beside
from ms_prefstream.errors import OptionError, StateError
from ms_prefstream.mindspore.checkpoint import LATEST
from ms_prefstream.mindspore.generator import first_step, gives_steps

_AHEAD = "_prefstream_ahead"
"""Attribute of a dataset in training: the stream's step that is the trainer's step 0."""


def check_dataset(trainer: Any, stream: Any, config: Any) -> None:
    """Refuses a stream whose rows or shards are not those that the trainer counts on, and balancing by the trainer.

    Args:
        trainer: MindFormers' trainer, with its parallel layout.
        stream: The stream of the dataset.
        config: The section `train_dataset` of the trainer's configuration; None without one.

    Raises:
        OptionError: Names the option and its value.
    """
    if not hasattr(trainer, "enable_data_broadcast"):  # 1.9 makes no statement about rows and shards
        return
    parallel = trainer.config.parallelism
    shards = int(getattr(parallel, "data_parallel", 1) or 1)
    if shards > 1 and getattr(config, "balance_enabled", False):
        raise OptionError(
            "train_dataset.balance_enabled is True: MindFormers would deal micro-batches to ranks by the cost of their "
            "tokens, which only its own loaders can do. Leave it out; with a length index the rows of a stream's "
            "step have similar lengths on all ranks."
        )
    micro = hasattr(trainer, "_base_units")  # since 2.1
    rows = int(trainer.config.training.local_batch_size) * (1 if micro else int(trainer.num_accumulation_steps))
    if stream.batching.batch_size not in (None, rows):
        times = "" if micro else f" times {trainer.num_accumulation_steps} accumulation steps"
        raise OptionError(
            f"the stream makes batches of {stream.batching.batch_size} rows, but a row of the dataset has {rows} rows "
            f"for this trainer (training.local_batch_size{times}). Give the stream batching with batch_size={rows}, or "
            "change training.local_batch_size."
        )
    wanted = (shards, _shard(trainer, parallel) if shards > 1 else 0)
    if (stream.world, stream.rank) != wanted:
        raise OptionError(
            f"the stream has the rows of rank {stream.rank} of {stream.world}, but the parallel layout asks for shard "
            f"{wanted[1]} of {wanted[0]} on this rank. Give mps.stream num_shards={wanted[0]}, shard_id={wanted[1]}."
        )


def iterate(trainer: Any, dataset: Any) -> Iterator[Any]:
    """Returns one iterator for all epochs; empty on a rank that gets its batches from another one.

    The trainer would create an iterator for each epoch, and every new iterator of MindSpore starts at the first epoch.
    With `use_distribute_dataset` one rank of a group reads and sends its batches to the others.
    """
    if gives_steps(dataset):
        vars(dataset)[_AHEAD] = first_step(dataset, dataset.stream) - _finished(trainer.state)
    if getattr(trainer, "enable_data_broadcast", False) and _rank() != trainer.data_broadcast_src_rank:
        return iter(())
    epochs = trainer.train_num_epochs + 1  # the trainer rounds down
    rows = dataset.create_dict_iterator(output_numpy=False, num_epochs=epochs)
    return itertools.chain.from_iterable(itertools.repeat(rows, epochs))  # skipped epochs are empty


def save_state(callback: Any, dataset: Any, state: Any) -> None:
    """Writes the stream's state into the folder of the checkpoint that the callback has just saved.

    Writes nothing where the rows of the dataset are not the steps of the stream, and on ranks of other shards.
    """
    named = getattr(sys.modules.get("mindformers.checkpoint.utils"), "get_checkpoint_iter_dir", None)
    if named is None or not callback.save_path or not gives_steps(dataset) or dataset.stream.rank != 0:
        return
    folder = pathlib.Path(named(str(callback.save_path), int(state.global_step)))
    if folder.is_dir():
        write_beside(callback, folder, dataset.stream.state(vars(dataset).get(_AHEAD, 0) + _finished(state)))


def check_resumed(trainer: Any, checkpoint: Any) -> None:
    """Refuses to resume from a checkpoint whose steps had other rows, or at another step of the data.

    Without a state beside the checkpoint, or where only weights are loaded, nothing is compared.

    Raises:
        StateError: Names the state and what differs.
    """
    dataset = trainer.train_dataset
    resolve = getattr(sys.modules.get(type(trainer).__module__), "get_checkpoint_path", None)
    if trainer.config.checkpoint.no_load_optim or not getattr(trainer, "_resumed", True):  # 2.1 notes it
        return
    if resolve is None or not gives_steps(dataset):
        return
    path = pathlib.Path(resolve(checkpoint)) / LATEST
    step, begins = saved_step(path, dataset.stream), first_step(dataset, dataset.stream)
    if step is not None and step != begins:
        raise StateError(
            f"{path}: the run had finished step {step} of the data, but this one would resume after step {begins}. "
            "The run began at another step, or with other values of training.global_batch_size, local_batch_size or "
            "rampup_batch_size; take these over, or set checkpoint.no_load_optim: True to load weights alone."
        )


def _finished(state: Any) -> int:
    """Returns the rows of the dataset that are trained, of all calls."""
    if not hasattr(state, "consumed_samples"):
        return int(state.global_step)
    micro = state.global_batch_size // state.num_accumulation_steps  # rows of a micro-batch, of all ranks
    return int(state.consumed_samples // micro)


def _rank() -> int:
    from mindspore.communication import get_rank

    return int(get_rank())


def _shard(trainer: Any, parallel: Any) -> int:
    """Returns the shard of this rank, as MindFormers' own loaders compute it."""
    stage = trainer.world_size // parallel.pipeline_parallel
    return int(_rank() % stage // parallel.tensor_parallel // parallel.context_parallel)
