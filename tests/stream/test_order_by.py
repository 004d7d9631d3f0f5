"""`order_by`: epochs in the order of a key, on any number of ranks, resumed at any step."""

from __future__ import annotations

import itertools
import json
import pathlib
import re
import zlib
from typing import Any

import numpy as np
import pytest

import ms_prefstream as mps
from ms_prefstream.adapters.yaml_keys import stream_from
from ms_prefstream.lengths import build, open_index
from tests.cli.running import run
from tests.helpers import (
    Row,
    assert_resumes_everywhere,
    assert_same_batches,
    assert_same_rows_for_every_world,
    flat,
    json_lines,
    pairs,
    rows_of,
)

COUNT = 48
TASK = mps.DPO(max_length=128)
KEYS = ("margin", "length", "field:level.hard")
RULES = {"pad": mps.Pad, "bucket": mps.Bucket, "few shapes": lambda size: mps.Bucket(size, max_shapes=2)}


def rows_with_keys(count: int = COUNT) -> list[Row]:
    """Rows whose margin, level and length have three different orders; two neighbours share a level."""
    draw = np.random.default_rng(1)
    margins, levels = draw.permutation(count) / 4 - 3, draw.permutation(count) // 2
    rows = zip(pairs(count), margins.tolist(), levels.tolist(), strict=True)
    return [{**row, "margin": margin, "level": {"hard": level}} for row, margin, level in rows]


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return json_lines(tmp_path / "rows.jsonl", rows_with_keys())


def stream(source: Any, order_by: str | None = "margin", **options: Any) -> mps.Stream:
    given: dict[str, Any] = {"batching": mps.Bucket(batch_size=4), "index": "build", "verbose": False, "window": 3}
    return mps.stream(source, task=TASK, tokenizer="bytes", order_by=order_by, **{**given, **options})


def wanted(order_by: str, index: Any, rows: list[Row]) -> list[int]:
    """The rows in the order of a key; of equal ones the first of the source comes first."""
    keys = {
        "margin": [row["margin"] for row in rows],
        "field:level.hard": [row["level"]["hard"] for row in rows],
        "length": index.lengths.max(axis=1).tolist(),
    }[order_by.removeprefix("-")]
    sign = -1 if order_by.startswith("-") else 1
    return sorted(range(len(rows)), key=lambda row: (sign * keys[row], row))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("order_by", [sign + key for key in KEYS for sign in ("", "-")])
def test_epochs_have_the_order_of_the_key(path: pathlib.Path, order_by: str, rule: str) -> None:
    made = stream(path, order_by, batching=RULES[rule](4), seed=5)
    expected = wanted(order_by, made.data.index, rows_with_keys())
    for epoch in (0, 1):
        assert flat(rows_of(made.batches(epoch))) == expected
        assert flat(made.rows(epoch, step).tolist() for step in range(made.steps_per_epoch)) == expected
    assert f"ordered by {order_by}" in repr(made)


@pytest.mark.parametrize("workers", [0, 2])
def test_noise_moves_rows_by_at_most_its_share(path: pathlib.Path, workers: int) -> None:
    made = stream(path, order_noise=0.125, workers=workers)
    place = {row: at for at, row in enumerate(wanted("margin", made.data.index, rows_with_keys()))}
    epochs = [flat(rows_of(made.batches(epoch))) for epoch in (0, 1)]
    assert epochs[0] != epochs[1]
    for found in epochs:
        assert sorted(found) == list(range(COUNT))
        far = max(abs(place[row] - at) for at, row in enumerate(found))
        assert 0 < far <= COUNT // 8
    assert rows_of(stream(path, order_noise=0.125, seed=1).batches()) != rows_of(made.batches())


