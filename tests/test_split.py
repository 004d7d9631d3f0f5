"""`mps.split`: each row on one side, by its prompt and the seed alone, in every kind of source."""

from __future__ import annotations

import json
import pathlib
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ms_prefstream as mps
from ms_prefstream.adapters.yaml_keys import stream_from
from ms_prefstream.split import side_of
from tests.cli.running import run
from tests.helpers import Row, assert_resumes_everywhere, flat, json_lines, pairs, rows_of
from tests.kinds import ONE_PASS, SOURCES, source_of

TASK = mps.DPO(max_length=128)


def numbers(side: Any) -> list[int]:
    """The rows of a side, by the number in their prompts."""
    return [int(row["prompt"].split("#")[1]) for row in mps.read(side)]


def stream(source: Any, **options: Any) -> mps.Stream:
    given: dict[str, Any] = {"batching": mps.Bucket(batch_size=2), "seed": 3, "verbose": False, **options}
    return mps.stream(source, task=TASK, tokenizer="bytes", **given)


@given(
    prompts=st.lists(st.text(max_size=6), min_size=1, max_size=40),
    test=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_a_side_depends_on_the_prompt_and_the_seed_alone(
    prompts: list[str], test: float, seed: int, data: st.DataObject
) -> None:
    rows = [{"id": row, "prompt": prompt, "chosen": "a", "rejected": "b"} for row, prompt in enumerate(prompts)]
    train, test_side = mps.split(rows, test=test, seed=seed)
    found = [[row["id"] for row in side] for side in (train, test_side)]
    assert sorted(flat(found)) == list(range(len(rows)))
    assert all(side == sorted(side) for side in found)  # in the order of the source
    sides = {row: number for number, side in enumerate(found) for row in side}
    by_prompt: dict[str, set[int]] = {}
    for row, prompt in enumerate(prompts):
        by_prompt.setdefault(prompt, set()).add(sides[row])
    assert all(len(found) == 1 for found in by_prompt.values())
    more = [{"id": -1, "prompt": text, "chosen": "c", "rejected": "d"} for text in data.draw(st.lists(st.text()))]
    mixed = data.draw(st.permutations([*rows, *more]))
    again = mps.split(mixed, test=test, seed=seed)[1]
    assert {row["id"] for row in again if row["id"] >= 0} == set(found[1])


def test_one_prompt_in_any_spelling_is_on_one_side() -> None:
    for number in range(40):
        text = f"Why {number}?"
        rows = [
            {"prompt": text, "chosen": "a", "rejected": "b"},
            {"prompt": [{"role": "user", "content": text}], "chosen": "a", "rejected": "c"},
            {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "a"}], "label": True},
            {"instruction": text, "input": "", "output": ["x", "y"]},
            {"prompt": f"  why\u3000\n{number}？".upper(), "chosen": "a", "rejected": "b"},
            {"prompt": text, "system": "Be brief.", "chosen": "a", "rejected": "b"},
            {"question": text, "system": "", "chosen": "a", "rejected": "b"},  # orca
        ]
        assert {len(side) for side in mps.split(rows, test=0.5)} == {0, len(rows)}, number


def test_the_share_is_that_of_the_prompts() -> None:
    rows = pairs(4000)
    assert 0.17 < len(mps.split(rows, test=0.2)[1]) / len(rows) < 0.23
    assert numbers(mps.split(rows, test=0.2)[1]) != numbers(mps.split(rows, test=0.2, seed=1)[1])
    assert set(numbers(mps.split(rows, test=0.1)[1])) < set(numbers(mps.split(rows, test=0.2)[1]))


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_of_source(kind: str, tmp_path: pathlib.Path) -> None:
    rows = pairs(60)
    expected = [numbers(side) for side in mps.split(rows, test=0.3)]
    sides = mps.split(source_of(kind, tmp_path, rows), test=0.3)
    assert [numbers(side) for side in sides] == expected
    assert [hasattr(side, "__len__") for side in sides] == [kind not in ONE_PASS] * 2
    for workers in (0, 2):
        made = [stream(side, drop_remainder=False, workers=workers) for side in sides]
        assert [sorted(set(flat(rows_of(one.batches())))) for one in made] == expected
    assert len({side.fingerprint() for side in sides}) == 2


