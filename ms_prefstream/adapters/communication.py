"""Which rank this process is, if MindSpore knows."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from ms_prefstream.errors import OptionError


def known_ranks(num_shards: int | None, shard_id: int | None) -> tuple[int | None, int | None]:
    """The number of ranks and this one, as given, or as MindSpore's communication knows them if it is initialised.

    Args:
        num_shards: The option of `ms_prefstream.stream`.
        shard_id: Likewise.

    Raises:
        OptionError: This process was started as one of several, and nothing says which one it is.
    """
    if num_shards is not None or shard_id is not None:
        return num_shards, shard_id
    if "mindspore" in sys.modules:
        from mindspore.communication import GlobalComm, get_group_size, get_rank

        if GlobalComm.INITED:
            return get_group_size(), get_rank()
    started = started_ranks(os.environ)
    if started > 1:
        raise OptionError(
            f"this process is one of {started} ranks, by its environment, but MindSpore's communication is not "
            "initialised, so every rank would train on the same rows. Call mindspore.communication.init() before "
            "mps.stream, or give num_shards= and shard_id= (1 and 0 for all rows on every rank)."
        )
    return None, None


def started_ranks(environment: Mapping[str, str]) -> int:
    """How many processes were started together with this one; 1 if it was started by itself.

    msrun, mpirun and a rank table are the ways in which MindSpore's documentation starts several.
    """
    if environment.get("MS_ROLE") == "MS_WORKER":
        found = environment.get("MS_WORKER_NUM", "")
    elif environment.get("RANK_TABLE_FILE"):
        found = environment.get("RANK_SIZE", "")
    else:
        found = environment.get("OMPI_COMM_WORLD_SIZE", "")
    return int(found) if found.isdecimal() else 1
