"""The same model trained from a loop, from `Model.train`, from YAML and from MindRecord has the same losses."""

from __future__ import annotations

from typing import Any

import pytest

from tests.trainer.configs import BATCH, EPOCHS, K

pytestmark = [pytest.mark.mindspore, pytest.mark.training]
WAYS = ["ordered_functional", "ordered_model_train", "ordered_from_yaml", "ordered_mindrecord"]


@pytest.mark.parametrize("way", WAYS)
def test_every_way_has_the_same_losses_step_by_step(way: str, steps: Any) -> None:
    found, expected = steps(way), steps("ordered_functional")
    in_order = [list(range(step * BATCH, (step + 1) * BATCH)) for step in range(K)]
    assert [step["rows"] for step in found] == in_order * EPOCHS
    losses = [step["loss"] for step in found]
    assert losses == pytest.approx([step["loss"] for step in expected], rel=1e-5)
    assert losses[0] == pytest.approx(0.693147, abs=1e-5)  # ln 2: policy and reference are the same
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.4
