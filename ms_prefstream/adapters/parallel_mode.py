"""The shards that MindFormers' parallel mode asks for, and a stream that was made for other ones."""

from __future__ import annotations

from typing import Any

from ms_prefstream.adapters.communication import shared_by
from ms_prefstream.errors import OptionError
from ms_prefstream.needed import needs


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
