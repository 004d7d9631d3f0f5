"""Plain keys, as a YAML file has them, are the options of `mps.stream`; other keys are errors."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import pytest
import yaml

import ms_prefstream as mps
from ms_prefstream.adapters.yaml_keys import stream_from
from ms_prefstream.errors import OptionError
from tests.helpers import json_lines, pairs, rows_of

SECTION = """
source: {rows}
tokenizer: bytes
task: {{type: DPO, max_length: 128}}
batching: {{type: Bucket, boundaries: [96, 128], extra: 1}}
seed: 5
window: 2
shuffle: window
"""


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return json_lines(tmp_path / "rows.jsonl", pairs(13))


def section(path: pathlib.Path, **keys: Any) -> dict[str, Any]:
    made: dict[str, Any] = yaml.safe_load(SECTION.format(rows=path))
    return made | keys


def read(keys: dict[str, Any], **given: Any) -> mps.Stream:
    return stream_from(keys, **{"batch_size": 4} | given)


def test_plain_keys_make_the_stream_that_python_makes(path: pathlib.Path) -> None:
    stream = mps.stream(
        path,
        task=mps.DPO(128),
        tokenizer="bytes",
        batching=mps.Bucket(4, boundaries=(96, 128), extra=1),
        seed=5,
        window=2,
        shuffle="window",
    )
    found = read(section(path))
    assert found.state(3) == stream.state(3)
    assert rows_of(found.batches()) == rows_of(stream.batches())


def test_the_trainers_seed_and_tokenizer_count_where_the_section_has_none(path: pathlib.Path) -> None:
    keys = section(path)
    del keys["seed"], keys["tokenizer"]
    assert read(keys, seed=5, tokenizer="bytes").state(0) == read(section(path)).state(0)
    assert read(section(path), seed=6).state(0) == read(section(path)).state(0)


def test_the_batch_size_may_be_said_once_or_alike(path: pathlib.Path) -> None:
    twice = section(path, batching={"type": "Bucket", "batch_size": 4, "boundaries": [96, 128], "extra": 1})
    assert read(twice).state(0) == read(section(path)).state(0)
    assert read(twice, batch_size=None).batching == mps.Bucket(4, boundaries=(96, 128), extra=1)
    with pytest.raises(OptionError, match=r"batching\.batch_size is 4, but the trainer makes steps of 8 rows"):
        read(twice, batch_size=8)
    with pytest.raises(OptionError, match=r"batching\.batch_size is 4, but the trainer makes steps of 8 rows"):
        read(section(path, batching=mps.Pad(4)), batch_size=8)
    with pytest.raises(OptionError, match=r"batch_size is None and max_tokens is None"):
        read(section(path), batch_size=None)
    with pytest.raises(OptionError, match=r"is 4, but .* 1 rows on a rank .* 1 if it is not set"):
        read(twice, batch_size=1)


def test_a_token_budget_needs_no_batch_size(path: pathlib.Path) -> None:
    budget = {"type": "Bucket", "max_tokens": 1024, "boundaries": [96, 128]}
    rule = mps.Bucket(max_tokens=1024, boundaries=(96, 128))
    mps.stream(path, task=mps.DPO(128), tokenizer="bytes", batching=mps.Pad(4), seed=5).build_index()
    keys = section(path, batching=budget, shuffle=True)
    assert [read(keys, batch_size=size).batching for size in (4, 1, None)] == [rule] * 3
    with pytest.raises(OptionError, match="batch_size is 2 and max_tokens is 1024"):
        read(section(path, batching=budget | {"batch_size": 2}), batch_size=2)


def test_the_source_may_be_called_dataset_dir(path: pathlib.Path) -> None:
    keys = section(path, dataset_dir=str(path))
    assert read(keys).state(0) == read(section(path, dataset_dir="")).state(0)
    del keys["source"]
    assert read(keys).state(0) == read(section(path)).state(0)
    with pytest.raises(OptionError, match=r"source is .* and data_loader\.dataset_dir is 'elsewhere'"):
        read(section(path, dataset_dir="elsewhere"))


def test_a_mix_is_a_section(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    more = json_lines(tmp_path / "more.jsonl", pairs(5, first=20))
    parts = [
        {"source": str(path), "weight": 3, "name": "many"},
        {"source": str(more), "weight": 1, "format": "strings"},
    ]
    stream = read(section(path, source={"mix": parts, "stop": "all"}))
    expected = mps.mix([mps.Part(path, 3, name="many"), mps.Part(more, 1, "strings")], stop="all")
    same = mps.stream(
        expected,
        task=mps.DPO(128),
        tokenizer="bytes",
        batching=mps.Bucket(4, boundaries=(96, 128), extra=1),
        seed=5,
        window=2,
        shuffle="window",
    )
    assert rows_of(stream.batches()) == rows_of(same.batches())
    with pytest.raises(OptionError, match=r"source\.mix\[0\]: wieght is not an option\. Did you mean weight\?"):
        read(section(path, source={"mix": [{"source": str(path), "wieght": 3}]}))
    with pytest.raises(OptionError, match="expects mix: with a list of parts"):
        read(section(path, source={"mixed": parts}))


def test_a_format_with_options_is_a_section(tmp_path: pathlib.Path) -> None:
    rows = [{"prompt": "x", "pos_resp": "a", "neg_resp": "b", "pos_type": "p", "neg_type": kind} for kind in "nmnm"]
    path = json_lines(tmp_path / "rows.jsonl", rows)
    keys = section(path, format={"type": "cvalues", "types": [["p", "n"]]}, batching={"type": "Pad"})
    assert read(keys, batch_size=1).steps_per_epoch == 2


def test_tokenized_rows_have_no_tokenizer() -> None:
    rows = [{"prompt_ids": [1, 2], "chosen_ids": [3, n], "rejected_ids": [5]} for n in range(4)]
    keys = {"source": rows, "tokenizer": None, "pad_token_id": 0, "task": {"type": "DPO", "max_length": 9}}
    assert read({**keys, "batching": "Pad"}).steps_per_epoch == 1


def test_the_yaml_of_the_documents_makes_a_stream(path: pathlib.Path) -> None:
    text = (pathlib.Path(__file__).parents[2] / "docs" / "mindformers.md").read_text("utf-8")
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    config = yaml.safe_load(block)
    dataset = config["train_dataset_task"]["dataset_config"]
    assert config["train_dataset_task"]["type"] == "PrefStreamDataset"
    assert dataset["data_loader"].pop("type") == "PrefStreamDataLoader"
    stream = read(dataset["data_loader"] | {"source": str(path), "tokenizer": "bytes"})
    assert stream.column_names == dataset["input_columns"]
    assert (stream.task, stream.batching) == (mps.DPO(1024, layout="concat"), mps.Bucket(4, multiple_of=64))


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"tokeniser": "x"}, r"data_loader\.tokeniser is not an option\. Did you mean tokenizer\?"),
        ({"task": None}, r"data_loader\.task is missing; expected a section such as task: {type: DPO"),
        (
            {"task": "DPO"},
            r"data_loader\.task is 'DPO'; expected a section such as task: {type: DPO, max_length: 1024}",
        ),
        ({"task": ["DPO", 9]}, r"data_loader\.task is \['DPO', 9\]; expected a section such as task: {type: DPO"),
        ({"batching": 8}, r"data_loader\.batching is 8; expected a section such as batching: {type: Bucket, multiple"),
        ({"task": {"max_length": 9}}, r"data_loader\.task\.type is missing; expected one of DPO, Reward, RLHF"),
        ({"task": {"type": "dpo"}}, r"data_loader\.task\.type is 'dpo'; expected one of DPO"),
        ({"task": {"type": "DPO"}}, r"data_loader\.task \(DPO\): max_length is missing"),
        (
            {"task": {"type": "DPO", "max_len": 9}},
            r"task \(DPO\): max_len is not an option\. Did you mean max_length\?",
        ),
        (
            {"batching": {"type": "Bucket", "multiple": 8}},
            r"batching \(Bucket\): multiple is not an option\. Did you mean",
        ),
        ({"format": {"type": "cvalue"}}, r"data_loader\.format\.type is 'cvalue'; expected one of alpaca"),
        ({"source": None}, r"data_loader\.source is missing"),
        ({"num_shards": 2, "shard_id": 0}, r"data_loader\.num_shards is 2, but the parallel mode makes it 4"),
    ],
)
def test_a_wrong_key_is_named(keys: dict[str, Any], sentence: str, path: pathlib.Path) -> None:
    with pytest.raises(OptionError, match=sentence):
        read(section(path, **keys), num_shards=4, shard_id=0)


def test_a_missing_tokenizer_is_asked_for(path: pathlib.Path) -> None:
    keys = section(path)
    del keys["tokenizer"]
    with pytest.raises(OptionError, match=r"data_loader\.tokenizer is missing; expected a directory"):
        read(keys)
