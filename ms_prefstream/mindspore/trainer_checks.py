"""Checks of what a MindFormers trainer assumes about a dataset: columns by position, rows of a step, shards.

    columns             input_ids   labels   loss_mask        ->   network(input_ids=..., labels=..., mask=...)
    construct_args_key  input_ids   labels   mask

MindFormers pairs both lists up to the end of the shorter one and compares no names. It takes the rows of a step from
its own `runner_config` instead of the dataset.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from ms_prefstream.errors import OptionError
from ms_prefstream.mindspore import BatchStream
from ms_prefstream.mindspore.ranks import shared_by
from ms_prefstream.packages import needs


def check_pairing(columns: Sequence[str], keys: Any) -> None:
    """Refuses a pairing that would drop columns, or pass one to the argument named like another one.

    Names that are no columns are a renaming, which only the network can judge.

    Args:
        columns: The columns of the dataset, in order.
        keys: The names of the arguments, in order: `construct_args_key`, or what replaces it; None for no names.

    Raises:
        OptionError: The two lists have different lengths, or hold the same names in different orders.
    """
    keys = listed("construct_args_key", keys)
    if keys is None or keys == list(columns):
        return
    lists = f"the columns are [{', '.join(columns)}], but construct_args_key"
    lists += f" (or input_columns, if it is not there) has [{', '.join(map(str, keys))}]"
    if len(keys) != len(columns):
        raise OptionError(
            f"{lists}: of {len(columns)} columns and {len(keys)} names MindFormers would pair the first "
            f"{min(len(keys), len(columns))} and drop the rest. Name the argument of each column, in order; columns "
            "are chosen with input_columns, or with stream.dataset(columns=[...]) for train_dataset=."
        )
    if sorted(map(str, keys)) == sorted(columns):
        raise OptionError(
            f"{lists}: the same names in another order, while MindFormers pairs the two by place. Have the columns "
            f"in the order of the names: input_columns: [{', '.join(keys)}], or stream.dataset(columns={keys!r}) for "
            "train_dataset=."
        )


def listed(name: str, value: Any) -> list[Any] | None:
    """Returns the list under a name in a YAML file, or None where there is none.

    Raises:
        OptionError: It is something else, such as a single word, whose letters would each count as a name.
    """
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise OptionError(f"{name} is {value!r}; expected a list such as {name}: [input_ids, labels].")
    return list(value)


def check_network(dataset: Any, network: Any) -> None:
    """Calls `check_pairing` for a training as a callback sees it: a cell of the network, if any, has the names."""
    for _, cell in network.cells_and_names() if network is not None else ():
        if type(cell).__name__ == "DataOrderWrapperCell":
            check_pairing(dataset.get_col_names(), cell.construct_args_key)
            return


def check_rows(stream: BatchStream, runner: Any) -> None:
    """Refuses a stream whose steps have another number of rows than the trainer counts on.

    MindFormers converts the steps of a checkpoint by that number when it changes, and uses it for learning rates,
    throughput and micro batches. A token budget has no such number. The 1 that MindFormers fills in where none is set
    causes a warning only. `runner` is the `runner_config` of the trainer, with the factors of the parallel mode.
    """
    rows, counted = stream.batching.batch_size, runner.get("batch_size")
    if rows is None or counted is None or rows == counted:
        return
    factor = counted // (runner.get("mini_batch_size") or counted) or 1
    says = f"Set runner_config.batch_size: {rows // factor}" if rows % factor == 0 else "Make the two equal"
    times = f" times {factor}" if factor > 1 else ""
    problem = (
        f"the stream makes batches of {rows} rows on a rank, but the trainer counts {counted} "
        f"(runner_config.batch_size{times}; 1 if it is not set), by which it converts steps on resume, scales learning "
        f"rates and cuts micro batches. {says}, or give the stream batching with batch_size={counted}."
    )
    if counted != factor:
        raise OptionError(problem)
    warnings.warn(problem, stacklevel=2)


def check_shards(stream: BatchStream) -> None:
    """Refuses a stream with other rows on this rank than the parallel mode needs.

    `mps.stream` reads the ranks of MindSpore's communication, which do not say how MindFormers uses them: where every
    rank must hold the same batch, each would have rows of its own.

    Raises:
        OptionError: Names the two options of `mps.stream`.
    """
    from mindspore.communication import GlobalComm, get_group_size

    if not GlobalComm.INITED or get_group_size() == 1:
        return
    found, wanted = (stream.world, stream.rank), shards()
    if found != wanted:
        raise OptionError(
            f"the stream has the rows of rank {found[1]} of {found[0]}, but the parallel mode asks for shard "
            f"{wanted[1]} of {wanted[0]} on this rank. Give mps.stream num_shards={wanted[0]}, shard_id={wanted[1]}."
        )


def shards() -> tuple[int, int]:
    """Returns (shards, this rank's shard) of the parallel mode, over the ranks that MindFormers counts."""
    with needs("mindformers", "PrefStreamDataset"):
        from mindformers.dataset.base_dataset import get_real_group_size, get_real_rank
    return shared_by(int(get_real_group_size()), int(get_real_rank()))
