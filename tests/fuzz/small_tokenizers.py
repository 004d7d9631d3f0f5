"""Tokenizers that are small enough to be loaded thousands of times."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from tests.fixtures_tokenizers import CHATML_CONFIG, chatml_tokenizer, write_directory


def chatml_spec() -> dict[str, Any]:
    """A tokenizer.json of byte-level BPE as in Qwen, with a few merges."""
    return dict(json.loads(chatml_tokenizer(vocab_size=280).to_str()))


def config() -> dict[str, Any]:
    """Its tokenizer_config.json."""
    return {**CHATML_CONFIG, "model_max_length": 1024}


def write_chatml(folder: pathlib.Path) -> None:
    """Writes both as a tokenizer folder."""
    write_directory(folder, chatml_spec(), config())
