"""Targets: command lines, and the YAML that `--config` and MindFormers' data loader read."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import random
import shutil
import sys
from typing import Any

import click
import yaml

import ms_prefstream as mps
from ms_prefstream.adapters.yaml_keys import stream_from
from ms_prefstream.cli import main
from ms_prefstream.disk import read_yaml
from ms_prefstream.errors import PrefStreamError
from tests.files_on_disk import ZSTD
from tests.fuzz.mutations import TEXTS, json_value, text
from tests.helpers import json_lines, pairs

TASK = "--task dpo --max-length 160 --tokenizer bytes"
STARTS = [
    f"inspect rows.jsonl {TASK}",
    f"inspect rows.jsonl {TASK} --step 1 --batch-size 2 --index none",
    f"inspect rows.jsonl {TASK} --row 3 --tokens --full",
    f"inspect rows.jsonl {TASK} --html report.html --rows 2",
    "inspect --config run.yaml",
    "inspect out --task dpo --max-length 128 --step 0 --batch-size 2 --pad-token-id 259",
    "stats rows.jsonl --tokenizer bytes --task dpo --max-length 160 --json",
    f"doctor rows.jsonl {TASK}",
    "formats --list",
    "formats --detect rows.jsonl",
    f"index rows.jsonl {TASK}",
    f"cache rows.jsonl {TASK} --out new",
    "verify out",
    "merge out",
    "init rows.jsonl --task dpo --tokenizer bytes --out made",
]
VALUES = [
    "rows.jsonl", "rows.jsonl.zst", "out", "run.yaml", "x.mprefidx", "missing.jsonl", "*.jsonl", "-", "bytes",
    "none", "auto", "dpo", "reward", "rlhf", "kto", "process-reward", "prompts", "true", "false", "mask", "1", "2",
    "3", "16", "64", "0", "-1", "2147483648", "9" * 30, "1.5", "1e3", "nan", "inf", "1,2", "64,160", "1/2", "3/2",
    "test:0.5", "test:2", "margin", "-length", "field:margin", "{}", "[]", '{"prompt": "question"}', '{"a": [1]}',
    "{", "margin=int64", "text", "template.jinja", "{{ messages[0].content }}", "{% for %}", "ragged", "mindrlhf",
    "megatron", "none://a/b", "file:///dev/null", "a" * 300, "\udcff", "concat", "shifted", "drop", "raise", "join",
    "prompt_left", *TEXTS,
]  # fmt: skip
NUMBERS = ["0", "1", "2", "3", "7", "16", "64", "100", "255", "-1", "2147483648", "9" * 30]
PROCESSES = {"--workers", "--processes", "--engine", "--ray-address"}  # a case starts no processes


class _Folder:
    """A folder with rows, a cache and a configuration, the same for each case."""

    place = (
        r"--|mix|part ranges of|holds no tokenizer|Usage|/|rows|ms-prefstream|data_loader|run\.yaml"
        r"|[a-z_]+(\[\d+\])?( is | has |=)|template|row \d|^quarantine "
    )

    def __init__(self, folder: pathlib.Path) -> None:
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        self._made, self._copy = folder / "made", folder / "a" / "b" / "c"  # so that ../../x stays inside
        self._made.mkdir()
        self._copy.parent.mkdir(parents=True)
        rows = json_lines(self._made / "rows.jsonl", pairs(6))
        (self._made / "rows.jsonl.zst").write_bytes(ZSTD.compress(rows.read_bytes()))
        (self._made / "template.jinja").write_text("{% for m in messages %}{{ m.role + m.content }}{% endfor %}")
        (self._made / "run.yaml").write_text(yaml.safe_dump({"source": "rows.jsonl", **KEYS[0]}))
        stream = mps.stream(rows, task=mps.DPO(128), tokenizer="bytes", batching=mps.Pad(2), verbose=False)
        mps.write_cache(stream, self._made / "out")
        self._reached = False

    def _enter(self) -> None:
        shutil.rmtree(self._copy, ignore_errors=True)
        shutil.copytree(self._made, self._copy)
        os.chdir(self._copy)

    def _command(self, words: list[str]) -> bool:
        """Runs a command; returns whether its function was called. An error that it says is raised."""
        said, before = io.StringIO(), click.Context.invoke

        def invoke(context: click.Context, *args: Any, **kwargs: Any) -> Any:
            self._reached |= context.parent is not None
            return before(context, *args, **kwargs)

        self._reached, code = False, 0
        sys.argv = ["ms-prefstream", *words]
        click.Context.invoke = invoke  # type: ignore[method-assign]
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
                main.main()
        except SystemExit as leave:
            code = int(leave.code or 0)
        finally:
            click.Context.invoke = before  # type: ignore[method-assign]
        assert code in (0, 1, 2), code
        assert "Traceback" not in said.getvalue(), said.getvalue()
        _, mark, error = said.getvalue().rpartition("ms-prefstream: ")
        if code == 2 or (code and mark):
            assert error.strip(), "it fails and says nothing"
            raise PrefStreamError(error)
        return self._reached


class CommandLines(_Folder):
    """Words of a command line."""

    def start(self, draw: random.Random) -> Any:
        return draw.choice(STARTS).split()

    def mutate(self, value: Any, draw: random.Random) -> Any:
        words = list(value)
        at = draw.randrange(1, len(words) + 1)
        values = [number for number, word in enumerate(words) if number and not word.startswith("--")]
        change = draw.randrange(12)
        if change < 7:
            end = next((number for number, word in enumerate(words) if word.startswith("--")), len(words))
            words[end:end] = option_of(words[0], draw)
        elif change < 9 and values:
            words[draw.choice(values)] = draw.choice(VALUES)
        elif change < 10 and values:
            number = draw.choice(values)
            words[number] = text(words[number], draw)
        elif change == 10:
            words[at : at + 1] = [text(words[at], draw)] if at < len(words) and draw.random() < 0.5 else []
        else:
            words.insert(at, draw.choice([*VALUES, "--help", "--"]))
        return words

    def run(self, value: Any) -> bool:
        self._enter()
        return self._command([word for word in value if is_word(word)])

    def is_parsed(self, value: Any) -> bool:
        return self._reached


def is_word(text: str) -> bool:
    """Whether a system can hand a text to a program."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def option_of(name: str, draw: random.Random) -> list[str]:
    """An option of a command, or of `inspect` if there is no such command; its value has the right type as a rule."""
    context = click.Context(main.commands)
    found = main.commands.get_command(context, name) or main.commands.get_command(context, "inspect")
    assert found is not None
    options = [one for one in found.params if isinstance(one, click.Option) and not PROCESSES & {*one.opts}]
    option = draw.choice(options)
    flag = draw.choice([*option.opts, *option.secondary_opts])
    if option.is_flag and draw.random() < 0.9:
        return [flag]
    if draw.random() < 0.2:
        return [flag, draw.choice(VALUES)]
    if isinstance(option.type, click.Choice):
        return [flag, str(draw.choice(list(option.type.choices)))]
    if isinstance(option.type, (click.types.IntParamType, click.types.FloatParamType)):
        return [flag, draw.choice(NUMBERS)]
    return [flag, draw.choice(VALUES)]


