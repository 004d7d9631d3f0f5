"""MindSpeed's own data loaders read our files. Needs checkouts and a Python, named by environment variables:

    MS_PREFSTREAM_MEGATRON        Megatron-LM, core 0.12, with megatron/core/datasets/indexed_dataset.py
    MS_PREFSTREAM_MINDSPEED_LLM   MindSpeed-LLM with mindspeed_llm/tasks/preprocess/decoder_packed_mtf_dataset.py
    MS_PREFSTREAM_MINDSPEED_RL    MindSpeed-RL with mindspeed_rl/datasets/prompt_dataset.py
    MS_PREFSTREAM_TORCH_PYTHON    an interpreter with torch (the CPU is enough), transformers and tokenizers

What they make of the files stands in docs/megatron.md: the tokens are ours; all tokens from the first label of the
chosen side on are labels.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
from typing import Any

import numpy as np
import pytest

import ms_prefstream as mps
from tests.cache.places import PAD, source, stream_of
from tests.cache.test_megatron import rows_in, rows_of_turns
from tests.compat.mindspeed_reader import BATCH
from tests.compat.test_readers import checkout

pytestmark = pytest.mark.training
READER = pathlib.Path(__file__).with_name("mindspeed_reader.py")
FILES = {
    "megatron": ("MS_PREFSTREAM_MEGATRON", "megatron/core/datasets/indexed_dataset.py"),
    "llm": ("MS_PREFSTREAM_MINDSPEED_LLM", "mindspeed_llm/tasks/preprocess/decoder_packed_mtf_dataset.py"),
    "rl": ("MS_PREFSTREAM_MINDSPEED_RL", "mindspeed_rl/datasets/prompt_dataset.py"),
}


def read_by(kind: str, folder: pathlib.Path, length: int) -> tuple[list[dict[str, list[int]]], dict[str, Any]]:
    """The rows of a new cache, and what a reader makes of it."""
    python = os.environ.get("MS_PREFSTREAM_TORCH_PYTHON")
    if not python:
        pytest.skip("needs an interpreter named by MS_PREFSTREAM_TORCH_PYTHON")
    roots = []
    for name in (kind, "megatron"):
        variable, file = FILES[name]
        checkout(variable, file)
        roots.append(str(pathlib.Path(os.environ[variable]).absolute()))
    stream = stream_of(source(folder, rows_of_turns()), mps.DPO(128))
    mps.write_cache(stream, folder / "out", layout="megatron", rows_per_part=16)
    rows, out = rows_in(folder / "out"), folder / "read.npz"
    prefix = folder / "out" / "pairs"
    command = [python, READER, kind, *roots, prefix, length, len(rows), PAD, out]
    subprocess.run([str(part) for part in command], check=True, cwd=folder, env={"PATH": os.environ["PATH"]})
    return rows, dict(np.load(out))


def test_megatron_reads_every_document(tmp_path: pathlib.Path) -> None:
    rows, found = read_by("megatron", tmp_path, 128)
    assert {name: array.tolist() for name, array in found.items()} == {
        f"{at}/{column}": ids for at, row in enumerate(rows) for column, ids in row.items()
    }
    assert {array.dtype.name for array in found.values()} == {"int32"}


@pytest.mark.parametrize("kind", ["llm", "rl"])
def test_mindspeed_trains_on_the_tokens_of_the_stream(kind: str, tmp_path: pathlib.Path) -> None:
    rows, found = read_by(kind, tmp_path, 128)
    names = ["short", "padded"] if kind == "llm" else ["rl"]
    assert len(rows) % BATCH == 0
    assert len(found) == len(names) * 3 * len(rows) // BATCH
    for name in names:
        for step in range(len(rows) // BATCH):
            batch = {column: found[f"{name}/{step}/{column}"] for column in ("input_ids", "attention_mask", "labels")}
            width = batch["input_ids"].shape[1]
            assert width == 128 if name == "padded" else width < 128
            expected = [
                (row[f"{side}_input_ids"], row[f"{side}_labels"])
                for side in ("chosen", "rejected")
                for row in rows[BATCH * step :][:BATCH]
            ]
            assert len(batch["input_ids"]) == 4 * BATCH  # twice: for the policy and for the reference model
            for at, (ids, labels) in enumerate([*expected, *expected]):
                rest = width - len(ids)
                first = next(place for place, label in enumerate(labels) if label >= 0)
                assert batch["input_ids"][at].tolist() == ids + [PAD] * rest
                assert batch["attention_mask"][at].tolist() == [1] * len(ids) + [0] * rest
                assert batch["labels"][at].tolist() == [-100] * first + ids[first:] + [-100] * rest
                assert all(label in (-100, token) for label, token in zip(labels, ids, strict=True))
