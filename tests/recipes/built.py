"""What MindFormers' `build_dataset` makes of the recipes' YAML files; a process of its own.

``python -m tests.recipes.built RECIPES.json`` in a folder with data/ and examples/recipes/: the file names the
tokenizer of each recipe. Prints columns, shapes and dtypes of the first batch of each.
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

from mindformers.dataset import build_dataset
from mindformers.tools.register import MindFormerConfig

import ms_prefstream.adapters.mindformers  # noqa: F401 - registers


def built(name: str, tokenizer: str) -> Any:
    """[column, shape, dtype] of the first batch."""
    config = MindFormerConfig(f"examples/recipes/{name}_dpo.yaml")
    section = config.train_dataset_task
    section.dataset_config.data_loader.tokenizer = tokenizer
    section.dataset_config.batch_size = config.runner_config.batch_size  # as its trainer does
    dataset = build_dataset(section)
    batch = next(iter(dataset.create_dict_iterator(output_numpy=True, num_epochs=1)))
    return [[column, list(array.shape), array.dtype.name] for column, array in batch.items()]


if __name__ == "__main__":
    tokenizers = json.loads(pathlib.Path(sys.argv[1]).read_text())
    print(json.dumps({name: built(name, tokenizer) for name, tokenizer in tokenizers.items()}))
