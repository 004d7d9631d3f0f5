"""The commands `cache` and `verify`."""

from __future__ import annotations

import pathlib
import sys

import pytest

import ms_prefstream as mps
from ms_prefstream.cli import main
from ms_prefstream.errors import SourceError
from tests.cache.places import flip, rows_with_bad, source, stream_of, tree
from tests.helpers import json_lines

pytestmark = pytest.mark.mindspore
DPO = ["--task", "dpo", "--max-length", "128", "--tokenizer", "bytes", "--workers", "0"]


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["ms-prefstream", *map(str, words)])
    try:
        main.main()
    except SystemExit as leave:
        return int(leave.code or 0)
    return 0


def test_it_writes_what_the_function_writes(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = source(tmp_path), tmp_path / "out"
    assert run(monkeypatch, "cache", path, out, *DPO, "--rows-per-part", 16) == 0
    said = capsys.readouterr()
    assert f"40 of 50 rows written to {out}" in said.out
    assert "identical: 7 dropped" in said.out
    assert "cache: 50 of 50 rows (100 %)" in said.err
    mps.write_cache(stream_of(path, mps.DPO(128)), tmp_path / "other", rows_per_part=16)
    assert tree(out) == tree(tmp_path / "other")
    assert run(monkeypatch, "cache", path, out, *DPO) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(monkeypatch, "cache", path, out, *DPO, "--layout", "mindrlhf", "--length", 129, "--overwrite") == 0
    capsys.readouterr()
    assert run(monkeypatch, "verify", out) == 0
    assert "4 of 4 files are whole" in capsys.readouterr().out
    (out / "junk.txt").touch()
    assert run(monkeypatch, "verify", out) == 0
    said = capsys.readouterr().out
    assert said == f"{out}/junk.txt: it does not belong to the cache; readers ignore it\n4 of 4 files are whole\n"
    (out / "pairs_train_indexmap_8ns.npy").touch()
    assert run(monkeypatch, "verify", out) == 0
    assert (
        "indexmap_8ns.npy: it does not belong to the cache; a trainer stored its row order" in capsys.readouterr().out
    )
    (out / "more.mindrecord0").touch()
    assert run(monkeypatch, "verify", out) == 1
    said = capsys.readouterr().out
    assert f"{out}/more.mindrecord0: it does not belong to the cache, by its manifest, and who reads" in said
    (out / "more.mindrecord0").unlink()
    flip(out / "part-00000.mindrecord", 20_000)
    assert run(monkeypatch, "verify", out) == 1
    said = capsys.readouterr()
    assert f"{out}/part-00000.mindrecord: its SHA-256 is not that of the manifest" in said.out
    assert "3 of 4 files are whole" in said.out


def test_verify_of_what_is_no_cache(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "verify", tmp_path) == 1
    assert "manifest.json is missing" in capsys.readouterr().err
    assert run(monkeypatch, "verify", source(tmp_path)) == 1
    assert "rows.jsonl/manifest.json is missing: the folder is no cache" in capsys.readouterr().err


@pytest.mark.parametrize("tokenizer", ["none", "bytes"])
def test_inspect_shows_the_samples_of_a_cache(
    tokenizer: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # output folds at 80 columns: a long folder name would move the break
    path, out = source(tmp_path), pathlib.Path("out")
    assert run(monkeypatch, "cache", path, out, *DPO) == 0
    capsys.readouterr()
    words = ["inspect", out, "--row", 1, "--task", "dpo", "--max-length"]
    assert run(monkeypatch, *words, 128, "--tokenizer", tokenizer) == 0
    said = capsys.readouterr().out
    assert "kept · DPO" in said
    sample = stream_of(str(out), mps.DPO(128), tokenizer=None).data.source.read([1])[0].sample
    assert f"chosen {len(sample.sequences[0].ids)} tokens" in said.replace("\n", " ")
    assert ("<|im_start|>user" if tokenizer == "bytes" else "<257>") in said
    assert run(monkeypatch, *words, 129, "--tokenizer", tokenizer) == 1
    assert "--max-length of the task dpo was 128 and is 129 now" in capsys.readouterr().err
    with pytest.raises(SourceError, match=r"out is a cache, which holds samples and no raw rows\. mps.stream reads it"):
        mps.read(out)


def test_several_sources_and_tasks(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = source(tmp_path), json_lines(tmp_path / "more.jsonl", rows_with_bad(9))
    words = ["--task", "reward", "--max-length", "128", "--task-layout", "reward_token", "--reward-token", "259"]
    assert run(monkeypatch, "cache", first, second, tmp_path / "out", *words, "--tokenizer", "bytes") == 0
    task = mps.Reward(128, layout="reward_token", reward_token=259)
    assert stream_of(str(tmp_path / "out"), task, tokenizer=None).data.source.manifest.source_rows == 59
    words = ["--task", "rlhf", "--max-prompt-length", "48", "--seq-length", "128", "--layout", "mindrlhf"]
    assert run(monkeypatch, "cache", first, tmp_path / "rlhf", *words, "--tokenizer", "bytes") == 0
