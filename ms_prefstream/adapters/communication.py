"""Which rank this process is, if MindSpore knows."""

from __future__ import annotations

import sys


def known_ranks(num_shards: int | None, shard_id: int | None) -> tuple[int | None, int | None]:
    """The number of ranks and this one, as given, or as MindSpore's communication knows them if it is initialised.

    Args:
        num_shards: The option of `ms_prefstream.stream`.
        shard_id: Likewise.
    """
    if num_shards is not None or shard_id is not None or "mindspore" not in sys.modules:
        return num_shards, shard_id
    from mindspore.communication import GlobalComm, get_group_size, get_rank

    return (get_group_size(), get_rank()) if GlobalComm.INITED else (None, None)
