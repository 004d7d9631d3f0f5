"""Every mistake of a user ends in one sentence: where, what was found, what was expected, what to do."""

from __future__ import annotations

import functools
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream.errors import OptionError, PrefStreamError, RowError, SourceError, TemplateError, TokenizerError
from tests.helpers import json_lines, pairs

GOOD = pairs(8)
MISTAKES: dict[str, tuple[dict[str, Any], type[PrefStreamError], str]] = {
    # Sources
    "missing file": ({"source": "nowhere.jsonl"}, SourceError, r"nowhere\.jsonl: no such file .* Correct the path"),
    "glob": ({"source": "no*thing.jsonl"}, SourceError, r"no\*thing\.jsonl: the pattern matches no file"),
    "one of a list": ({"source": ["good.jsonl", "nowhere.jsonl"]}, SourceError, r"nowhere\.jsonl: no such file"),
    "twice": ({"source": ["good.jsonl", "./good.jsonl"]}, SourceError, r"named twice"),
    "empty file": ({"source": "empty.jsonl"}, SourceError, r"empty\.jsonl: found no rows, expected at least one\. "),
    "blank file": ({"source": "blank.jsonl"}, SourceError, r"blank\.jsonl: found no rows, expected at least one\. "),
    "empty folder": ({"source": "folder"}, SourceError, r"folder: found no data files"),
    "unknown suffix": ({"source": "rows.csv"}, SourceError, r"rows\.csv: found the suffix '\.csv', expected one of"),
    "list of numbers": ({"source": [1, 2]}, SourceError, r"Item 0 of the list: The source is of type int; expected"),
    "no rows at all": (
        {"source": lambda: iter(()), "steps_per_epoch": 3},
        SourceError,
        r"found no rows, expected at least one\. Check",
    ),
    "index": ({"index": 5}, OptionError, r"index is 5; expected 'auto', 'build', the path of a length index, or None"),
    "not a source": ({"source": 3}, SourceError, r"of type int; expected a path"),
    # Rows
    "bad json": ({"source": "json.jsonl"}, RowError, r"json\.jsonl:2: the line is not valid JSON: .* \[bad_json\]\. "),
    "not a row": ({"source": "number.jsonl"}, RowError, r"number\.jsonl:2: the row is int 3; expected an object"),
    "missing field": ({"source": "field.jsonl"}, RowError, r"field\.jsonl:2: .* also needs rejected \[missing_field\]"),
    "named format": (
        {"source": "field.jsonl", "format": "strings"},
        RowError,
        r"field\.jsonl:2: field 'rejected' is missing; found fields: chosen, prompt \[missing_field\]\. Rename",
    ),
    "wrong type": (
        {"source": "type.jsonl"},
        RowError,
        r"type\.jsonl:2: field 'prompt' is int 3; expected a .*bad_type",
    ),
    "unknown role": (
        {"source": "role.jsonl"},
        RowError,
        r"role\.jsonl:2: turn 1 of .* 'wizard'; known roles: .*Rename",
    ),
    "special token": (
        {"source": "token.jsonl", "special_tokens_in_content": "error"},
        RowError,
        r"token\.jsonl:2: the user turn holds the control token '<\|im_end\|>'.*\[special_token\]\. Remove it",
    ),
    "no margin": (
        {"source": "plain.jsonl", "task": mps.DPO(128, margin=True)},
        RowError,
        r"plain\.jsonl:\d+: the row has no margin; expected a number",
    ),
    "no pair": ({"source": "prompt.jsonl"}, RowError, r"prompt\.jsonl:\d: .*rejected.* \[missing_field\]\. "),
    # Formats
    "unknown format": ({"format": "nope"}, OptionError, r"format is 'nope'; known formats: auto, alpaca"),
    "format of another kind": ({"format": 3}, OptionError, r"format is 3; expected the name of a preset"),
    "function that fails": ({"format": lambda row: row["x"]}, RowError, r"good\.jsonl:\d: .* raised KeyError: 'x'"),
    "function without rows": ({"format": lambda row: 5}, RowError, r"returned int 5; expected a row"),
    # Tokenizers and templates
    "folder without tokenizer": ({"tokenizer": "folder"}, TokenizerError, r"folder holds no tokenizer: expected"),
    "missing tokenizer": (
        {"tokenizer": "gone"},
        TokenizerError,
        r"no tokenizer called 'gone' .* nothing is downloaded",
    ),
    "not a tokenizer": (
        {"tokenizer": 5},
        TokenizerError,
        r"an object of type int is not a tokenizer\. Pass a directory",
    ),
    "backend": ({"backend": "x"}, OptionError, r"backend is 'x'; expected one of auto"),
    "backend that cannot": ({"backend": "tiktoken"}, TokenizerError, r"tokenizer 'bytes' has none"),
    "text without tokenizer": ({"tokenizer": None, "pad_token_id": 0}, OptionError, r"the source has rows with text"),
    "no pad id": ({"tokenizer": None}, OptionError, r"these need pad_token_id, .* Pass pad_token_id=<id>"),
    "pad id": ({"pad_token_id": 260}, OptionError, r"pad_token_id is 260; .* tokenizer bytes has the ids 0 to 259"),
    "pad id of no kind": ({"pad_token_id": "x"}, OptionError, r"pad_token_id is 'x'; expected the id of a token"),
    "template": ({"template": "nope"}, OptionError, r"template is 'nope'; expected 'auto'"),
    "template file": ({"template": "gone.jinja"}, TemplateError, r"gone\.jinja does not exist"),
    "template text": ({"template": "{% if %}"}, TemplateError, r"does not compile: line 1"),
    "boundary": ({"boundary": "x"}, OptionError, r"boundary is 'x'; expected 'auto', 'joint' or 'inference'"),
    "special tokens": ({"special_tokens_in_content": "x"}, OptionError, r"special_tokens_in_content is 'x'; expected"),
    # Tasks and batching
    "task by name": ({"task": "dpo"}, OptionError, r"task is 'dpo'; expected an object such as mps\.DPO"),
    "task class": ({"task": mps.DPO}, OptionError, r"task is DPO; expected an object such as"),
    "batching number": ({"batching": 8}, OptionError, r"batching is 8; expected an object such as mps\."),
    "short for the template": ({"task": mps.DPO(11)}, OptionError, r"DPO: max_length is 11, but .* takes 12 .*Raise"),
    "short for the token": (
        {"task": mps.Reward(12, layout="reward_token", reward_token=256)},
        OptionError,
        r"Reward: max_length is 12, but the template takes 13",
    ),
    "short for the prompt": ({"task": mps.RLHF(10, 40)}, OptionError, r"max_prompt_length is 10, .* takes 11 .*Raise"),
    "no reward token": (
        {"task": mps.Reward(60, layout="reward_token")},
        TokenizerError,
        r"no reserved token .* Name one",
    ),
    "boundaries": (
        {"batching": mps.Bucket(2, boundaries=(8,))},
        OptionError,
        r"the last of boundaries is 8.* Add a bou",
    ),
    "pad length": ({"batching": mps.Pad(2, length=8)}, OptionError, r"Pad: length is 8, but .* Give length=128"),
    "large batch": ({"batching": mps.Pad(9)}, OptionError, r"rows=8 is less than one global batch .* at most 8 rows"),
    # Order, ranks and the rest
    "shuffle": ({"shuffle": "x"}, OptionError, r"shuffle='x' is not allowed; expected True, False or 'window'"),
    "seed": ({"seed": -1}, OptionError, r"seed is -1; expected"),
    "window": ({"window": 0}, OptionError, r"window is 0; expected a whole number of at least 1"),
    "drop_remainder": ({"drop_remainder": 1}, OptionError, r"drop_remainder=1 is not allowed; expected True, False or"),
    "longest_first": ({"longest_first": "x"}, OptionError, r"longest_first='x' is not allowed; expected True or False"),
    "num_shards alone": ({"num_shards": 2}, OptionError, r"num_shards is given without shard_id\. Give both"),
    "shard_id": ({"num_shards": 2, "shard_id": 2}, OptionError, r"shard_id is 2; expected .* 0\.\.1"),
    "logical_shards": ({"logical_shards": 3}, OptionError, r"not a multiple of logical_shards=3\. Use a batch_size"),
    "world": (
        {"num_shards": 3, "shard_id": 0, "logical_shards": 4},
        OptionError,
        r"num_shards=3 does not divide logical_shards=4.* Run on 2 or 4 ranks",
    ),
    "on_bad_row": ({"on_bad_row": "x"}, OptionError, r"on_bad_row is 'x'; expected 'raise' or 'drop'"),
    "quarantine": ({"quarantine": 5}, OptionError, r"quarantine is 5; expected the path of a file"),
    "quarantine nowhere": (
        {"quarantine": "gone/bad.jsonl"},
        SourceError,
        r"bad\.jsonl cannot be written: there is no fo",
    ),
    "quarantine folder": ({"quarantine": "folder"}, SourceError, r"folder cannot be written: it is a folder"),
}


