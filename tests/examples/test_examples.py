"""Every example runs as a user would run it; the defaults train on the bundled pairs and check themselves."""

from __future__ import annotations

import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from tests.fixtures_tokenizers import fastest
from tests.processes import run_python

pytestmark = [pytest.mark.mindspore, pytest.mark.training]

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}  # the package of this checkout, wherever the script runs
DEFAULTS = {
    "train_reward.py": [],
    "train_reward.py --layout reward_token": ["--layout", "reward_token"],
    "evaluate_reward.py": [],
    "train_dpo_packed.py": [],
    "train_orpo.py": [],
    "train_orpo.py --loss simpo": ["--loss", "simpo"],
    "train_rlhf.py": [],
    "train_online_dpo.py": [],
    "train_kto.py": [],
    "train_process_reward.py": [],
    "train_grpo.py": [],
}
SCRIPTS = ["train_reward.py", "train_dpo.py", "train_dpo_packed.py", "train_orpo.py", "train_rlhf.py", "train_kto.py"]


def start(script: str, *words: str, cwd: pathlib.Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / script), *words]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=500)


def run(script: str, *words: str, cwd: pathlib.Path) -> str:
    done = start(script, *words, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_drawn(path: pathlib.Path) -> None:
    drawn = path.read_bytes()
    assert drawn.startswith(b"\x89PNG")
    assert len(drawn) > 5_000


def losses(path: pathlib.Path) -> list[float]:
    return [json.loads(line)["loss"] for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("command", [pytest.param(next(iter(DEFAULTS)), marks=pytest.mark.smoke), *list(DEFAULTS)[1:]])
def test_it_learns_the_bundled_pairs(command: str, tmp_path: pathlib.Path) -> None:
    script = command.split()[0]
    said = run(script, *DEFAULTS[command], cwd=tmp_path)
    assert said.splitlines()[-1].startswith("check passed: ")
    assert "step 5/" in said
    assert "dropped 0 (0.00 %)" in said
    assert_drawn(tmp_path / f"{pathlib.Path(script).stem}.png")


def test_dpo_has_the_same_losses_with_a_reference_model_and_with_stored_log_probabilities(
    tmp_path: pathlib.Path,
) -> None:
    said = {
        kind: run("train_dpo.py", "--reference", kind, "--log", f"{kind}.jsonl", "--plot", f"{kind}.png", cwd=tmp_path)
        for kind in ("model", "cache")
    }
    for kind, columns in (("model", 8), ("cache", 10)):
        assert f"columns {columns}\n" in said[kind]
        assert said[kind].splitlines()[-1].startswith("check passed: ")
        assert_drawn(tmp_path / f"{kind}.png")
    model, cache = (losses(tmp_path / f"{kind}.jsonl") for kind in ("model", "cache"))
    assert len(model) == 30
    assert cache == pytest.approx(model, abs=1e-4)
    words = ("--dynamic", "--steps", "8", "--log", "dynamic.jsonl", "--plot", "none")
    run("train_dpo.py", "--reference", "cache", *words, cwd=tmp_path)
    assert losses(tmp_path / "dynamic.jsonl") == pytest.approx(model[:8], abs=1e-4)


@pytest.mark.parametrize("script", SCRIPTS)
def test_it_takes_real_files_and_a_real_tokenizer(script: str, tmp_path: pathlib.Path, shared: pathlib.Path) -> None:
    said = run(
        script,
        *("--data", str(shared / "data" / "dpo_zh_demo.json"), "--tokenizer", str(shared / "tokenizers" / "qwen2_5")),
        *("--max-length", "128", "--batch-size", "2", "--steps", "2", "--mode", "pynative", "--plot", "none"),
        *FEW.get(script, []),
        cwd=tmp_path,
    )
    assert f"backend {fastest('tiktoken')}" in said
    assert "step 2/2" in said
    assert "not checked after --steps" in said
    assert list(tmp_path.glob("*.png")) == []


def test_logits_that_the_cpu_cannot_hold_are_refused_with_a_remedy(
    tmp_path: pathlib.Path, shared: pathlib.Path
) -> None:
    files = ("--data", str(shared / "data" / "dpo_zh_demo.json"), "--tokenizer", str(shared / "tokenizers" / "qwen2_5"))
    done = start("train_dpo.py", *files, "--plot", "none", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("16 rows of 256 columns and 151,6")
    assert "Give a smaller --batch-size or --max-length" in done.stderr.splitlines()[-1]


FEW = {
    "train_dpo_packed.py": ["--tokens", "256"],
    "train_rlhf.py": ["--new-tokens", "4", "--rollouts", "2", "--reward-steps", "1", "--warm-up-steps", "1"],
}


@pytest.mark.parametrize(
    "command",
    [
        "train_reward.py",
        "train_dpo.py",
        "train_orpo.py --loss simpo",
        *[
            pytest.param(command, marks=pytest.mark.long)
            for command in (
                "train_reward.py --layout reward_token",
                "train_dpo_packed.py",
                "train_orpo.py",
                "train_rlhf.py",
                "train_online_dpo.py",
                "train_kto.py",
                "train_process_reward.py",
                "train_grpo.py",
            )
        ],
    ],
)
def test_its_check_fails_when_nothing_is_learned(command: str, tmp_path: pathlib.Path) -> None:
    script, *words = command.split()
    done = start(script, *words, "--learning-rate", "0", "--epochs", "1", "--plot", "none", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("check failed: ")


def test_without_matplotlib_a_run_goes_on_unless_a_plot_was_asked_for(tmp_path: pathlib.Path) -> None:
    hidden = "import importlib.util as u, sys; found = u.find_spec\n"
    hidden += "u.find_spec = lambda name, *more: None if name == 'matplotlib' else found(name, *more)\n"
    hidden += f"sys.path.insert(0, {str(EXAMPLES)!r}); import common\n"
    hidden += "print(common.begin(common.parser('')).plot)"
    for words, code, sentence in (
        ([], 0, 'plots need matplotlib: pip install "ms-prefstream[examples]". This run draws none.\nnone'),
        (["--plot", "none"], 0, "none"),
        (["--plot", "a.png"], 2, 'plots need matplotlib: pip install "ms-prefstream[examples]", or pass --plot none.'),
    ):
        command = [sys.executable, "-c", hidden, *words]
        done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert (done.stderr if code else done.stdout).rstrip().endswith(sentence)


@pytest.mark.parametrize("task", ["dpo", "reward"])
def test_mindformers_trains_as_it_is_and_resumes(task: str, tmp_path: pathlib.Path) -> None:
    for name in ("examples/train_mindformers.py", "examples/train_mindformers.yaml", "ms_prefstream/demo/pairs.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    words = ("examples/train_mindformers.py", "--task", task)
    said = [run_python(*words, *more, folder=tmp_path) for more in (("--epochs", "1"), ("--resume",))]
    steps = [[float(loss) for loss in re.findall(r"loss:\[([0-9.]+)", one)] for one in said]
    assert [len(found) for found in steps] == [10, 10]  # the YAML file says two epochs
    assert steps[0][0] == pytest.approx(math.log(2), abs=1e-5)  # no preference yet
    assert sum(steps[1]) < 0.97 * sum(steps[0])  # 0.94 with the seed of the YAML file
    assert "rows read 80 of 84" in said[1]  # the second epoch: ten steps of eight


def test_the_check_for_devices_passes_on_the_cpu(tmp_path: pathlib.Path) -> None:
    said = run_python(EXAMPLES / "ascend_check.py", "--device", "CPU", folder=tmp_path)
    lines = said.splitlines()
    assert [line.split("  ")[0] for line in lines[:-1]] == [
        f"✓ {name}" for name in ("environment", "dataset", "Pad", "Pad, sink", "Bucket", "Bucket, sink", "msrun")
    ]
    shown = (EXAMPLES / "ascend_check.py").read_text("utf-8")
    assert all(f"    {line.partition('; loss')[0]}" in shown for line in lines[1:-1])  # as its docstring says
    found = json.loads((tmp_path / "ascend_check.json").read_text("utf-8"))
    assert found["Bucket"]["compilations"] == len(found["Bucket"]["shapes"]) > 1