def test_every_world_has_the_same_rows(path: pathlib.Path) -> None:
    def make(world: int, rank: int) -> mps.Stream:
        batching = mps.Bucket(batch_size=8 // world)
        return stream(path, order_noise=0.2, batching=batching, num_shards=world, shard_id=rank)

    assert_same_rows_for_every_world(make, (1, 2, 4, 8), COUNT)


@pytest.mark.parametrize("rule", ["bucket", "pack"])
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_runs_resume_at_every_step_also_on_other_ranks(path: pathlib.Path, rule: str, noise: float) -> None:
    batching = {"bucket": mps.Bucket(4), "pack": mps.Pack(tokens=400, batch_size=2)}[rule]
    assert_resumes_everywhere(lambda: stream(path, "-field:level.hard", order_noise=noise, batching=batching))
    halves = {"bucket": mps.Bucket(2), "pack": mps.Pack(tokens=400, batch_size=1)}[rule]
    whole = stream(path, "-field:level.hard", order_noise=noise, batching=batching)
    for rank in range(2):
        options: dict[str, Any] = {"order_noise": noise, "batching": halves, "num_shards": 2, "shard_id": rank}
        half = stream(path, "-field:level.hard", **options).resume(whole.state(3))
        expected = [whole.rows(0, step)[rank::2].tolist() for step in range(3, whole.steps_per_epoch)]
        if rule == "bucket":
            assert [half.rows(0, step).tolist() for step in range(3, half.steps_per_epoch)] == expected
            assert rows_of(half.batches()) == expected
        else:
            assert len(list(half.batches())) == half.steps_per_epoch - 3


def test_packs_hold_neighbours(path: pathlib.Path) -> None:
    made = stream(path, "length", batching=mps.Pack(tokens=400, batch_size=1), window=1)
    steps = [made.rows(0, step) for step in range(made.steps_per_epoch)]
    assert sorted(np.concatenate(steps).tolist()) == list(range(COUNT))
    assert made.data.index is not None
    lengths = made.data.index.keys
    assert all(lengths[one].max() <= lengths[other].min() for one, other in itertools.pairwise(steps))


def test_parts_of_a_mix_are_ordered_with_exact_shares(tmp_path: pathlib.Path) -> None:
    rows = rows_with_keys()
    parts = [json_lines(tmp_path / f"{name}.jsonl", some) for name, some in (("a", rows[:32]), ("b", rows[32:]))]
    made = stream(mps.mix([(parts[0], 2), (parts[1], 1)]), "-margin", batching=mps.Pad(3))
    steps = rows_of(made.batches())
    for begin, end in ((0, 32), (32, COUNT)):
        mine = [row for row in flat(steps) if begin <= row < end]
        assert mine == sorted(range(begin, end), key=lambda row: -rows[row]["margin"])[: len(mine)]
    assert all(sum(row < 32 for row in step) == 2 for step in steps)
    assert_resumes_everywhere(lambda: stream(mps.mix([(parts[0], 2), (parts[1], 1)]), order_noise=0.1))


def test_a_state_belongs_to_its_order(path: pathlib.Path) -> None:
    made = stream(path, order_noise=0.1)
    state = made.state(2)
    for name, other in (
        ("order_by", {"order_by": "-margin"}),
        ("order_noise", {"order_noise": 0.2}),
        ("order_by", {"order_by": None, "order_noise": 0.0, "shuffle": False}),
    ):
        with pytest.raises(mps.StateError, match=f"{name} was"):
            stream(path, **{"order_noise": 0.1, **other}).resume(state)
    plain = stream(path, None, shuffle=False, index=None)
    assert "order_by" not in plain.state(1)
    with pytest.raises(mps.StateError, match="order_by was None"):
        stream(path, "length").resume(stream(path, None, shuffle=False).state(1))


def broken_rows() -> list[Row]:
    rows = rows_with_keys(12)
    del rows[3]["margin"]
    rows[5]["level"] = {}
    rows[6]["level"]["hard"] = "x"
    rows[7]["level"]["hard"] = None
    rows[8]["level"]["hard"] = True
    rows[9]["level"] = 5
    return rows


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("order_by", "missing", "wrong"), [("margin", [4], []), ("-field:level.hard", [6, 8, 10], [7]), ("length", [], [])]
)
def test_rows_without_the_key_are_bad(
    tmp_path: pathlib.Path, order_by: str, missing: list[int], wrong: list[int], workers: int
) -> None:
    path = json_lines(tmp_path / "rows.jsonl", broken_rows())
    quarantine = tmp_path / "bad.jsonl"
    options: dict[str, Any] = {"on_bad_row": "drop", "quarantine": quarantine, "workers": workers}
    for _ in range(2):  # the second stream finds the index
        made = stream(path, order_by, **options, batching=mps.Pad(1))
        origins = {name: [int(one.rpartition(":")[2]) for one in found] for name, found in made.report.origins.items()}
        assert origins == {name: lines for name, lines in (("missing_field", missing), ("bad_type", wrong)) if lines}
        assert sorted(flat(rows_of(made.batches()))) == [row for row in range(12) if row + 1 not in missing + wrong]
    if missing:
        entries = [json.loads(line) for line in quarantine.read_text().splitlines()]
        assert [int(entry["origin"].rpartition(":")[2]) for entry in entries] == sorted(missing + wrong)
        with pytest.raises(mps.RowError, match=f"jsonl:{missing[0]}: .*order_by"):
            stream(path, order_by, index="auto")
        (file,) = tmp_path.glob("*.mprefidx")
        file.unlink()
        with pytest.raises(mps.RowError, match=f"jsonl:{missing[0]}: .*order_by"):
            stream(path, order_by, workers=workers)
    assert len(rows_of(stream(path, None, batching=mps.Pad(1)).batches())) == 12  # without an order they are good


