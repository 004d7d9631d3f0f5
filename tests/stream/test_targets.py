"""What we write never overwrites the data, nor a file that is not ours."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import pytest

import ms_prefstream as mps

GOOD = "".join(f'{{"prompt": "question {i}", "chosen": "good", "rejected": "bad"}}\n' for i in range(4))


def make(path: pathlib.Path, **options: object) -> mps.Stream:
    return mps.stream(str(path), task=mps.DPO(64), tokenizer="bytes", batching=mps.Pad(1), on_bad_row="drop", **options)  # type: ignore[arg-type]


def test_quarantine_is_no_file_of_the_data(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(GOOD + '{"x": 1}\n')
    with pytest.raises(mps.OptionError, match=r"quarantine is .*rows\.jsonl.*a file of the data itself"):
        make(path, quarantine=path)
    assert path.read_text() == GOOD + '{"x": 1}\n'


def test_a_target_that_cannot_be_looked_up_is_named_with_its_option(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.jsonl").write_text(GOOD)
    stream, real = make(tmp_path / "rows.jsonl"), os.stat

    def stat(path: Any, **options: Any) -> os.stat_result:
        if str(path).endswith("closed/index"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, **options)

    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(mps.OptionError, match=r"^index: .*closed/index cannot be looked up: the permissions forbid it"):
        stream.build_index(tmp_path / "closed" / "index")


def test_quarantine_replaces_a_quarantine_and_nothing_else(tmp_path: pathlib.Path) -> None:
    path, notes = tmp_path / "rows.jsonl", tmp_path / "notes.txt"
    path.write_text(GOOD + '{"x": 1}\n')
    notes.write_text("keep me")
    with pytest.raises(mps.OptionError, match="holds something else"):
        make(path, quarantine=notes)
    assert notes.read_text() == "keep me"
    for _ in range(2):
        list(make(path, quarantine=tmp_path / "bad.jsonl").batches())
        assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 1


def test_an_index_is_written_over_an_index_and_nothing_else(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(GOOD)
    with pytest.raises(mps.OptionError, match=r"index is .*a file of the data itself"):
        make(path).build_index(path)
    assert path.read_text() == GOOD
    assert make(path).build_index().usable == make(path).build_index().usable == 4


def test_a_side_without_the_assistant_is_a_malformed_row() -> None:
    rows = [{"prompt": [{"role": "user", "content": "x"}], "chosen": [{"role": "user", "content": "a"}],
             "rejected": [{"role": "assistant", "content": "b"}]}]  # fmt: skip
    stream = mps.stream(rows, task=mps.DPO(64), tokenizer="bytes", batching=mps.Pad(1))
    with pytest.raises(mps.RowError, match=r"'chosen' has no turn of the assistant .*found roles: user; exp"):
        next(stream.batches())


@pytest.mark.parametrize("epoch", [1.5, "a", True, -1])
def test_epochs_are_whole_numbers(epoch: object) -> None:
    rows = [{"prompt": "x", "chosen": "a", "rejected": "b"}]
    stream = mps.stream(rows, task=mps.DPO(64), tokenizer="bytes", batching=mps.Pad(1))
    with pytest.raises(mps.OptionError, match="epoch"):
        stream.batches(epoch)  # type: ignore[arg-type]
    with pytest.raises(mps.OptionError, match="start_epoch"):
        stream.dataset(epoch)  # type: ignore[arg-type]
