"""The rank of this process, as MindSpore or the program that started it says."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from ms_prefstream.errors import OptionError


def known_ranks(num_shards: int | None, shard_id: int | None) -> tuple[int | None, int | None]:
    """Returns (shards, this rank's shard): as given, else from MindSpore's communication if it is initialised.

    Raises:
        OptionError: This process was started as one of several, and its rank is not known.
    """
    if num_shards is not None or shard_id is not None:
        return num_shards, shard_id
    if "mindspore" in sys.modules:
        from mindspore.communication import GlobalComm, get_group_size, get_rank

        if GlobalComm.INITED:
            return shared_by(get_group_size(), get_rank())
    started = started_ranks(os.environ)
    if started > 1:
        raise OptionError(
            f"this process is one of {started} ranks, by its environment, but MindSpore's communication is not "
            "initialised, so every rank would train on the same rows. Call mindspore.communication.init() before "
            "mps.stream, or give num_shards= and shard_id= (1 and 0 for all rows on every rank)."
        )
    return None, None


def shared_by(world: int, rank: int) -> tuple[int, int]:
    """Returns (shards, this rank's shard) of MindSpore's parallel mode, as far as it is set by now.

    Stand-alone and data parallel: a shard for each rank. Semi-automatic and automatic: what `dataset_strategy` or
    `full_batch` says within a pipeline stage; ranks that hold parts of one model need the same rows.
    """
    from mindspore.context import get_auto_parallel_context as context

    if context("parallel_mode") not in ("semi_auto_parallel", "auto_parallel"):
        return world, rank
    strategy = context("dataset_strategy")
    if context("full_batch") or strategy == "full_batch":
        return 1, 0
    stage = world // context("pipeline_stages")
    shards = strategy[0][0] if isinstance(strategy, (tuple, list)) and strategy else stage
    return shards, rank % stage // (stage // shards)


def started_ranks(environment: Mapping[str, str]) -> int:
    """Returns how many processes were started together with this one; 1 if it was started alone.

    Covers the ways that MindSpore documents: msrun, mpirun and a rank table.
    """
    if environment.get("MS_ROLE") == "MS_WORKER":
        found = environment.get("MS_WORKER_NUM", "")
    elif environment.get("RANK_TABLE_FILE"):
        found = environment.get("RANK_SIZE", "")
    else:
        found = environment.get("OMPI_COMM_WORLD_SIZE", "")
    return int(found) if found.isdecimal() else 1
