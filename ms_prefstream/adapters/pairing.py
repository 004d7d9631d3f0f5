"""What a MindFormers trainer pairs by position: the columns of a dataset and the arguments of a network.

    columns             input_ids   labels   loss_mask        ->   network(input_ids=..., labels=..., mask=...)
    construct_args_key  input_ids   labels   mask

It stops at the end of the shorter list without a word, and asks no name of any column.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ms_prefstream.errors import OptionError


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
            f"{lists}: {len(keys)} names for {len(columns)} columns, of which MindFormers would pair the first "
            f"{min(len(keys), len(columns))} and drop the rest. Name the argument of each column, in order; columns "
            "are chosen with input_columns, or with stream.dataset(columns=[...]) for train_dataset=."
        )
    if sorted(map(str, keys)) == sorted(columns):
        raise OptionError(
            f"{lists}: the same names in another order, while MindFormers pairs the two by place. Have the columns "
            f"in the order of the names: input_columns: [{', '.join(keys)}], or stream.dataset(columns={keys!r}) for "
            "train_dataset=."
        )