def test_rows_that_cannot_be_read_are_on_the_train_side_where_they_are_reported(tmp_path: pathlib.Path) -> None:
    lines = [*map(json.dumps, pairs(30)), "{", json.dumps({"prompt": 3}), json.dumps(["x"])]
    random.Random(0).shuffle(lines)
    path = json_lines(tmp_path / "rows.jsonl", lines)
    train, test = mps.split(path, test=0.5)
    made = stream(train, on_bad_row="drop", drop_remainder=False)
    list(made.batches())
    bad = [number for number, line in enumerate(lines, 1) if "chosen" not in line]
    assert sorted(flat(made.report.origins.values())) == sorted(f"{path}:{number}" for number in bad)
    list(stream(test, drop_remainder=False).batches())  # no malformed row


def test_origins_are_those_of_the_file(tmp_path: pathlib.Path) -> None:
    path = json_lines(tmp_path / "rows.jsonl", pairs(30))
    for side in mps.split(path, test=0.5):
        assert [side.origin(row) for row in range(len(side))] == [f"{path}:{row + 1}" for row in numbers(side)]


@pytest.mark.parametrize("index", [None, "build"])
@pytest.mark.parametrize("side", [0, 1])
def test_a_side_resumes_and_has_an_index_beside_the_file(tmp_path: pathlib.Path, index: Any, side: int) -> None:
    path = json_lines(tmp_path / "rows.jsonl", pairs(40))
    stream(path, index=index)
    sides = mps.split(path, test=0.5)
    assert_resumes_everywhere(lambda: stream(mps.split(path, test=0.5)[side], index=index))
    if index is not None:
        indexes = [stream(one).data.index for one in (path, sides[side])]
        assert [one and one.rows for one in indexes] == [40, len(sides[side])]
    with pytest.raises(mps.StateError, match="data was"):
        stream(sides[1 - side], index=None).resume(stream(sides[side], index=None).state(1))


def test_an_index_of_one_side_is_not_used_for_the_other(tmp_path: pathlib.Path) -> None:
    path = json_lines(tmp_path / "rows.jsonl", pairs(40))
    train, test = mps.split(path, test=0.5)
    stream(train, index="build")
    for other in (test, path, mps.split(path, test=0.5, seed=1)[0]):
        made = stream(other)
        assert made.data.index is None
        assert not made.report.warnings  # it is no index of these rows that does not fit any more
    assert stream(train).data.index is not None
    with pytest.raises(mps.StateError, match="rows was"):
        stream(path, index=next(tmp_path.glob("*.mprefidx")))


def test_a_cache_of_a_side(tmp_path: pathlib.Path) -> None:
    path = json_lines(tmp_path / "rows.jsonl", pairs(40))
    _, test = mps.split(path, test=0.5)
    made = stream(test)
    mps.write_cache(made, tmp_path / "cache")
    cached = mps.stream(tmp_path / "cache", task=TASK, tokenizer=None, batching=mps.Pad(1), verbose=False)
    assert sorted(flat(rows_of(cached.batches()))) == numbers(test)
    with pytest.raises(mps.SourceError, match="is a cache"):
        mps.split(tmp_path / "cache")


def test_a_mix_gives_two_mixes_whose_parts_agree() -> None:
    rows = pairs(80)
    train, test = mps.split(mps.mix([(rows[:50], 3), (rows[30:], 1)], stop="all"), test=0.4)
    expected = [set(numbers(side)) for side in mps.split(rows, test=0.4)]
    for side, wanted in zip((train, test), expected, strict=True):
        made = stream(side, drop_remainder=False)
        assert set(flat(rows_of(made.batches()))) == wanted
        assert (made.data.mix() or {})["weights"] == [3, 1]
    with pytest.raises(mps.SourceError, match="has no row on the test side"):
        mps.split(mps.mix([rows, rows[:1]]), test=0.001)


@pytest.mark.parametrize("kind", ["list", "function", "both in a mix", "both in a list"])
def test_a_side_is_split_again_with_the_same_seed(kind: str) -> None:
    rows = pairs(200)
    rest = mps.split(rows if kind != "function" else lambda: iter(rows), test=0.5)[1]
    source = {"both in a mix": mps.mix([rest, rows]), "both in a list": [rest, rest]}.get(kind, rest)
    sides = mps.split(source, test=0.5)
    if kind == "both in a mix":  # one prompt is on one side, whether its row was split before or not
        found = [{row for part in side.parts for row in numbers(part.source)} for side in sides]
        assert not found[0] & found[1]
        assert min(map(len, found)) > 50
    else:
        found = [set(numbers(side)) for side in sides]
        assert found[0] | found[1] == set(numbers(rest))
        assert min(map(len, found)) > 25


