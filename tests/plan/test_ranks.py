from __future__ import annotations

from typing import Any

import pytest

from ms_prefstream.errors import OptionError
from ms_prefstream.plan import Ranks


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_shards_are_shared_out_once(world: int) -> None:
    owned = [list(Ranks(world, rank, 8).shards) for rank in range(world)]
    assert [shard for mine in owned for shard in mine] == list(range(8))
    assert {len(mine) for mine in owned} == {8 // world}


def test_one_shard_for_each_rank_unless_said() -> None:
    assert Ranks(4, 3).logical_shards == 4
    assert Ranks(4, 3).shards == range(3, 4)
    assert Ranks.given() == Ranks(1, 0, 1)
    assert Ranks.given(4, 1, 8) == Ranks(4, 1, 8)
    assert Ranks.given(num_shards=2, shard_id=0).logical_shards == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_shards": 2}, r"num_shards is given without shard_id"),
        ({"shard_id": 0}, r"shard_id is given without num_shards"),
        ({"num_shards": 0, "shard_id": 0}, r"num_shards is 0.* at least 1"),
        ({"num_shards": 2, "shard_id": 2}, r"shard_id is 2.* 0\.\.1"),
        ({"num_shards": 2, "shard_id": -1}, r"shard_id is -1.* 0\.\.1"),
        ({"num_shards": 2, "shard_id": 0.5}, r"shard_id is 0.5"),
        ({"logical_shards": 0}, r"logical_shards is 0.* at least 1"),
        ({"num_shards": 3, "shard_id": 0, "logical_shards": 8}, r"num_shards=3 .*logical_shards=8.*2 or 4 ranks.*=9\."),
        ({"num_shards": 16, "shard_id": 0, "logical_shards": 8}, r"Run on 8 ranks.*logical_shards=16"),
    ],
)
def test_what_is_not_allowed_is_said(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        Ranks.given(**options)


def test_global_batch_and_back() -> None:
    assert Ranks(4, 0, 8).global_batch(6) == 24
    assert Ranks(4, 0, 8).batch_size(24) == 6
    with pytest.raises(OptionError, match=r"batch_size=3 on num_shards=4 makes 12 rows.*multiple of 2"):
        Ranks(4, 0, 8).global_batch(3)
    with pytest.raises(OptionError, match=r"num_shards=4 does not divide global_batch=30.*3 or 5 ranks"):
        Ranks(4, 0, 8).batch_size(30)
    with pytest.raises(OptionError, match="batch_size is 0"):
        Ranks().global_batch(0)
