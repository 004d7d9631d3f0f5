"""Which rows, and which side is better: traps 6, 15, 21 and 25."""

from __future__ import annotations

import itertools
import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream.formats import resolve_format
from tests.traps.helpers import END, Tok, pair, rows_of, sides, stream_of, turn

BYTES = Tok("bytes", None)

# One row of each shape; in every one the better answer is "Good".
SHAPES: dict[str, dict[str, Any]] = {
    "strings": pair("Why?", "Good", "Bad"),
    "messages": pair([turn("user", "Why?")], [turn("assistant", "Good")], [turn("assistant", "Bad")]),
    "cvalues": {
        "prompt": "Why?", "pos_resp": "Good", "neg_resp": "Bad", "pos_type": "拒绝为主", "neg_type": "风险回复",
    },
    "sharegpt": {
        "conversations": [{"from": "human", "value": "Why?"}],
        "chosen": {"from": "gpt", "value": "Good"},
        "rejected": {"from": "gpt", "value": "Bad"},
    },
    "hh_rlhf": {"chosen": "\n\nHuman: Why?\n\nAssistant: Good", "rejected": "\n\nHuman: Why?\n\nAssistant: Bad"},
    "orca": {"system": "", "question": "Why?", "chosen": "Good", "rejected": "Bad"},
    "alpaca": {"instruction": "Why?", "input": "", "chosen": "Good", "rejected": "Bad"},
    "stack_exchange": {"question": "Why?", "response_j": "Good", "response_k": "Bad"},
    "shp, A": {"history": "Why?", "human_ref_A": "Good", "human_ref_B": "Bad", "labels": 1, "score_A": 9, "score_B": 3},
    "shp, B": {"history": "Why?", "human_ref_A": "Bad", "human_ref_B": "Good", "labels": 0, "score_A": 3, "score_B": 9},
    "safe_rlhf, 0": {
        "prompt": "Why?", "response_0": "Good", "response_1": "Bad", "better_response_id": 0, "safer_response_id": 1,
    },
    "safe_rlhf, 1": {
        "prompt": "Why?", "response_0": "Bad", "response_1": "Good", "better_response_id": 1, "safer_response_id": 0,
    },
    "helpsteer3, 1": {
        "context": [turn("user", "Why?")], "response1": "Good", "response2": "Bad", "overall_preference": -2,
    },
    "helpsteer3, 2": {
        "context": [turn("user", "Why?")], "response1": "Bad", "response2": "Good", "overall_preference": 1,
    },
    "ultrafeedback": {
        "prompt": "Why?",
        "chosen": [turn("user", "Why?"), turn("assistant", "Good")],
        "rejected": [turn("user", "Why?"), turn("assistant", "Bad")],
        "score_chosen": 8.0,
        "score_rejected": 3.0,
    },
}  # fmt: skip


def answers(rows: list[Any], **options: Any) -> list[tuple[str, str]]:
    return [
        (BYTES.decode(row.chosen.trained), BYTES.decode(row.rejected.trained))
        for row in rows_of(rows, BYTES, **options)
    ]


def test_trap_06_the_format_is_decided_row_by_row() -> None:
    """Rows of every shape in one file read the same whatever stands before them."""
    rows = list(SHAPES.values())
    for order in (rows, rows[::-1], rows[5:] + rows[:5]):
        assert answers(order) == [("Good" + END, "Bad" + END)] * len(rows)
    reordered = [dict(reversed(row.items())) for row in rows]
    assert answers(reordered) == [("Good" + END, "Bad" + END)] * len(rows)


def test_trap_06_an_ambiguous_row_names_the_candidates() -> None:
    """A row that two formats would read differently is an error that names both."""
    row = {**SHAPES["strings"], **SHAPES["cvalues"], "pos_resp": "Bad", "neg_resp": "Good"}
    with pytest.raises(mps.RowError, match=r"ambiguous_format") as caught:
        answers([row], on_bad_row="raise")
    assert "cvalues" in str(caught.value)
    assert "strings" in str(caught.value)
    assert answers([row], format="cvalues") == [("Bad" + END, "Good" + END)]


