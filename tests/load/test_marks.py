"""Duplicates and contaminated rows of a length index, against counts that are made in another way."""

from __future__ import annotations

import json
import pathlib
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ms_prefstream as mps
from ms_prefstream.formats.identity import folded, pair_hash, prompt_hash, question_hash
from ms_prefstream.formats.record import Message, Pair
from ms_prefstream.lengths import LengthIndex, build
from ms_prefstream.lengths.index import CODES
from ms_prefstream.load.loader import SampleLoader
from ms_prefstream.sample import Block
from tests.cli.running import run
from tests.helpers import Row, flat, json_lines, pairs, rows_of

TASK = mps.DPO(max_length=128)
DUPLICATE, CONTAMINATED = CODES[mps.Reason.DUPLICATE], CODES[mps.Reason.CONTAMINATED]


def by_hand(text: str) -> str:
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(text.split())


def expected_verdicts(rows: Sequence[Row], dedup: str | None, excluded: Sequence[str] = ()) -> list[int]:
    """What each row gets; rows with equal sides are bad themselves."""
    seen: set[Any] = set()
    found = []
    for row in rows:
        keys = {
            None: None,
            "row": json.dumps(row, sort_keys=True),
            "prompt": by_hand(row["prompt"]),
            "pair": tuple(by_hand(row[name]) for name in ("prompt", "chosen", "rejected")),
        }
        if row["chosen"] == row["rejected"]:
            found.append(CODES[mps.Reason.IDENTICAL])
        elif by_hand(row["prompt"]) in map(by_hand, excluded):
            found.append(CONTAMINATED)
        elif dedup and keys[dedup] in seen:
            found.append(DUPLICATE)
        else:
            found.append(0)
            seen.add(keys[dedup])
    return found


def built(source: Any, path: pathlib.Path, **options: Any) -> LengthIndex:
    given: dict[str, Any] = {"task": TASK, "tokenizer": "bytes", "verbose": False, **options}
    return mps.build_index(source, path, **given)


WORDS = st.sampled_from(
    ["Why", "why", " WHY\u3000", "ｗｈｙ", "straße", "STRASSE", "é", "e\u0301", "why not", "why  Not"]
)