KEYS: list[dict[str, Any]] = [
    {"task": {"type": "DPO", "max_length": 160}, "tokenizer": "bytes", "batching": {"type": "Bucket", "batch_size": 2}},
    {
        "task": {"type": "Reward", "max_length": 64, "layout": "reward_token", "reward_token": 259},
        "tokenizer": "bytes", "batching": {"type": "Pad", "batch_size": 2}, "seed": 3, "shuffle": "window",
        "window": 2, "on_bad_row": "drop", "template": None, "drop_remainder": False, "pad_token_id": 259,
    },
    {
        "task": {"type": "RLHF", "max_prompt_length": 48, "seq_length": 96}, "tokenizer": "bytes", "format": "plain",
        "batching": {"type": "Bucket", "batch_size": 1, "boundaries": [64, 96]}, "fields": {"chosen": "chosen"},
        "template_variables": {"enable_thinking": False}, "special_tokens_in_content": "error", "index": None,
    },
    {
        "task": {"type": "DPO", "max_length": 64, "truncation": "prompt_left"}, "tokenizer": "bytes",
        "steps_per_epoch": 2,
        "batching": {"type": "Pack", "tokens": 256, "max_segments": 8}, "carry": {"margin": "float32"}, "num_shards": 1,
        "shard_id": 0, "logical_shards": 2, "longest_first": True, "vocab_size": 300, "quarantine": "bad.jsonl",
    },
]  # fmt: skip
SOURCES: list[Any] = [
    "rows.jsonl",
    ["rows.jsonl", "rows.jsonl"],
    {"mix": [{"source": "rows.jsonl", "weight": 0.7}, {"source": "rows.jsonl", "weight": 1}]},
    {"mix": [{"source": "rows.jsonl", "weight": 1, "format": {"type": "plain"}}], "stop": "all"},
]
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + at)}: &{chr(98 + at)} [{', '.join(['*' + chr(97 + at)] * 9)}]\n" for at in range(12)
)
YAML_WORDS = [
    *TEXTS,
    "&a ",
    "*a",
    "!!python/object:os.system ",
    "!!binary x",
    "? ",
    "<<: *a",
    "- ",
    ": ",
    "\t",
    "---\n",
    "%YAML 9\n",
]


class Yaml(_Folder):
    """A configuration, as data or as text, through one of two doors."""

    def start(self, draw: random.Random) -> Any:
        keys = {"source": draw.choice(SOURCES), **draw.choice(KEYS)}
        if draw.random() < 0.5:
            keys = {"train_dataset": {"data_loader": {"type": "PrefStreamDataLoader", **keys}}}
        return draw.choice(["command", "loader"]), keys, None

    def mutate(self, value: Any, draw: random.Random) -> Any:
        door, keys, written = value
        if written is not None or draw.random() < 0.15:
            before = dumped(keys) if written is None else written
            return door, keys, before + BOMB if draw.random() < 0.1 else text(before, draw, YAML_WORDS)
        return door, json_value(keys, draw), None

    def run(self, value: Any) -> bool:
        door, keys, written = value
        self._enter()
        found = dumped(keys) if written is None else written
        pathlib.Path("run.yaml").write_bytes(found.encode("utf-8", "surrogatepass"))
        if door == "command":
            return self._command(["inspect", "--config", "run.yaml"])
        if not self.is_parsed(value):
            raise PrefStreamError("run.yaml is no section")
        section: Any = read_yaml("run.yaml", PrefStreamError, "the configuration")
        section = section.get("train_dataset", section)
        section = section.get("data_loader", section) if isinstance(section, dict) else section
        if not isinstance(section, dict):
            raise PrefStreamError("run.yaml is no section")
        keys = {str(name): one for name, one in section.items() if name != "type"}
        next(iter(stream_from(keys).batches()))
        return True

    def is_parsed(self, value: Any) -> bool:
        _, keys, written = value
        try:
            return isinstance(yaml.safe_load(dumped(keys) if written is None else written), dict)
        except (yaml.YAMLError, ValueError, RecursionError):
            return False


def dumped(keys: Any) -> str:
    return str(yaml.safe_dump(keys, allow_unicode=True, sort_keys=False))
