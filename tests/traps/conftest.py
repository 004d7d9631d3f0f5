"""Fixtures of the trap tests: one tokenizer of every family, small ones trained here and real ones where present."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pytest

from tests.encode.field import field
from tests.traps.helpers import Tok

__all__ = ["field"]

SMALL = ("bytes", "byte-level BPE", "dummy prefix", "SentencePiece")
REAL = ("qwen2_5", "internlm2")


@pytest.fixture(scope="session")
def tok_named(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Callable[[str], Tok]:
    """A tokenizer by name; the real ones skip where they are not there."""

    def make(name: str) -> Tok:
        if name == "bytes":
            return Tok("bytes", None)
        if name in REAL:
            directory: pathlib.Path = request.getfixturevalue("shared") / "tokenizers" / name
            return Tok(directory, directory)
        if name == "byte-level BPE":
            directory = request.getfixturevalue("chatml_dir")
            return Tok(directory, directory)
        if name == "dummy prefix":
            directory = request.getfixturevalue("llama2_dir")
            return Tok(directory, directory)
        return Tok(request.getfixturevalue("sentencepiece_model"), request.getfixturevalue("llama2_dir"))

    return make


@pytest.fixture(params=[*SMALL, *REAL])
def tok(request: pytest.FixtureRequest, tok_named: Callable[[str], Tok]) -> Tok:
    """Every tokenizer in turn; all of them know ``<|im_start|>`` and ``<|im_end|>``."""
    return tok_named(request.param)
