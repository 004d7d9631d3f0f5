"""MindFormers' trainer for PyNative mode goes on to the next epoch, where it would repeat the first."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.mindspore, pytest.mark.training]


@pytest.mark.smoke
@pytest.mark.parametrize("step", [0, 3, 5])
def test_every_epoch_has_its_own_order(step: int, steps: Any) -> None:
    found = steps("pynative_loop")
    if not found:
        pytest.skip("MindFormers has no trainer for PyNative mode here")
    assert found[str(step)] == [done["rows"] for done in steps("functional")][step:]