def test_trap_06_hash_seeds_have_no_say() -> None:
    """Two processes with different hash seeds decide alike."""
    code = (
        "import json, sys; from ms_prefstream.formats import resolve_format as f;"
        "print([f('auto').decide(row).preset for row in json.load(sys.stdin)])"
    )
    rows = json.dumps([row for row in SHAPES.values()])
    found = {
        subprocess.run(
            [sys.executable, "-c", code], input=rows, env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True, cwd=pathlib.Path(mps.__file__).parents[1],
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert found == {str([resolve_format("auto").decide(row).preset for row in SHAPES.values()]) + "\n"}


def test_trap_15_identical_and_tied_pairs(tok: Tok) -> None:
    """Pairs that say nothing about preference are dropped with a reason, and crash nothing."""
    rows = [
        pair("Why?", "Yes", "No"),
        pair("Why?", "Same", "Same"),
        pair("", "Same", "Same"),
        {**SHAPES["helpsteer3, 1"], "overall_preference": 0},
        {
            "chosen": [turn("user", "a"), turn("assistant", "b")],
            "rejected": [turn("user", "a"), turn("assistant", "b")],
        },
        {"prompt_ids": [1], "chosen_ids": [2, 3], "rejected_ids": [2, 3]},
    ]
    stream = stream_of(rows, tok, on_bad_row="raise")  # unusable rows are dropped whatever that option says
    assert len(list(stream.batches())) == len(rows)
    assert stream.report.dropped == {"identical": 4, "tie": 1}


def test_trap_15_identical_only_after_the_template(field: pathlib.Path) -> None:
    """Sides that a trimming template makes equal are identical."""
    tok = Tok(field / "llama3", field / "llama3")
    stream = stream_of([pair("Why?", "Yes", " Yes\n"), pair("Why?", "Yes", "No")], tok, template="auto")
    list(stream.batches())
    assert stream.report.dropped == {"identical": 1}


@pytest.mark.parametrize("name", SHAPES)
def test_trap_21_polarity(name: str) -> None:
    """Every preset puts the better answer on the chosen side, alone and by its own name."""
    assert answers([SHAPES[name]]) == [("Good" + END, "Bad" + END)]
    assert answers([SHAPES[name]], format=name.split(",")[0]) == [("Good" + END, "Bad" + END)]


def test_trap_21_ranks_and_scores() -> None:
    """A high score is good; rank 1 is the best."""
    scored = {"prompt": "Why?", "responses": ["Bad", "Good"], "scores": [1.0, 7.0]}
    assert answers([scored], format=mps.formats.ranked(policy="best_worst")) == [("Good" + END, "Bad" + END)]
    answered = [{"answer": "Bad", "rank": 2.0}, {"answer": "Good", "rank": 1.0}]
    nectar = {"prompt": "\n\nHuman: Why?\n\nAssistant: ", "answers": answered}
    assert answers([nectar], format=mps.formats.nectar(policy="best_worst")) == [("Good" + END, "Bad" + END)]


def test_trap_25_a_bad_row_is_never_replaced_in_silence(tmp_path: pathlib.Path) -> None:
    """A malformed row is an error; dropped on request, it is counted, written aside, and its stand-in is counted."""
    lines = [json.dumps(pair(f"#{n}#", "Yes", "No")) for n in range(8)]
    lines[3] = '{"prompt": "#3#", "chosen":'
    lines[6] = json.dumps({"prompt": "#6#", "chosen": "Yes"})
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for line, reason in ((4, "bad_json"), (7, "missing_field")):
        alone = tmp_path / f"{line}.jsonl"
        alone.write_text("\n".join([*lines[:2], lines[line - 1]]) + "\n", encoding="utf-8")
        with pytest.raises(mps.RowError, match=rf"{line}\.jsonl:3: .*\[{reason}\]"):
            list(stream_of(str(alone), BYTES, on_bad_row="raise").batches())
    aside = tmp_path / "aside.jsonl"
    stream = stream_of(str(path), BYTES, quarantine=aside)
    found = [BYTES.decode(sides(batch).chosen.prompt).split("#")[1] for batch in stream.batches()]
    assert [n for n, row in enumerate(found) if str(n) != row] == [3, 6]
    assert set(found) <= set("012457")
    assert stream.report.dropped == {"bad_json": 1, "missing_field": 1}
    assert stream.report.repeats == 2
    written = [
        json.loads(line) for files in sorted(tmp_path.glob("aside*")) for line in files.read_text("utf-8").splitlines()
    ]
    assert [entry["reason"] for entry in written] == ["bad_json", "missing_field"]
    assert all(left["origin"] != right["origin"] for left, right in itertools.pairwise(written))
