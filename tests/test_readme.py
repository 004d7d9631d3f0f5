"""The README's Python: every block of both languages runs as it is printed, one after the other.

The blocks name files, a tokenizer and a model of the reader's. Here the bundled pairs stand for the files, the
built-in tokenizer for the directory, and a model that only counts its steps for the model.
"""

from __future__ import annotations

import pathlib
import re
import shutil
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parents[1]
READMES = ("README.md", "README_CN.md")
TOKENIZER = '"path/to/Qwen2.5-7B-Instruct"'
BUNDLED = ROOT / "ms_prefstream" / "demo" / "pairs.jsonl"


class CountingModel:
    """Takes `train(epochs, dataset)` as `mindspore.Model` does and only reads the dataset."""

    def __init__(self) -> None:
        self.steps: list[int] = []  # of each call

    def train(self, epochs: int, dataset: Any) -> None:
        batches = dataset.create_tuple_iterator(num_epochs=epochs, output_numpy=True)
        self.steps.append(sum(1 for _ in range(epochs) for _ in batches))


def python_blocks(name: str) -> list[tuple[int, str]]:
    """The ```python blocks of a README with the line that each begins on."""
    text = (ROOT / name).read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [(text.count("\n", 0, block.start()) + 2, block.group(1)) for block in found]


@pytest.mark.parametrize("name", READMES)
def test_python_blocks_compile(name: str) -> None:
    blocks = python_blocks(name)
    assert len(blocks) >= 5
    for line, code in blocks:
        compile(code, f"{name}:{line}", "exec")


@pytest.mark.mindspore
@pytest.mark.skipif(not (ROOT / "ms_prefstream" / "stream.py").exists(), reason="needs ms_prefstream.stream")
@pytest.mark.parametrize("name", READMES)
def test_python_blocks_run(
    name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    shutil.copy(BUNDLED, tmp_path / "data" / "train-0.jsonl")
    monkeypatch.chdir(tmp_path)
    model = CountingModel()
    names: dict[str, Any] = {"model": model, "__name__": "readme"}
    for line, code in python_blocks(name):
        exec(compile("\n" * (line - 1) + code.replace(TOKENIZER, '"bytes"'), str(ROOT / name), "exec"), names)
        stream = names["stream"]
        assert sum(1 for _ in stream.batches(epoch=0, start_step=0)) == stream.steps_per_epoch, f"{name}:{line}"
    pairs = len(BUNDLED.read_text(encoding="utf-8").splitlines())
    assert model.steps[0] == 2 * (pairs // 8), "the quick start trains two epochs in batches of 8"
    assert len(model.steps) == 3
    assert all(steps > 0 for steps in model.steps)
    assert "chosen_input_ids" in capsys.readouterr().out
