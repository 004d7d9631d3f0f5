"""Objects and folders of `datasets`."""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import pickle
import sys
from typing import Any

import pytest

from ms_prefstream.errors import SourceError
from ms_prefstream.sources.base import OnePass, RandomAccess
from ms_prefstream.sources.huggingface import HuggingFaceRows
from ms_prefstream.sources.open import open_source

datasets = pytest.importorskip("datasets")

ROWS = [{"n": n, "text": f"第{n}", "turns": [{"role": "user", "content": "x"}] * (n % 3)} for n in range(30)]


@pytest.fixture(scope="module")
def dataset() -> Any:
    return datasets.Dataset.from_list(ROWS)


def test_a_dataset(dataset: Any) -> None:
    source = open_source(dataset)
    assert isinstance(source, HuggingFaceRows)
    assert isinstance(source, RandomAccess)
    assert len(source) == 30
    order = [29, 0, 7, 7, 3]
    assert source.read(order) == [ROWS[row] for row in order]
    assert source.read([]) == []
    assert source.origin(17) == "row 17 of Dataset"
    assert pickle.loads(pickle.dumps(source)).read([4]) == [ROWS[4]]
    with pytest.raises(SourceError, match="there are 30 rows"):
        source.read([30])


def test_rows_are_python_values_whatever_the_format(dataset: Any) -> None:
    assert open_source(dataset.with_format("numpy")).read([3]) == [ROWS[3]]
    assert open_source(dataset.with_format("numpy", columns=["n"])).read([3]) == [{"n": 3}]
    assert type(open_source(dataset.with_format("numpy")).read([3])[0]["n"]) is int
    doubled = dataset.with_transform(lambda batch: {"m": [2 * n for n in batch["n"]]})
    assert open_source(doubled).read([3, 1]) == [{"m": 6}, {"m": 2}]
    with pytest.raises(SourceError, match="requested 2 rows, got 1"):
        open_source(dataset.with_transform(lambda batch: {"m": [1]})).read([3, 1])


def test_views_of_a_dataset(dataset: Any) -> None:
    source = open_source(dataset.shuffle(seed=1).select(range(10)))
    assert len(source) == 10
    assert source.fingerprint() != open_source(dataset).fingerprint()
    assert open_source(datasets.Dataset.from_list(ROWS)).fingerprint() == open_source(dataset).fingerprint()


def test_several_splits(dataset: Any) -> None:
    with pytest.raises(SourceError, match=r'several splits \(train, test\).*dataset\["train"\]'):
        open_source(datasets.DatasetDict(train=dataset, test=dataset))
    with pytest.raises(SourceError, match="several splits"):
        open_source(datasets.IterableDatasetDict(train=dataset.to_iterable_dataset()))


def test_an_empty_dataset() -> None:
    with pytest.raises(SourceError, match="found no rows"):
        open_source(datasets.Dataset.from_list([]))


def test_a_stream_is_one_pass_after_another(dataset: Any) -> None:
    source = open_source(dataset.to_iterable_dataset(num_shards=3))
    assert isinstance(source, OnePass)
    assert not isinstance(source, RandomAccess)
    for skip in (0, 12, 30, 0):
        assert [row for _, row in source.start(skip)] == ROWS[skip:]
    assert next(source.start(12))[0] == "row 12 of IterableDataset"


def test_a_stream_follows_the_epoch_that_its_owner_sets(dataset: Any) -> None:
    stream = dataset.to_iterable_dataset(num_shards=3).shuffle(seed=1, buffer_size=10)
    source = open_source(stream)
    first = list(source.start())
    assert list(source.start()) == first
    stream.set_epoch(1)
    second = list(source.start())
    assert second != first
    assert sorted(row["n"] for _, row in second) == list(range(30))


def test_a_stream_gives_python_values(dataset: Any) -> None:
    source = open_source(dataset.to_iterable_dataset().with_format("numpy"))
    assert type(next(source.start())[1]["n"]) is int


def test_a_stream_resumes_from_its_own_state_once(dataset: Any) -> None:
    for done in (0, 1, 11, 29):
        source = open_source(dataset.to_iterable_dataset(num_shards=3))
        list(itertools.islice(source.start(), done))
        state = json.loads(json.dumps(source.state_dict()))
        other = open_source(dataset.to_iterable_dataset(num_shards=3))
        other.load_state_dict(state)
        assert list(other.start()) == [(f"row {n} of IterableDataset", ROWS[n]) for n in range(done, 30)]
        assert [row for _, row in other.start()] == ROWS


def test_a_saved_folder(dataset: Any, tmp_path: pathlib.Path) -> None:
    dataset.save_to_disk(tmp_path / "one")
    source = open_source(tmp_path / "one")
    assert source.read([29, 2]) == [ROWS[29], ROWS[2]]
    assert source.origin(2) == f"row 2 of {tmp_path / 'one'}"
    before = source.fingerprint()
    os.rename(tmp_path / "one", tmp_path / "moved")
    assert open_source(tmp_path / "moved").fingerprint() == before
    assert open_source([tmp_path / "moved", [{"n": 1}]]).read([30]) == [{"n": 1}]
    (arrow,) = (tmp_path / "moved").glob("*.arrow")
    assert open_source(arrow).read([5]) == [ROWS[5]]


def test_a_saved_folder_of_splits(dataset: Any, tmp_path: pathlib.Path) -> None:
    datasets.DatasetDict(train=dataset, test=dataset).save_to_disk(tmp_path / "all")
    with pytest.raises(SourceError, match=r"several splits \(train, test\).*all/train"):
        open_source(tmp_path / "all")
    assert len(open_source(tmp_path / "all" / "train")) == 30


def test_a_damaged_folder_and_file(tmp_path: pathlib.Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(SourceError, match="the saved data set cannot be loaded"):
        open_source(tmp_path)
    (tmp_path / "x.arrow").write_bytes(b"not arrow")
    with pytest.raises(SourceError, match="not an Arrow stream"):
        open_source(tmp_path / "x.arrow")


def test_without_the_package(dataset: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset.save_to_disk(tmp_path / "one")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SourceError, match='pip install "datasets", or save'):
        open_source(tmp_path / "one")


def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    import socket

    def forbidden(*args: Any, **options: Any) -> None:
        pytest.fail("the network was used")

    monkeypatch.setattr(socket.socket, "connect", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    monkeypatch.chdir(tmp_path)
    for name in ("Anthropic/hh-rlhf", "imdb"):
        with pytest.raises(SourceError, match=r"nothing is downloaded; load it with datasets\.load_dataset"):
            open_source(name)