@pytest.mark.parametrize("is_tokenized", [False, True])
def test_both_sides_of_a_pair_have_its_margin(tmp_path: pathlib.Path, is_tokenized: bool) -> None:
    rows = rows_with_keys(12)
    if is_tokenized:
        ids = {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]}
        rows = [{**ids, "margin": row["margin"]} for row in rows]
    path, options = json_lines(tmp_path / "rows.jsonl", rows), {"tokenizer": None, "pad_token_id": 0}
    made = mps.stream(
        path,
        task=mps.KTO(128),
        batching=mps.Pad(batch_size=4),
        order_by="-margin",
        index="build",
        carry=["margin"],
        verbose=False,
        **(options if is_tokenized else {"tokenizer": "bytes"}),
    )
    batches = list(made.batches())
    margins = sorted((row["margin"] for row in rows for _ in range(2)), reverse=True)
    assert flat(batch["margin"].tolist() for batch in batches) == margins
    assert flat(batch["desirable"].tolist() for batch in batches) == [1, 0] * 12


def test_an_unpaired_row_has_no_margin(tmp_path: pathlib.Path) -> None:
    row = {"prompt": "a", "completion": "b", "label": True, "margin": 1}
    with pytest.raises(mps.RowError, match=r'no margin of a pair.*or order by .*"field:margin"'):
        mps.build_index(
            [row], tmp_path / "index", task=mps.KTO(64), tokenizer="bytes", order_by="margin", verbose=False
        )


def test_an_interrupted_pass_raises_the_row_without_the_key(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "CHUNK", 2)
    monkeypatch.setattr(build, "write_contents", lambda *_: 1 / 0)
    path = json_lines(tmp_path / "rows.jsonl", broken_rows())
    with pytest.raises(ZeroDivisionError):
        stream(path, on_bad_row="drop")
    with pytest.raises(mps.RowError, match="jsonl:4: the row has no margin"):
        stream(path)


