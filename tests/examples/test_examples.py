"""Every example runs as a user would run it; the defaults train on the bundled pairs and check themselves."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


def run(script: str, *words: str, cwd: pathlib.Path) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *words], cwd=cwd, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.mindspore
@pytest.mark.parametrize("script", ["train_dpo.py", "train_reward.py"])
def test_it_learns_the_bundled_pairs(script: str, tmp_path: pathlib.Path) -> None:
    said = run(script, cwd=tmp_path)
    assert "pair accuracy" in said
    assert "rows read 84 of 84" in said


@pytest.mark.mindspore
@pytest.mark.parametrize("script", ["train_dpo.py", "train_reward.py"])
def test_it_takes_real_files_and_a_real_tokenizer(script: str, tmp_path: pathlib.Path, shared: pathlib.Path) -> None:
    said = run(
        script,
        *("--data", str(shared / "data" / "dpo_zh_demo.json"), "--tokenizer", str(shared / "tokenizers" / "qwen2_5")),
        *("--max-length", "128", "--batch-size", "2", "--steps", "2", "--mode", "pynative"),
        cwd=tmp_path,
    )
    assert "backend tiktoken" in said
