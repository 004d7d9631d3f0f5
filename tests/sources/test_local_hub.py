"""Data sets and tokenizers by their names, from the local caches of Hugging Face and ModelScope."""

from __future__ import annotations

import json
import pathlib
import shutil
import socket
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream.encode.tokenizer import load_tokenizer
from ms_prefstream.errors import SourceError, TokenizerError
from ms_prefstream.sources import open_source
from tests.helpers import json_lines, pairs

NAME = "Intel/orca_dpo_pairs"
COMMIT = "b" * 40


@pytest.fixture(autouse=True)
def home(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Empty caches, a working folder beside them, and no network."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE", "XDG_CACHE_HOME", "MODELSCOPE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was tried"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def snapshot(root: pathlib.Path, kind: str, name: str, commit: str = COMMIT, main: bool = True) -> pathlib.Path:
    folder = root / f"{kind}--{name.replace('/', '--')}"
    found = folder / "snapshots" / commit
    found.mkdir(parents=True)
    if main:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(commit, "utf-8")
    return found


def written(path: pathlib.Path, first: int, number: int) -> pathlib.Path:
    """A file of pairs, of the kind that its suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = pairs(number, first)
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".arrow":
        from datasets.arrow_writer import ArrowWriter

        with ArrowWriter(path=str(path)) as writer:
            for row in rows:
                writer.write(row)
            writer.finalize()
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), "utf-8")
    else:
        json_lines(path, rows)
    return path


def read(source: Any) -> list[Any]:
    opened: Any = open_source(source)
    return list(opened.read(range(len(opened))))


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_the_snapshot_of_a_data_set(
    home: pathlib.Path, monkeypatch: pytest.MonkeyPatch, variable: str, suffix: str
) -> None:
    root = home / "elsewhere"
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv(variable, str(root))
    hub = {"HF_HOME": root / "hub", "XDG_CACHE_HOME": root / "huggingface" / "hub"}.get(variable, root)
    snapshot(hub, "datasets", NAME, "a" * 40, main=False)
    folder = snapshot(hub, "datasets", NAME)
    (folder / "README.md").write_text("text", "utf-8")
    (folder / "dataset_infos.json").write_text("{}", "utf-8")
    written(folder / f"orca_rlhf{suffix}", 0, 8)
    assert read(NAME) == pairs(8)
    stream = mps.stream(NAME, task=mps.DPO(64), tokenizer="bytes", batching=mps.Pad(4))
    assert stream.steps_per_epoch == 2


def test_the_snapshot_is_that_of_the_package(home: pathlib.Path) -> None:
    from huggingface_hub import snapshot_download

    folder = snapshot(home / "hf" / "hub", "datasets", NAME)
    assert snapshot_download(NAME, repo_type="dataset", cache_dir=home / "hf" / "hub", local_files_only=True) == str(
        folder
    )
    written(folder / "train.jsonl", 0, 4)
    assert open_source(NAME).name == str(folder / "train.jsonl")


SPLITS = {
    "shards": (["data/train-00000-of-00002-0a1b.parquet", "data/train-00001-of-00002-0a1b.parquet"], "test"),
    "folders": (["harmless/train.jsonl", "helpful/train.jsonl"], "test"),
    "split folders": (["train/0.jsonl", "train/1.jsonl"], "test"),
    "no names": (["one.jsonl", "two.jsonl"], ""),
}


@pytest.mark.parametrize("case", SPLITS)
def test_several_files_of_one_split_are_taken_in_order(home: pathlib.Path, case: str) -> None:
    files, other = SPLITS[case]
    folder = snapshot(home / "hf" / "hub", "datasets", NAME)
    for at, file in enumerate(files):
        written(folder / file, 4 * at, 4)
    assert read(NAME) == read(f"{NAME}:train") == pairs(8)
    if other:
        written(folder / files[0].replace("train", other), 90, 2)
        assert read(NAME) == pairs(8)
        assert read(f"{NAME}:{other}") == pairs(2, 90)


def test_a_split_must_be_named_where_none_is_called_train(home: pathlib.Path) -> None:
    folder = snapshot(home / "hf" / "hub", "datasets", NAME)
    for at, split in enumerate(("train_prefs", "train_sft", "test_prefs")):
        written(folder / "data" / f"{split}-00000-of-00001.parquet", 4 * at, 4)
    assert read(f"{NAME}:train_sft") == pairs(4, 4)
    for text in (NAME, f"{NAME}:valid"):
        with pytest.raises(
            SourceError, match=r"splits test_prefs, train_prefs, train_sft; name one of them, as Intel/"
        ):
            open_source(text)


def test_the_same_split_in_two_forms_is_refused(home: pathlib.Path) -> None:
    folder = snapshot(home / "hf" / "hub", "datasets", NAME)
    written(folder / "train.jsonl", 0, 4)
    written(folder / "train.parquet", 0, 4)
    with pytest.raises(SourceError, match=r"several forms \(train\.jsonl, train\.parquet\)"):
        open_source(NAME)


def test_snapshots_without_a_main_are_ambiguous(home: pathlib.Path) -> None:
    folder = snapshot(home / "hf" / "hub", "datasets", NAME, "a" * 40, main=False)
    written(folder / "train.jsonl", 0, 4)
    assert read(NAME) == pairs(4)  # the only one
    snapshot(home / "hf" / "hub", "datasets", NAME, "c" * 40, main=False)
    with pytest.raises(SourceError, match=r"several snapshots \(a+, c+\), and refs/main names none"):
        open_source(NAME)


@pytest.mark.parametrize(
    ("name", "folder"), [(NAME, "Intel___orca_dpo_pairs"), ("a/UltraFB", "a___ultra_fb"), ("x", "x")]
)
@pytest.mark.parametrize("variable", ["HF_HOME", "HF_DATASETS_CACHE"])
def test_the_arrow_cache_of_datasets(
    home: pathlib.Path, monkeypatch: pytest.MonkeyPatch, name: str, folder: str, variable: str
) -> None:
    monkeypatch.setenv(variable, str(home / "elsewhere"))
    root = home / "elsewhere" / ("datasets" if variable == "HF_HOME" else "")
    version = root / folder / "default" / "0.0.0" / ("d" * 16)
    short = folder.rpartition("___")[2]
    for at in range(2):
        written(version / f"{short}-train-0000{at}-of-00002.arrow", 4 * at, 4)
    written(version / f"{short}-test.arrow", 90, 2)
    (version / f"cache-{'e' * 16}.arrow").write_bytes(b"what map wrote")
    (version / "dataset_info.json").write_text("{}", "utf-8")
    assert read(name) == pairs(8)
    assert read(f"{name}:test") == pairs(2, 90)
    written(version.with_name("f" * 16) / f"{short}-train.arrow", 0, 1)
    with pytest.raises(SourceError, match="several forms"):
        open_source(name)


def test_the_folder_in_which_datasets_writes() -> None:
    from datasets.naming import camelcase_to_snakecase

    from ms_prefstream.sources.local_hub import _arrow_folders

    for name in ("orca_dpo_pairs", "UltraFeedback", "CValues-Comparison", "hh-rlhf", "HelpSteer3", "SHPv2", "ABCde"):
        (pathlib.Path(f"o___{camelcase_to_snakecase(name)}")).mkdir()
        assert len(_arrow_folders(".", f"o/{name}")) == 1


@pytest.mark.parametrize("folder", ["hub/datasets", "datasets"])
def test_a_data_set_of_modelscope(home: pathlib.Path, folder: str) -> None:
    where = home / "ms" / folder / "damo" / "CValues-Comparison"
    written(where / "train.jsonl", 0, 6)
    written(where / "test.jsonl", 90, 2)
    assert read("damo/CValues-Comparison") == pairs(6)
    assert read("damo/CValues-Comparison:test") == pairs(2, 90)
    dotted = home / "ms" / folder / "damo" / "a___b"
    written(dotted / "train.jsonl", 0, 3)
    assert read("damo/a.b") == pairs(3)


def test_a_path_that_exists_goes_first(home: pathlib.Path) -> None:
    written(snapshot(home / "hf" / "hub", "datasets", NAME) / "train.jsonl", 0, 4)
    written(pathlib.Path("Intel/orca_dpo_pairs/own.jsonl"), 50, 3)
    assert read(NAME) == pairs(3, 50)


@pytest.mark.parametrize("name", [NAME, "no-such-set", f"{NAME}:train", "../x", "a/b/c"])
def test_what_is_in_no_cache(home: pathlib.Path, name: str) -> None:
    with pytest.raises(SourceError, match="no such file or folder") as caught:
        open_source(name)
    if ".." not in name and name != "a/b/c":
        assert str(home / "hf" / "hub") in str(caught.value)
        assert "nothing is downloaded" in str(caught.value)


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-7B-Instruct", "gpt2"])
def test_a_tokenizer_of_the_hub_cache(home: pathlib.Path, chatml_dir: pathlib.Path, name: str) -> None:
    folder = snapshot(home / "hf" / "hub", "models", name)
    shutil.copytree(chatml_dir, folder, dirs_exist_ok=True)
    found = load_tokenizer(name)
    assert found.name == name
    assert found.fingerprint == load_tokenizer(str(chatml_dir)).fingerprint


@pytest.mark.parametrize(
    "folder",
    [
        "hub/models/Qwen/Qwen2.5-7B-Instruct",
        "models/Qwen/Qwen2___5-7B-Instruct",
        "hub/Qwen/Qwen2___5-7B-Instruct",
        "Qwen/Qwen2.5-7B-Instruct",
    ],
)
def test_a_tokenizer_of_modelscope(home: pathlib.Path, chatml_dir: pathlib.Path, folder: str) -> None:
    snapshot(home / "hf" / "hub", "models", "Qwen/Qwen2.5-7B-Instruct")  # the weights alone
    shutil.copytree(chatml_dir, home / "ms" / folder)
    assert load_tokenizer("Qwen/Qwen2.5-7B-Instruct").chat_template == load_tokenizer(str(chatml_dir)).chat_template


@pytest.mark.parametrize("kind", ["json", "model"])
def test_a_folder_with_a_tokenizer_goes_before_others(
    home: pathlib.Path, chatml_dir: pathlib.Path, sentencepiece_model: pathlib.Path, kind: str
) -> None:
    (snapshot(home / "hf" / "hub", "models", "a/b") / "config.json").write_text("{}")
    source = chatml_dir if kind == "json" else sentencepiece_model.parent
    shutil.copytree(source, home / "ms" / "models" / "a" / "b")
    assert load_tokenizer("a/b").fingerprint == load_tokenizer(source).fingerprint


def test_a_tokenizer_that_is_in_no_cache(home: pathlib.Path) -> None:
    with pytest.raises(TokenizerError, match=r"no tokenizer called 'a/b' is on this machine \(local caches: .*hub"):
        load_tokenizer("a/b")


def ms_dataset(**attributes: Any) -> Any:
    """An object like those of modelscope, which is not imported."""
    kind = type("MsDataset", (), {"__module__": "modelscope.msdatasets.ms_dataset", **attributes})
    return kind()


def test_objects_of_modelscope_are_read_like_those_of_hugging_face() -> None:
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list(pairs(5))
    for found in (ms_dataset(_hf_ds=rows), ms_dataset(to_hf_dataset=lambda self: rows)):
        assert read(found) == pairs(5)
        assert open_source(found).fingerprint() == open_source(rows).fingerprint()
    with pytest.raises(SourceError, match=r"several splits \(train\)"):
        open_source(ms_dataset(_hf_ds=DatasetDict({"train": rows})))
    stream = list(open_source(ms_dataset(_hf_ds=rows.to_iterable_dataset())).start(0))
    assert len(stream) == 5
