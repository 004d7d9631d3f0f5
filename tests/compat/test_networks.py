"""The recipes' labels and lengths are those that mindrlhf's DPO networks work with, shown by their own `construct`.

Needs MS_PREFSTREAM_MINDRLHF, a checkout of mindrlhf; skipped without it.
"""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

import pytest
import yaml

from tests.compat.test_readers import checkout
from tests.processes import run_python

ROOT = pathlib.Path(__file__).parents[2]
LENGTH = 128  # columns of the batches in networks.py
RECIPES = {"Qwen2_5_7BDPO": "qwen2_5", "Glm4DPO": "glm4", "Baichuan13BDPO": "baichuan2"}
pytestmark = [pytest.mark.mindspore, pytest.mark.training]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the networks do with both kinds of labels."""
    reader = pathlib.Path(checkout("MS_PREFSTREAM_MINDRLHF", "mindrlhf/models/qwen2_5/qwen_dpo.py"))
    folder = tmp_path_factory.mktemp("networks")
    said = run_python("-m", "tests.compat.networks", reader.absolute().parents[3], folder=folder)
    told: dict[str, Any] = json.loads(said.splitlines()[-1])
    return told


@pytest.mark.parametrize("network", RECIPES)
def test_a_recipe_aligns_labels_as_the_network_does(network: str, found: dict[str, Any]) -> None:
    recipe = yaml.safe_load((ROOT / "examples" / "recipes" / f"{RECIPES[network]}_dpo.yaml").read_text("utf-8"))
    task = recipe["train_dataset"]["data_loader"]["task"]
    labels = task.get("labels", "unshifted")
    (other,) = {"shifted", "unshifted"} - {labels}
    # ln 2: the network sums the very log-probabilities that the reference summed.
    assert found[network][labels]["losses"] == pytest.approx([math.log(2)] * 4, abs=1e-6)
    assert all(abs(loss - math.log(2)) > 1e-4 for loss in found[network][other]["losses"])
    cut = LENGTH - found[network][labels]["columns"]  # columns that the network itself takes off
    assert task["max_length"] - cut in (4096, 8192), "the seq_length that the recipe is for"