@pytest.fixture
def run(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes a stream in a folder of spoiled files and reads an epoch of it."""
    monkeypatch.chdir(tmp_path)
    pathlib.Path("folder").mkdir()
    pathlib.Path("rows.csv").write_text("a,b\n")
    pathlib.Path("empty.jsonl").touch()
    pathlib.Path("blank.jsonl").write_text("\n\n")
    lines = functools.partial(json_lines, rows=GOOD)
    lines(pathlib.Path("good.jsonl"))
    texts = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in GOOD]
    json_lines(pathlib.Path("plain.jsonl"), texts)
    json_lines(pathlib.Path("prompt.jsonl"), [{"prompt": f"#{row}#"} for row in range(8)])
    spoiled = {
        "json": '{"prompt": "x", ',
        "number": 3,
        "field": {"prompt": "x", "chosen": "y"},
        "type": {"prompt": 3, "chosen": "y", "rejected": "z"},
        "role": {"prompt": [{"role": "wizard", "content": "x"}], "chosen": "y", "rejected": "z"},
        "token": {"prompt": "x<|im_end|>", "chosen": "y", "rejected": "z"},
    }
    for name, row in spoiled.items():
        json_lines(pathlib.Path(f"{name}.jsonl"), [GOOD[0], row, GOOD[1]])

    def run(**options: Any) -> Any:
        settings = {
            "source": "good.jsonl",
            "task": mps.DPO(128),
            "tokenizer": "bytes",
            "batching": mps.Pad(1),
        } | options
        return list(mps.stream(settings.pop("source"), **settings).batches())

    return run


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_in_a_sentence(mistake: str, run: Callable[..., Any]) -> None:
    options, kind, sentence = MISTAKES[mistake]
    with pytest.raises(PrefStreamError) as caught:
        run(**options)
    assert type(caught.value) is kind
    text = str(caught.value)
    assert re.search(sentence, text), text
    assert text.endswith(".")
    assert "\n" not in text
    assert ". " in text or "; expected" in text or "; known" in text  # a remedy, or what is expected


@pytest.mark.parametrize("index", [None, "build"])
@pytest.mark.parametrize("batching", [mps.Bucket(2), mps.Pack(256)], ids=str)
def test_the_rows_of_an_epoch_that_is_no_number(batching: Any, index: str | None, tmp_path: pathlib.Path) -> None:
    path = json_lines(tmp_path / "rows.jsonl", GOOD)
    packs = {"steps_per_epoch": 1} if index is None and isinstance(batching, mps.Pack) else {}
    stream = mps.stream(path, task=mps.DPO(128), tokenizer="bytes", batching=batching, index=index, **packs)
    for epoch in ([0], "0", -1, 1.5):
        with pytest.raises(OptionError, match=f"epoch is {re.escape(repr(epoch))}.*; expected a whole number in 0"):
            stream.rows(epoch, 0)  # type: ignore[arg-type]


def test_a_missing_tokenizer_is_told_apart_from_none() -> None:
    with pytest.raises(OptionError, match=r"tokenizer is missing; expected .* or None for rows that are"):
        mps.stream("a folder", task=mps.DPO(16), batching=mps.Pad(1))


def test_nothing_of_this_is_refused_without_cause(run: Callable[..., Any]) -> None:
    assert len(run()) == 8
    assert len(run(source=["good.jsonl", "plain.jsonl"], template="chat")) == 16
    assert len(run(source="prompt.jsonl", task=mps.RLHF(11, 12), on_bad_row="drop")) == 8
    assert len(run(quarantine="folder/bad.jsonl", seed=2**32 - 1)) == 8


@pytest.mark.skipif(os.geteuid() == 0, reason="this user may read everything")
def test_a_file_without_read_permission(run: Callable[..., Any]) -> None:
    pathlib.Path("good.jsonl").chmod(0)
    with pytest.raises(SourceError, match=r"good\.jsonl: .*permission"):
        run()
