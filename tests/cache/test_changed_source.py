"""A run goes on with the source as it was, also where fingerprints look at samples only."""

from __future__ import annotations

import gzip
import pathlib
import shutil
from typing import Any

import pytest

from tests.cache.places import stream_of
from tests.cache.test_interrupted import TASK, Interrupted, fail_at, write
from tests.helpers import json_lines, pairs

pytestmark = pytest.mark.mindspore


def large_source(kind: str, path: pathlib.Path, answer: str) -> Any:
    """A source whose fingerprint is that of samples, among which row 17 is not; it has this answer."""
    rows = pairs(600)
    rows[17] |= {"rejected": answer}
    if kind == "list":
        return rows
    if kind == "parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        table = pyarrow.Table.from_pylist(rows)
        parquet.write_table(table, path, compression="none", use_dictionary=False, write_statistics=False)
        return path
    if kind == "jsonl.gz":
        path.write_bytes(gzip.compress(json_lines(path, rows).read_bytes(), 0, mtime=0))
        return path
    dataset = pytest.importorskip("datasets").Dataset.from_list(rows)
    if kind == "dataset":
        return dataset
    shutil.rmtree(path, ignore_errors=True)
    dataset.save_to_disk(path)
    return path


@pytest.mark.parametrize("kind", ["list", "dataset", "saved", "parquet", "jsonl.gz"])
def test_no_part_of_a_source_that_changed_is_used(
    kind: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ms_prefstream.sources.content_hash._SAMPLE_BYTES", 1)  # as with files above 4 MB
    monkeypatch.setattr("ms_prefstream.sources.memory._HASHED_ROWS", 64)  # as with more than 16,384
    path, out, prints = tmp_path / f"rows.{kind}", tmp_path / "out", []
    for answer, expected in (("no", [0, 1]), ("no", [1]), ("NO", [0, 1]), ("NO", [1])):
        source = large_source(kind, path, answer)
        prints.append(stream_of(source, TASK).data.fingerprints()["data"])
        with monkeypatch.context() as patch:
            begun = fail_at(patch, 1, Interrupted())
            with pytest.raises(Interrupted):
                write(source, out, rows_per_part=300)
        assert begun == expected
    assert len(set(prints)) == 1
