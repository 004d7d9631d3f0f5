"""What a MindFormers trainer pairs by position: the columns of a dataset and the arguments of a network.

    columns             input_ids   labels   loss_mask        ->   network(input_ids=..., labels=..., mask=...)
    construct_args_key  input_ids   labels   mask

It stops at the end of the shorter list without a word, and asks no name of any column. Nor does it ask a dataset for
the rows of a step, but takes them from its own `runner_config`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from ms_prefstream.errors import OptionError, needs
from ms_prefstream.mindspore.ranks import shared_by


def shards() -> tuple[int, int]:
    """(number, this one) of the shards that the parallel mode asks for, over the ranks that MindFormers counts."""
    with needs("mindformers", "PrefStreamDataset"):
        from mindformers.dataset.base_dataset import get_real_group_size, get_real_rank
    return shared_by(int(get_real_group_size()), int(get_real_rank()))


def check_shards(stream: Any) -> None:
    """Refuses a stream with other rows on this rank than the parallel mode asks for.

    `mps.stream` knows the ranks, but not how MindFormers lays them out: where every rank must hold the same batch,
    each would have rows of its own.

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


def listed(name: str, value: Any) -> list[Any] | None:
    """The list under this name in a YAML file, or None where there is none.

    Raises:
        OptionError: It is something else, such as a single word, whose letters would each count as a name.
    """
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise OptionError(f"{name} is {value!r}; expected a list such as {name}: [input_ids, labels].")
    return list(value)


def check_pairing(columns: Sequence[str], keys: Any) -> None:
    """Refuses a pairing that would drop columns, or hand one to the argument that another one is named for.

    Other names are a renaming, which nothing but the network can judge.

    Args:
        columns: The columns of the dataset, in order.
        keys: The names of the arguments, in order: `construct_args_key`, or what stands for it; None for no names.

    Raises:
        OptionError: The two lists have another length, or hold the same names in another order.
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


def check_evaluated(columns: Sequence[str], names: Any) -> None:
    """Refuses an evaluation during training whose columns do not fit the names of the training.

    MindFormers evaluates with the training's network, and asks no `construct_args_key` of the evaluation.

    Raises:
        OptionError: As `check_pairing` does.
    """
    try:
        check_pairing(columns, names)
    except OptionError as error:
        raise OptionError(f"eval_dataset under do_eval, which takes the names of train_dataset: {error}") from None


def check_rows(stream: Any, runner: Any) -> None:
    """Refuses a stream with another number of rows in a step than the trainer counts on, and warns of a forgotten one.

    MindFormers converts the steps of a checkpoint by that number when it changes, and scales learning rates, counts
    throughput and cuts steps into micro batches with it.

    Args:
        stream: A stream whose finished batches are trained on.
        runner: `runner_config` as the trainer has it by now: with the factors of the parallel mode.

    Raises:
        OptionError: The two numbers differ. A token budget has none; 1 is what MindFormers fills in where nobody has
            said anything, and only a warning.
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
