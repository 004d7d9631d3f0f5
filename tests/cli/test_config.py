"""`--config`: a YAML file gives the same stream as `mps.stream`, and flags go before its keys."""

from __future__ import annotations

import itertools
import pathlib
import shutil
from typing import Any

import click
import pytest
import yaml

import ms_prefstream as mps
from ms_prefstream.adapters.yaml_keys import stream_from
from ms_prefstream.cli import main
from ms_prefstream.cli.building import make_stream
from ms_prefstream.demo import data_path
from tests.cli.running import run

KEYS: dict[str, Any] = {
    "source": data_path(),
    "tokenizer": "bytes",
    "task": {"type": "DPO", "max_length": 200, "layout": "concat"},
    "batching": {"type": "Bucket", "batch_size": 4, "boundaries": [64, 200]},
    "seed": 3,
    "shuffle": "window",
}

BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join(f'*{before}' for _ in range(9))}]\n"
    for before, name in itertools.pairwise("abcdefghijkl")
)


def written(folder: pathlib.Path, content: Any) -> str:
    path = folder / "run.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(path)


def stream_of(*words: str) -> mps.Stream:
    """The stream that `bench` would measure."""
    command = main.commands.get_command(click.Context(main.commands), "bench")
    assert command is not None
    context = command.make_context("bench", [*words, "--quiet"])
    options = {name: value for name, value in context.params.items() if name not in ("source", "repeats")}
    with context:
        return make_stream(context.params["source"], options)


def same(found: mps.Stream, expected: mps.Stream) -> bool:
    states = [{**one.state(5), "world": 1} for one in (found, expected)]
    return states[0] == states[1] and repr(found.batching) == repr(expected.batching)


CHANGES: list[dict[str, Any]] = [
    {},
    {"shuffle": False, "template": None, "pad_token_id": 0},
    {"carry": ["types", "prompt"]},
    {"drop_remainder": False},
    {"drop_remainder": "mask"},
    {"carry": {"types": "text", "at": ["int64", 3]}},
    {"batching": {"type": "Pad", "batch_size": 4, "length": 256}},
    {
        "batching": {"type": "Pack", "batch_size": 2, "tokens": 800},
        "steps_per_epoch": 5,
        "task": {"type": "DPO", "max_length": 200},
    },
    {"task": {"type": "Reward", "max_length": 128, "margin": False}, "on_bad_row": "drop", "window": 3},
    {"task": {"type": "RLHF", "max_prompt_length": 64, "seq_length": 200, "truncation": "right"}},
    {"format": {"type": "messages"}, "workers": 0, "longest_first": True},
    {"source": {"mix": [{"source": data_path(), "weight": 0.7}, {"source": data_path(), "weight": 0.3}]}},
    {"source": [data_path()]},
]


@pytest.mark.parametrize("change", CHANGES)
def test_the_keys_give_the_stream_of_mindformers(change: dict[str, Any], tmp_path: pathlib.Path) -> None:
    keys = KEYS | change
    expected = stream_from(keys, num_shards=1, shard_id=0)
    assert same(stream_of("--config", written(tmp_path, keys)), expected)
    assert same(stream_of("--config", written(tmp_path, {"data_loader": keys})), expected)


def test_a_whole_configuration_of_mindformers(tmp_path: pathlib.Path) -> None:
    loader = {**KEYS, "type": "PrefStreamDataLoader", "batching": {"type": "Bucket", "boundaries": [64, 200]}}
    whole = {"runner_config": {"batch_size": 6}, "train_dataset": {"data_loader": loader, "input_columns": ["labels"]}}
    found = stream_of("--config", written(tmp_path, whole))
    assert found.batching.batch_size == 6
    assert same(found, stream_from(KEYS | {"batching": loader["batching"]}, batch_size=6, num_shards=1, shard_id=0))


