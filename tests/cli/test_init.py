"""`ms-prefstream init`: the files fit the rows, the commands read them, and they train as they are."""

from __future__ import annotations

import ast
import os
import pathlib
import re
import shutil
from typing import Any

import pytest
import yaml

import ms_prefstream as mps
from ms_prefstream.adapters.yaml_keys import stream_from
from ms_prefstream.demo import data_path
from tests.cli.running import run
from tests.processes import ROOT, run_python

TASKS = ("dpo", "reward", "rlhf")


def started(monkeypatch: pytest.MonkeyPatch, folder: pathlib.Path, *words: object) -> None:
    """Runs `init` in a folder, on the bundled pairs under a name of their own."""
    monkeypatch.chdir(folder)
    shutil.copy(data_path(), folder / "rows.jsonl")
    assert run(monkeypatch, "init", "rows.jsonl", "--tokenizer", "bytes", *words) == 0


def keys(folder: pathlib.Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((folder / "run.yaml").read_text())
    return found


@pytest.mark.parametrize("task", TASKS)
def test_the_lengths_fit_the_rows(
    task: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started(monkeypatch, tmp_path, "--task", task)
    assert capsys.readouterr().out.splitlines()[:2] == ["written: run.yaml", "written: train.py"]
    stream = stream_from(keys(tmp_path), num_shards=1, shard_id=0)
    unlimited = mps.RLHF(1024, 2048) if task == "rlhf" else type(stream.task)(2048)
    encoded = [mps.encode(row, task=unlimited, tokenizer="bytes") for row in mps.read("rows.jsonl")]
    lengths = sorted(max(len(side.ids) for side in row.sides) for row in encoded)
    assert stream.task.length % 64 == 0
    assert sum(length <= stream.task.length for length in lengths) >= 0.99 * len(lengths)
    assert stream.task.length - 64 < lengths[-1]
    assert len(stream.shapes) <= 8
    assert run(monkeypatch, "doctor", "--config", "run.yaml") == 0


def test_a_name_that_is_no_utf_8_is_written_as_the_commands_read_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = os.fsdecode(b"caf\xe9.jsonl")
    shutil.copy(data_path(), source)
    assert run(monkeypatch, "init", source, "--tokenizer", "bytes", "--task", "dpo") == 0
    assert run(monkeypatch, "doctor", "--config", "run.yaml") == 0
    named = [
        node.value
        for node in ast.walk(ast.parse(pathlib.Path("train.py").read_bytes()))
        if isinstance(node, ast.Constant)
    ]
    assert source in named


def test_standard_input_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "init", "-", "--tokenizer", "bytes", "--task", "dpo") == 2
    assert "Give a file." in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_is_given_goes_into_every_file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--max-length", "200", "--batch-size", "3", "--format", "messages", "--mindformers")
    started(monkeypatch, tmp_path, "--task", "dpo", *words)
    assert keys(tmp_path) == {
        "source": "rows.jsonl",
        "tokenizer": "bytes",
        "format": "messages",
        "task": {"type": "DPO", "max_length": 200, "layout": "concat"},
        "batching": {"type": "Bucket", "batch_size": 3, "multiple_of": 64},
        "seed": 0,
    }
    said = (tmp_path / "train.py").read_text()
    assert "mps.DPO(max_length=200" in said
    assert "batch_size=3, multiple_of=64" in said
    config = yaml.safe_load((tmp_path / "train_mindformers.yaml").read_text())
    assert config["runner_config"]["batch_size"] == 3
    assert config["model"]["model_config"]["seq_length"] == 200
    assert config["train_dataset"]["data_loader"]["format"] == "messages"
    assert run(monkeypatch, "bench", "--config", "train_mindformers.yaml", "--repeats", "1") == 0


def test_existing_files_stay(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started(monkeypatch, tmp_path, "--task", "dpo")
    (tmp_path / "train.py").write_text("mine")
    words = ("init", "rows.jsonl", "--tokenizer", "bytes", "--task", "reward")
    assert run(monkeypatch, *words) == 2
    assert "run.yaml, train.py exist" in capsys.readouterr().err
    assert (tmp_path / "train.py").read_text() == "mine"
    assert run(monkeypatch, *words, "--out", "other") == 0
    assert keys(tmp_path / "other")["source"] == str(tmp_path / "rows.jsonl")  # another folder: absolute
    assert run(monkeypatch, *words, "--overwrite") == 0
    assert "RewardModel" in (tmp_path / "train.py").read_text()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("rows.jsonl", "--task", "rlhf", "--mindformers"), 2, "--mindformers is for --task dpo and reward"),
        (("bad.jsonl", "--task", "dpo"), 1, "no row can be used; the first: "),
        (("missing.jsonl", "--task", "dpo"), 1, "missing.jsonl"),
        (("bad.jsonl", "--task", "dpo", "--out", "x" * 300), 2, "cannot be a path: the name is too long"),
    ],
)
def test_what_cannot_be_started(
    words: tuple[str, ...],
    code: int,
    said: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text('{"prompt": "p", "chosen": "same", "rejected": "same"}\n')
    assert run(monkeypatch, "init", *words, "--tokenizer", "bytes") == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run.yaml").exists()


def test_the_example_is_what_init_writes(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "ms_prefstream" / "demo" / "pairs.jsonl"
    source.parent.mkdir(parents=True)
    shutil.copy(data_path(), source)
    monkeypatch.chdir(tmp_path)
    words = ("init", "ms_prefstream/demo/pairs.jsonl", "--task", "dpo", "--tokenizer", "bytes", "--mindformers")
    assert run(monkeypatch, *words) == 0
    for name in ("train_mindformers.py", "train_mindformers.yaml"):
        assert (tmp_path / name).read_text() == (ROOT / "examples" / name).read_text(), f"copy {name} to examples/"


def losses(said: str) -> list[float]:
    """The loss of each step, as MindSpore (``loss is 0.69``) or MindFormers (``loss:[0.69/0.69]``) prints it."""
    return [float(loss) for loss in re.findall(r"loss(?: is |:\[)([0-9.]+)", said)]


@pytest.mark.training
@pytest.mark.mindspore
@pytest.mark.parametrize("task", TASKS)
def test_train_py_trains_and_resumes(task: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started(monkeypatch, tmp_path, "--task", task, "--batch-size", "16")
    first = losses(run_python("train.py", "--epochs", "1", folder=tmp_path))
    rest = losses(run_python("train.py", "--epochs", "2", "--resume", folder=tmp_path))
    steps = 84 // 16
    assert (len(first), len(rest)) == (steps, steps)
    assert sum(rest) < sum(first)
    state = mps.load_state(tmp_path / "run")
    assert state["step"] == 2 * steps
    if task == "dpo":
        with pytest.raises(AssertionError, match="run has 2 finished epochs: pass a larger --epochs to go on"):
            run_python("train.py", "--epochs", "2", "--resume", folder=tmp_path)


@pytest.mark.training
@pytest.mark.mindspore
@pytest.mark.parametrize("script", ["train.py", "train_mindformers.py"])
def test_a_large_vocabulary_trains_on_the_cpu(
    script: str, shared: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = (shared / "data" / "cvalues_like_2k.jsonl").read_text(encoding="utf-8").splitlines()[:40]
    (tmp_path / "train.jsonl").write_text("\n".join(rows), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    tokenizer = str(shared / "tokenizers" / "qwen2_5")
    words = ("train.jsonl", "--task", "dpo", "--tokenizer", tokenizer, "--mindformers", "--max-length", "512")
    assert run(monkeypatch, "init", *words) == 0
    found = losses(run_python(script, "--epochs", "2", folder=tmp_path))
    assert len(found) == 10
    assert sum(found[5:]) < sum(found[:5])


@pytest.mark.training
@pytest.mark.mindspore
def test_train_mindformers_trains_a_reward_model_and_resumes(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DPO is trained by the example, which is the same file."""
    started(monkeypatch, tmp_path, "--task", "reward", "--mindformers", "--max-length", "128", "--batch-size", "8")
    first = losses(run_python("train_mindformers.py", "--epochs", "1", folder=tmp_path))
    assert first[0] == pytest.approx(0.693147, abs=1e-5)  # ln 2: no preference yet
    rest = losses(run_python("train_mindformers.py", "--epochs", "2", "--resume", folder=tmp_path))
    assert (len(first), len(rest)) == (10, 10)
    assert sum(rest) < sum(first)
