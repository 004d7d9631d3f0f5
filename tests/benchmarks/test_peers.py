"""The comparison with others runs without them, and says who is missing."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "peers.py"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trl") is not None, reason="trl is here and would be measured")
def test_it_runs_alone(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"问题 {n}", "pos_resp": f"好 {n}", "neg_resp": f"坏 {n}"} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    words = [sys.executable, str(SCRIPT), "--data", str(path), "--tokenizer", "bytes", "--repeats", "1"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, cwd=SCRIPT.parents[1])
    assert done.returncode == 0, done.stderr
    assert "here, text to padded batches" in done.stdout
    for peer in ("TRL", "XTuner", "mindrlhf"):
        assert f"{peer}: left out, " in done.stdout
    figure = subprocess.run(
        [*words, "--json"], capture_output=True, text=True, timeout=120, check=True, cwd=SCRIPT.parents[1]
    )
    assert json.loads(figure.stdout.splitlines()[0])["part"] == "f"


def test_a_function_is_taken_without_the_modules_around_it(tmp_path: pathlib.Path) -> None:
    spec = importlib.util.spec_from_file_location("peers", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    peers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peers)
    path = tmp_path / "framework.py"
    path.write_text("import nothing_like_it\n\ndef double(x: Missing) -> Missing:\n    return 2 * x\n")
    assert peers.function_of(path, "double", {})(21) == 42
    with pytest.raises(SystemExit, match="no function triple"):
        peers.function_of(path, "triple", {})