def test_an_index_of_another_order_is_not_used(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    stream(path, None)
    with pytest.raises(mps.OptionError, match=r'has no length index that holds .*Pass index="build"'):
        stream(path, index="auto")
    stream(path)
    assert stream(path, "-margin", index="auto").data.index is not None
    assert stream(path, "length", index="auto").data.index is not None
    with pytest.raises(mps.OptionError, match="no length index"):
        stream(path, "field:level.hard", index="auto")
    assert len(list(tmp_path.glob("*.mprefidx"))) == 2
    named = tmp_path / "named.mprefidx"
    index = mps.build_index(path, named, task=TASK, tokenizer="bytes", order_by="-margin", verbose=False)
    assert index.order is not None
    assert index.order.tolist() == [row["margin"] for row in rows_with_keys()]
    assert flat(rows_of(stream(path, index=named).batches())) == wanted("margin", index, rows_with_keys())
    with pytest.raises(mps.StateError, match="order_by was 'margin' and is None now"):
        stream(path, None, index=named)
    with pytest.raises(mps.StateError, match=r"order_by was 'margin' and is 'field:level\.hard' now"):
        stream(path, "field:level.hard", index=named)


def test_an_index_with_an_order_is_no_outdated_index_of_other_streams(path: pathlib.Path) -> None:
    stream(path)
    made = stream(path, None, index="auto")
    assert made.data.index is None
    assert not made.report.warnings


def test_a_stream_builds_its_index_again(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    made = stream(path)
    index = made.build_index(tmp_path / "other.mprefidx", "row")
    assert index.order is not None
    assert index.fingerprint["order_by"] == "margin"
    assert flat(rows_of(made.batches())) == wanted("margin", index, rows_with_keys())


def test_the_key_is_a_column_as_well_or_not(path: pathlib.Path) -> None:
    task = mps.DPO(max_length=128, margin=True)
    made = mps.stream(path, task=task, tokenizer="bytes", batching=mps.Pad(4), index="build", order_by="margin")
    margins = np.concatenate([batch["margin"] for batch in made.batches()])
    assert margins.tolist() == sorted(row["margin"] for row in rows_with_keys())
    plain = list(stream(path, batching=mps.Pad(4)).batches())
    assert_same_batches(plain, [{n: c for n, c in batch.items() if n != "margin"} for batch in made.batches()])


def test_a_masked_remainder_and_carried_fields_keep_the_order(path: pathlib.Path) -> None:
    made = stream(
        path, "-field:level.hard", batching=mps.Bucket(5), drop_remainder="mask", carry={"level.hard": "int64"}
    )
    batches = list(made.batches())
    mask = np.concatenate([batch["row_mask"] for batch in batches])
    levels = np.concatenate([batch["hard"] for batch in batches])[mask == 1].tolist()
    assert mask.tolist() == [1] * COUNT + [0] * 2
    assert levels == sorted(levels, reverse=True)


def test_a_side_of_a_split_in_order(path: pathlib.Path) -> None:
    train, _ = mps.split(path, test=0.3)
    rows = list(mps.read(train))
    made = stream(train, "-margin", batching=mps.Pad(1))
    margins = [rows[row]["margin"] for row in flat(made.rows(0, step) for step in range(made.steps_per_epoch))]
    assert margins == sorted(margins, reverse=True)


def test_a_cache_is_ordered_by_length_alone(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    mps.write_cache(stream(path, None), tmp_path / "cache")
    options: dict[str, Any] = {"task": TASK, "tokenizer": None, "batching": mps.Pad(4), "verbose": False}
    made = mps.stream(tmp_path / "cache", order_by="-length", **options)
    assert flat(rows_of(made.batches())) == wanted("-length", made.data.index, rows_with_keys())
    with pytest.raises(mps.OptionError, match="as that of a cache"):
        mps.stream(tmp_path / "cache", order_by="margin", **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"order_by": "size"}, "order_by is 'size'; expected 'margin', 'length' or 'field:NAME'"),
        ({"order_by": "field:"}, "order_by is 'field:'"),
        ({"order_by": 3}, "order_by is 3"),
        ({"order_noise": 1.5}, "order_noise is 1.5"),
        ({"order_by": None, "order_noise": 0.5}, "Give order_by"),
        ({"shuffle": "window"}, "order_by is 'margin', which fixes the order of the rows, but shuffle is 'window'"),
        ({"longest_first": True}, "but longest_first is True"),
        ({"batching": mps.Bucket(max_tokens=4096)}, "order_by='margin' rules out"),
        ({"index": None}, "Pass index="),
    ],
)
def test_options_that_cannot_be_used(path: pathlib.Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(mps.OptionError) as error:
        stream(path, **options)
    assert said in str(error.value)


def test_what_is_read_from_the_front_has_no_order() -> None:
    with pytest.raises(mps.OptionError, match="can only be read from the front"):
        stream(lambda: iter(rows_with_keys()), index="auto")


def test_a_file_with_an_order_is_checked(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    index = stream(path).data.index
    assert index is not None
    assert index.order is not None
    file = pathlib.Path(index.path)
    with file.open("rb") as opened:
        arrays = [np.load(opened) for _ in range(6)]
    assert arrays[3].tolist() == [row["margin"] for row in rows_with_keys()]
    whole, at = bytearray(file.read_bytes()), 4 * 128 + 13 * COUNT
    assert np.frombuffer(whole, "<f8", COUNT, at).tolist() == arrays[3].tolist()
    whole[at : at + 8] = np.array([np.nan]).tobytes()
    whole[-4:] = zlib.crc32(whole[:-132]).to_bytes(4, "little")
    (tmp_path / "bad").write_bytes(whole)
    with pytest.raises(mps.StateError, match="is not finite"):
        open_index(tmp_path / "bad", index.fingerprint, COUNT)
    for end in range(0, len(whole), 97):
        (tmp_path / "bad").write_bytes(file.read_bytes()[:end])
        with pytest.raises(mps.StateError, match="is damaged"):
            open_index(tmp_path / "bad", index.fingerprint, COUNT)


def test_command_line_and_yaml(path: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: Any, capsys: Any) -> None:
    words = ("--task", "dpo", "--max-length", 128, "--tokenizer", "bytes", "--order-by", "-field:level.hard")
    assert run(monkeypatch, "inspect", path, *words, "--step", 0, "--batch-size", 4) == 2
    assert "--order-by is '-field:level.hard'" in " ".join(capsys.readouterr().err.split())
    assert run(monkeypatch, "index", path, *words) == 0
    assert run(monkeypatch, "bench", path, *words, "--order-noise", 0.1, "--repeats", 1) == 0
    capsys.readouterr()
    assert run(monkeypatch, "inspect", path, *words, "--step", 0, "--batch-size", 4) == 0
    shown = capsys.readouterr().out
    expected = rows_of(stream(path, "-field:level.hard", index="auto").batches())[0]
    assert {int(line) - 1 for line in re.findall(r"rows\.jsonl:(\d+)", shown)} == set(expected)
    keys = {
        "source": str(path),
        "task": {"type": "DPO", "max_length": 128},
        "tokenizer": "bytes",
        "batching": {"type": "Pad", "batch_size": 4},
        "order_by": "-field:level.hard",
        "order_noise": 0.1,
        "verbose": False,
    }
    found = stream_from(keys, num_shards=1, shard_id=0)
    assert rows_of(found.batches()) == rows_of(stream(path, "-field:level.hard", order_noise=0.1).batches())
    other = json_lines(tmp_path / "other.jsonl", rows_with_keys())
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps(keys))
    assert run(monkeypatch, "index", other, "--config", config) == 0
    assert len(list(tmp_path.glob("other.jsonl.*.mprefidx"))) == 1
    assert run(monkeypatch, "bench", other, "--config", config, "--repeats", 1) == 0