@pytest.mark.parametrize(
    ("words", "change"),
    [
        (["--seed", "9"], {"seed": 9}),
        (["--max-length", "150", "--task-layout", "paired"], {"task": {"type": "DPO", "max_length": 150}}),
        (["--batch-size", "2"], {"batching": {"type": "Bucket", "batch_size": 2, "boundaries": [64, 200]}}),
        (["--multiple-of", "32", "--boundaries", "96,200"], None),
        (["--pad"], {"batching": {"type": "Pad", "batch_size": 4}}),
        (["--task", "reward"], {"task": {"type": "Reward", "max_length": 200}}),
        (["--task", "dpo"], {}),
        (["--drop-remainder", "mask"], {"drop_remainder": "mask"}),
        (["--no-drop-remainder"], {"drop_remainder": False}),
        (["--carry", "prompt", "--carry", "at:int64=3"], {"carry": {"prompt": None, "at": ["int64", 3]}}),
    ],
)
def test_options_on_the_command_line_go_before_the_file(
    words: list[str], change: dict[str, Any] | None, tmp_path: pathlib.Path
) -> None:
    path = written(tmp_path, KEYS)
    if change is None:
        with pytest.raises(mps.OptionError, match="multiple_of"):
            stream_of("--config", path, *words)
        return
    assert same(stream_of("--config", path, *words), stream_from(KEYS | change, num_shards=1, shard_id=0))


def test_a_source_on_the_command_line_goes_before_the_file(tmp_path: pathlib.Path) -> None:
    other = tmp_path / "other.jsonl"
    shutil.copy(data_path(), other)
    assert stream_of(str(other), "--config", written(tmp_path, KEYS)).data.source.name == str(other)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({**KEYS, "bacthing": 3}, "run.yaml: bacthing is not an option. Did you mean batching?"),
        ({**KEYS, "task": "DPO"}, "run.yaml: task is 'DPO'; expected a section such as task: {type: DPO"),
        (
            {**KEYS, "task": {"type": "PPO"}},
            "run.yaml: task.type is 'PPO'; expected one of DPO, Reward, RLHF, KTO, ProcessReward, Prompts.",
        ),
        ({**KEYS, "task": {"type": "DPO", "max_lenght": 3}}, "run.yaml: task (DPO): max_lenght is not an option."),
        ({**KEYS, "batching": {"type": "Bucket", "length": 3}}, "run.yaml: batching (Bucket): length is not"),
        ({**KEYS, "seed": "x"}, "run.yaml: seed: 'x' is not a valid integer"),
        ({**KEYS, "content_lost": "x"}, "run.yaml: content_lost: 'x' is not one of 'report', 'drop', 'error'"),
        ({**KEYS, "format": {"type": "x"}}, "format.type is 'x'; expected one of"),
        ({**KEYS, "source": {"mix": 3}}, "source is {'mix': 3}; a section there expects mix:"),
        ({"data_loader": 3}, "run.yaml: data_loader is 3; expected a section"),
        ("[1, 2]", "run.yaml: expected keys such as source:"),
        ("{", "run.yaml cannot be read as YAML: while parsing a flow"),
        ("[" * 5000, "run.yaml cannot be read as YAML: maximum recursion"),
        ("source: 2020-99-99", "run.yaml cannot be read as YAML: month must be in 1..12"),
        ("seed: !!int ''", "run.yaml cannot be read as YAML: string index out of range"),
        ("seed: !!bool maybe", "run.yaml cannot be read as YAML: 'maybe'"),
        ("seed: !!timestamp x", "run.yaml cannot be read as YAML: "),
        ("a: &a [*a]", "an alias stands for a value that holds the alias"),
        (BOMB, "its aliases stand for more than 1,048,576 values"),
        ({**KEYS, "tokenizer": {"a": 1}}, "run.yaml: tokenizer: {'a': 1}; expected text, such as bytes or none."),
        ({**KEYS, "seed": {"a": 1}}, "run.yaml: seed is {'a': 1} (dict); expected a value such as --seed takes"),
        ({**KEYS, "quarantine": [["x"]]}, "run.yaml: quarantine is [['x']] (list); expected a value such as"),
        ({name: value for name, value in KEYS.items() if name != "tokenizer"}, "Missing option '--tokenizer'"),
    ],
)
def test_a_wrong_file_is_one_sentence_and_exit_code_2(
    content: Any, said: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "bench", "--config", written(tmp_path, content)) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize("command", ["inspect", "doctor", "index", "cache", "bench"])
def test_every_command_that_reads_rows_takes_it(
    command: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "pairs.jsonl"
    shutil.copy(data_path(), source)
    words = {"cache": [tmp_path / "out"], "bench": ["--repeats", "1"]}.get(command, [])
    assert run(monkeypatch, command, "--config", written(tmp_path, {**KEYS, "source": str(source)}), *words) == 0
    said = capsys.readouterr()
    assert said.out
    assert "pairs.jsonl" in said.out + said.err or command == "doctor"
