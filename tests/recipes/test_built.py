"""MindFormers builds a dataset from each recipe's file as it stands; only the tokenizer's path is another one."""

from __future__ import annotations

import json
import pathlib

import pytest

from tests.processes import run_python
from tests.recipes.test_recipes import BATCH, COLUMNS, RECIPES, TOKENIZERS

pytestmark = [pytest.mark.mindspore, pytest.mark.training]


def test_build_dataset_takes_every_recipe(here: pathlib.Path, request: pytest.FixtureRequest) -> None:
    tokenizers = {name: str(request.getfixturevalue(found[0])) for name, found in TOKENIZERS.items()}
    (here / "tokenizers.json").write_text(json.dumps(tokenizers))
    found = json.loads(run_python("-m", "tests.recipes.built", "tokenizers.json", folder=here).splitlines()[-1])
    assert found == {
        name: [[column, [BATCH, recipe.length], "int32"] for column in COLUMNS] for name, recipe in RECIPES.items()
    }