@pytest.mark.parametrize(
    "options", [{"by": "field:talk"}, {"fields": {"prompt": "q"}}, {"format": lambda row: row["q"]}]
)
def test_an_option_that_finds_nothing_to_split_by(options: dict[str, Any]) -> None:
    with pytest.raises(mps.SourceError, match=r"has no row with .* all rows would be on the train side"):
        mps.split(pairs(4), **options)


@pytest.mark.parametrize("text", ["train:1e400", "test:1e400", "test:1e-400", "test:0", "test:1/0", "dev:0.1", "test"])
def test_sides_that_cannot_be_named(text: str) -> None:
    with pytest.raises(mps.OptionError, match=f"split is '{text}'"):
        side_of(pairs(4), text)


def test_by_a_field() -> None:
    rows = [{**row, "meta": {"talk": number // 4}} for number, row in enumerate(pairs(80))]
    rows[7]["meta"] = {}
    train, test = mps.split(rows, test=0.5, by="field:meta.talk")
    talks = [{number // 4 for number in numbers(side) if number != 7} for side in (train, test)]
    assert not talks[0] & talks[1]
    assert all(talks)
    assert 7 in numbers(train)


def test_ranked_rows_stay_together() -> None:
    rows = [{"prompt": f"#{row}#", "responses": ["a", "b", "c"], "scores": [3, 2, 1]} for row in range(40)]
    sides = mps.split(rows, test=0.5, format=mps.formats.ranked(policy="all"))
    found = [set(flat(rows_of(stream(side, format=mps.formats.ranked(policy="all")).batches()))) for side in sides]
    assert not found[0] & found[1]
    assert [len(side) for side in found] == [len(side) for side in sides]


def test_what_can_be_read_once_has_no_two_sides() -> None:
    with pytest.raises(mps.SourceError, match="can be read only once"):
        mps.split(iter(pairs(4)))


@pytest.mark.parametrize("options", [{"test": 0}, {"test": 1.0}, {"test": "x"}, {"seed": -1}, {"by": "text"}])
def test_options_that_cannot_be_used(options: dict[str, Any]) -> None:
    with pytest.raises(mps.OptionError, match=f"{next(iter(options))} is"):
        mps.split(pairs(4), **options)


def split_file(tmp_path: pathlib.Path) -> tuple[pathlib.Path, list[list[Row]]]:
    path = json_lines(tmp_path / "rows.jsonl", pairs(100))
    return path, [list(side) for side in mps.split(path, test=0.02)]


def test_command_line(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    path, (train, test) = split_file(tmp_path)
    assert 0 < len(test) < 10
    for side, rows in (("train:0.98", train), ("test:0.02", test)):
        assert run(monkeypatch, "stats", path, "--split", side, "--json") == 0
        assert json.loads(capsys.readouterr().out)["rows"] == len(rows)
        common = ("--split", side, "--task", "dpo", "--max-length", 128, "--tokenizer", "bytes")
        assert run(monkeypatch, "index", path, *common) == 0
        assert f"{len(rows)} of {len(rows)} rows" in capsys.readouterr().out
        out = tmp_path / side[:4]
        assert run(monkeypatch, "cache", path, out, *common, "--workers", 0) == 0
        assert f"{len(rows)} of {len(rows)} rows" in capsys.readouterr().out
        assert run(monkeypatch, "inspect", path, *common, "--rows", len(rows)) == 0
        assert capsys.readouterr().out.count(f"{path.name}:") == len(rows)
        assert run(monkeypatch, "bench", path, *common, "--batch-size", 1, "--repeats", 1) == 0
        assert run(monkeypatch, "doctor", path, *common) in (0, 1)
        assert f"✓ {len(rows)} row" in capsys.readouterr().out
    assert run(monkeypatch, "stats", path, "--split", "test") == 2
    assert "--split is 'test'" in capsys.readouterr().err


def test_yaml(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    path, (train, test) = split_file(tmp_path)
    keys = {
        "source": str(path),
        "split": "test:0.02",
        "task": {"type": "DPO", "max_length": 128},
        "tokenizer": "bytes",
        "batching": {"type": "Pad", "batch_size": 1},
    }
    made = stream_from({**keys, "verbose": False}, num_shards=1, shard_id=0)
    assert sorted(flat(rows_of(made.batches()))) == [int(row["prompt"].split("#")[1]) for row in test]
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps(keys))
    assert run(monkeypatch, "index", path, "--config", config, "--split", "train:0.98") == 0
    assert f"{len(train)} of {len(train)} rows" in capsys.readouterr().out
    assert run(monkeypatch, "index", path, "--config", config) == 0
    assert f"{len(test)} of {len(test)} rows" in capsys.readouterr().out
