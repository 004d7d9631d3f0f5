"""MindFormers builds a dataset from each recipe's file as it stands; only the tokenizer's path is another one."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.recipes.test_recipes import BATCH, COLUMNS, RECIPES, ROOT, TOKENIZERS

pytestmark = pytest.mark.mindspore


def test_build_dataset_takes_every_recipe(here: pathlib.Path, request: pytest.FixtureRequest) -> None:
    tokenizers = {name: str(request.getfixturevalue(found[0])) for name, found in TOKENIZERS.items()}
    (here / "tokenizers.json").write_text(json.dumps(tokenizers))
    done = subprocess.run(
        [sys.executable, "-m", "tests.recipes.built", "tokenizers.json"],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(ROOT), "LOG_MF_PATH": str(here / "log"), "GLOG_v": "3"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {
        name: [[column, [BATCH, recipe.length], "int32"] for column in COLUMNS] for name, recipe in RECIPES.items()
    }