@pytest.mark.parametrize("dedup", ["row", "pair", "prompt", None])
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "prompt": WORDS,
                "chosen": st.sampled_from(["a", "A", "b "]),
                "rejected": st.sampled_from(["b", "B", "a"]),
            },
            optional={"id": st.integers(0, 2)},
        ),
        min_size=1,
        max_size=30,
    ),
    excluded=st.lists(WORDS, max_size=2),
)
@settings(max_examples=40, deadline=None)
def test_an_independent_count(
    dedup: str | None, rows: list[Row], excluded: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("index") / "x.mprefidx"
    given: Any = [{"prompt": text} for text in excluded]
    index = built(rows, path, dedup=dedup, exclude=given)
    assert index.verdict.tolist() == expected_verdicts(rows, dedup, excluded)
    path.unlink()


def test_text_is_folded_as_it_is_said() -> None:
    for text in ("  Why\u3000ＮＯＴ? ", "ﬃ", "ẞ", "İ", "e\u0301", "a\t\nb", "\x1f", "ͅΑ", "①"):
        assert folded(text) == by_hand(text)
        assert folded(folded(text)) == folded(text)


def repeating(count: int) -> list[Row]:
    """Rows of which each third repeats an earlier one, of different kinds; some have equal sides."""
    rows = pairs(count)
    for row in range(2, count, 3):
        rows[row] = {**rows[row // 2], "id": row} if row % 2 else dict(rows[row // 2])
    for row in range(5, count, 11):
        rows[row]["rejected"] = rows[row]["chosen"]
    return rows


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("dedup", ["row", "pair", "prompt"])
def test_the_file_depends_on_neither_workers_nor_interruptions(
    dedup: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, path = repeating(300), tmp_path / "x.mprefidx"
    exclude = [rows[7], rows[100]]
    monkeypatch.setattr(build, "CHUNK", 32)
    index = built(rows, path, dedup=dedup, exclude=exclude, order_by="margin")
    assert index.verdict.tolist() == expected_verdicts(rows, dedup, [row["prompt"] for row in exclude])
    assert {DUPLICATE, CONTAMINATED, CODES[mps.Reason.IDENTICAL], 0} <= set(index.verdict.tolist())
    wanted = path.read_bytes()
    path.unlink()
    built(rows, path, dedup=dedup, exclude=exclude, order_by="margin", workers=2)
    assert path.read_bytes() == wanted
    path.unlink()
    load, loaded = SampleLoader.samples, []

    def samples(loader: SampleLoader, found: Sequence[Any], *origin: Any) -> Block:
        loaded.append(len(found))
        if len(loaded) == stop:
            raise Interrupted
        return load(loader, found, *origin)

    monkeypatch.setattr(SampleLoader, "samples", samples)
    for stop in (3, 2, 100):
        loaded.clear()
        if stop < 100:
            with pytest.raises(Interrupted):
                built(rows, path, dedup=dedup, exclude=exclude, order_by="margin")
            assert not path.exists()
    built(rows, path, dedup=dedup, exclude=exclude, order_by="margin")
    assert sum(loaded) == 300 - 3 * 32  # two chunks of the first run and one of the second are kept
    assert path.read_bytes() == wanted


def test_an_interrupted_pass_of_other_options_is_begun_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, path = repeating(100), tmp_path / "x.mprefidx"
    monkeypatch.setattr(build, "CHUNK", 16)
    measured = build.Journal.append
    for number, options in enumerate(({"dedup": "pair"}, {"dedup": "row"}, {}, {"exclude": [rows[0]]})):
        calls: list[int] = []

        def append(journal: Any, found: Any, calls: list[int] = calls) -> None:
            calls.append(len(found.verdict))
            if len(calls) == 3:
                raise Interrupted
            measured(journal, found)

        monkeypatch.setattr(build.Journal, "append", append)
        with pytest.raises(Interrupted):
            built(rows, path, **options)
        assert sum(calls) == 48, number  # from the first row on
    monkeypatch.setattr(build.Journal, "append", measured)
    assert built(rows, path, dedup="row").verdict.tolist() == expected_verdicts(rows, "row")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_reports_what_the_index_leaves_out(tmp_path: pathlib.Path, workers: int) -> None:
    rows = repeating(60)
    path, bad = json_lines(tmp_path / "rows.jsonl", rows), tmp_path / "bad.jsonl"
    exclude = json_lines(tmp_path / "eval.jsonl", [{"prompt": rows[4]["prompt"].upper()}])
    wanted = np.array(expected_verdicts(rows, "prompt", [rows[4]["prompt"]]))
    options: dict[str, Any] = {"task": TASK, "tokenizer": "bytes", "verbose": False}
    options |= {"batching": mps.Bucket(batch_size=1), "workers": workers}
    stream = mps.stream(path, **options)
    stream.build_index(None, "prompt", exclude)
    for used in (stream, mps.stream(path, quarantine=bad, **options)):
        assert dict(used.report.dropped) == {
            str(reason): int((wanted == CODES[reason]).sum())
            for reason in (mps.Reason.DUPLICATE, mps.Reason.CONTAMINATED, mps.Reason.IDENTICAL)
        }
        rows_left = np.flatnonzero(wanted == CONTAMINATED)[:5].tolist()
        assert used.report.origins["contaminated"] == [f"{path}:{row + 1}" for row in rows_left]
        kept = sorted(flat(used.rows(0, step).tolist() for step in range(used.steps_per_epoch)))
        assert kept == np.flatnonzero(wanted == 0).tolist()
    assert len(rows_of(stream.batches())) == len(kept)
    manifest = mps.write_cache(stream, tmp_path / "cache", rows_per_part=16)
    cached = mps.stream(tmp_path / "cache", **{**options, "tokenizer": None, "workers": 0})
    assert sorted(flat(rows_of(cached.batches()))) == sorted(flat(rows_of(stream.batches())))
    assert {name: entry["rows"] for name, entry in manifest.dropped.items()} == dict(used.report.dropped)
    assert dict(cached.report.dropped) == dict(used.report.dropped)
    plain = mps.stream(path, **options, index=None)
    with pytest.raises(mps.PrefStreamError, match="exclude"):  # a cache of other rows
        mps.write_cache(plain, tmp_path / "cache")
    entries = [json.loads(line) for line in bad.read_text("utf-8").splitlines()]
    codes = {int(entry["origin"].rpartition(":")[2]) - 1: CODES[mps.Reason(entry["reason"])] for entry in entries}
    assert codes == {row: code for row, code in enumerate(wanted.tolist()) if code}
    assert all(entry["row"] == rows[int(entry["origin"].rpartition(":")[2]) - 1] for entry in entries)


def test_the_index_that_was_built_last_is_used(tmp_path: pathlib.Path) -> None:
    path = json_lines(tmp_path / "rows.jsonl", repeating(60))
    usable = set()
    for dedup in (None, "prompt", "row", None):
        index = built(path, None, dedup=dedup)
        stream = mps.stream(path, task=TASK, tokenizer="bytes", batching=mps.Pad(1), verbose=False)
        assert stream.data.index is not None
        assert stream.data.index.checksum == index.checksum
        assert index.fingerprint.get("dedup") == dedup
        usable.add(index.usable)
    assert len(usable) == 3
    assert len(list(tmp_path.glob("*.mprefidx"))) == 1


def test_pairs_of_one_ranked_row_share_row_and_prompt(tmp_path: pathlib.Path) -> None:
    rows = [
        {"prompt": "Why?", "responses": ["a", "b", "c"], "scores": [3, 2, 1]},
        {"prompt": "How?", "responses": ["a", "b"], "scores": [2, 1]},
        {"prompt": "why?", "responses": ["A", "b", "d", "e"], "scores": [4, 3, 2, 1]},
        {"prompt": "Why?", "responses": ["a", "b", "c"], "scores": [3, 2, 1]},
    ]
    fmt = mps.formats.ranked(policy="all")
    found = {
        dedup: built(rows, tmp_path / dedup, dedup=dedup, format=fmt).verdict.tolist()
        for dedup in ("row", "prompt", "pair")
    }
    kept, left = [0], [DUPLICATE]
    assert found["row"] == kept * 3 + kept + kept * 6 + left * 3
    assert found["prompt"] == kept * 3 + kept + left * 6 + left * 3
    pairs_of_third = [(one, other) for number, one in enumerate("abde") for other in "abde"[number + 1 :]]
    assert [code == 0 for code in found["pair"][4:10]] == [pair != ("a", "b") for pair in pairs_of_third]
    assert found["pair"][10:] == left * 3


def test_system_messages_and_calls_count_for_duplicates_but_not_for_exclusion(tmp_path: pathlib.Path) -> None:
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "a", "rejected": "b", "system": "Be brief."},
        {"prompt": [{"role": "user", "content": "Q"}], "chosen": "a", "rejected": "c"},
    ]
    assert built(rows, tmp_path / "1", dedup="prompt").verdict.tolist() == [0, 0, DUPLICATE]
    assert built(rows, tmp_path / "2", exclude=[{"prompt": "q "}]).verdict.tolist() == [CONTAMINATED] * 3
    assert built(rows, tmp_path / "3", exclude=None).verdict.tolist() == [0] * 3
    turn = (Message("user", "q"),)
    calls = [(Message("assistant", "", {"tool_calls": [{"function": {"name": name}}]}),) for name in "fg"]
    records = [Pair(turn, one, other, tools=tools) for one in calls for other in calls for tools in (None, ({},))]
    assert len({pair_hash(record) for record in records}) == len(records)
    assert len({prompt_hash(record) for record in records}) == 2
    assert len({question_hash(record) for record in records}) == 1
    assert pair_hash(records[0]) == pair_hash(replace(records[0], margin=1.0, origin="x", unread=("y",)))


def test_steps_are_folded_and_their_labels_count(tmp_path: pathlib.Path) -> None:
    row = {"prompt": "q", "completions": ["One", "two"], "labels": [True, False]}
    rows = [
        row,
        {**row, "prompt": " Q", "completions": ["one ", "TWO"]},
        {**row, "completions": ["o", "netwo"]},
        {**row, "completions": ["one two"], "labels": [True]},
        {**row, "labels": [True, True]},
    ]
    found = built(rows, tmp_path / "1", task=mps.ProcessReward(128), dedup="pair").verdict.tolist()
    assert found == [0, DUPLICATE, 0, 0, 0]


def test_rows_that_are_tokenized(tmp_path: pathlib.Path) -> None:
    rows = [{"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [other]} for other in (4, 5, 4)]
    rows.append({"prompt_ids": [1], "chosen_ids": [2, 3], "rejected_ids": [4]})
    assert built(rows, tmp_path / "1", tokenizer=None, dedup="pair").verdict.tolist() == [0, 0, DUPLICATE, 0]
    assert built(rows, tmp_path / "2", tokenizer=None, dedup="prompt").verdict.tolist() == [0, DUPLICATE, DUPLICATE, 0]
    assert built(rows, tmp_path / "3", tokenizer=None, exclude=rows[:1]).verdict.tolist() == [CONTAMINATED] * 3 + [0]


def test_duplicates_of_a_mix_are_those_of_all_parts(tmp_path: pathlib.Path) -> None:
    rows = repeating(60)
    parts = [json_lines(tmp_path / f"{name}.jsonl", some) for name, some in (("a", rows[:25]), ("b", rows[25:]))]
    mix = mps.mix(parts)
    with pytest.raises(mps.OptionError, match="Give a folder"):
        built(mix, None, dedup="pair")  # type: ignore[arg-type]
    index = built(mix, tmp_path / "folder", dedup="pair")
    assert index.verdict.tolist() == expected_verdicts(rows, "pair")
    options: dict[str, Any] = {"task": TASK, "tokenizer": "bytes", "batching": mps.Pad(1), "verbose": False}
    stream = mps.stream(mps.mix(parts, stop="all"), index=tmp_path / "folder", **options)
    assert stream.report.dropped["duplicate"] == expected_verdicts(rows, "pair").count(DUPLICATE)
    assert stream.report.parts[str(parts[1])].dropped["duplicate"] > 0
    assert built(mix, None, exclude=[rows[30]]).verdict.tolist().count(CONTAMINATED) >= 1  # type: ignore[arg-type]


def test_ranked_rows_of_a_mix_repeat_those_of_earlier_parts(tmp_path: pathlib.Path) -> None:
    row = {"prompt": "Why?", "responses": ["a", "b", "c"], "scores": [3, 2, 1]}
    mix = mps.mix([mps.Part(rows, format=mps.formats.ranked(policy="all")) for rows in ([row], [row, row])])
    for dedup in ("row", "prompt", "pair"):
        folder = tmp_path / dedup
        assert built(mix, folder, dedup=dedup).verdict.tolist() == [0] * 3 + [DUPLICATE] * 6
        with pytest.raises(mps.NoUsableRowsError, match="part 1 of the mix"):
            mps.stream(mix, task=TASK, tokenizer="bytes", batching=mps.Pad(1), index=folder)


def test_excluded_data_of_another_format(tmp_path: pathlib.Path) -> None:
    rows = [{"prompt": f"q{row}", "pos_resp": "a", "neg_resp": "b", "pos_type": "", "neg_type": ""} for row in range(4)]
    questions = json_lines(tmp_path / "eval.jsonl", [{"instruction": "Q2", "output": "x"}, {"z": 1}])
    stream = mps.stream(
        rows, task=TASK, tokenizer="bytes", format="cvalues", batching=mps.Pad(1), index=None, verbose=False
    )
    index = stream.build_index(tmp_path / "x", exclude=questions)
    assert index.verdict.tolist() == [0, 0, CONTAMINATED, 0]
    assert [warning.partition(" rows")[0] for warning in stream.report.warnings] == ["exclude: 1"]
    with pytest.raises(mps.SourceError, match="no row with a prompt that can be read"):
        stream.build_index(tmp_path / "x", exclude=[{"z": 1}])
    with pytest.raises(mps.OptionError, match="dedup is 'all'"):
        stream.build_index(tmp_path / "x", dedup="all")


def test_a_split_leaves_nothing_to_exclude(tmp_path: pathlib.Path) -> None:
    rows = repeating(200)
    train, test = mps.split(rows, test=0.2)
    assert CONTAMINATED not in built(train, tmp_path / "x", exclude=test).verdict
    assert CONTAMINATED in built(rows, tmp_path / "x", exclude=test).verdict


def test_command_line(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    rows = repeating(60)
    path = json_lines(tmp_path / "rows.jsonl", rows)
    others = [json_lines(tmp_path / f"{row}.jsonl", [rows[row]]) for row in (3, 4)]
    words = ("index", path, "--task", "dpo", "--max-length", 128, "--tokenizer", "bytes", "--dedup", "pair")
    assert run(monkeypatch, *words, "--exclude", others[0], "--exclude", others[1]) == 0
    shown = capsys.readouterr().out
    wanted = expected_verdicts(rows, "pair", [rows[3]["prompt"], rows[4]["prompt"]])
    assert f"{wanted.count(0)} of 60 rows can be used" in shown
    assert f"duplicate: {wanted.count(DUPLICATE)} (" in shown
    assert f"contaminated: {wanted.count(CONTAMINATED)} (" in shown
