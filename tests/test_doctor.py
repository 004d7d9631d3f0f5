"""`mps.doctor` and ``ms-prefstream doctor``: what data are, what would go wrong, and what mends it."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream.cli import main
from ms_prefstream.encode.tokenizer import load_tokenizer
from tests.helpers import json_lines, pairs

BARE = dataclasses.replace(load_tokenizer("bytes"), chat_template=None, name="bare")


def doctor(source: Any, **options: Any) -> mps.Diagnosis:
    found = mps.doctor(source, **{"task": mps.DPO(128), "tokenizer": "bytes"} | options)
    assert len(str(found).splitlines()) <= 10
    return found


def test_good_data() -> None:
    found = doctor(pairs(120))
    assert found.ok
    assert found.rows == 120
    assert not [one for one in found.findings if one.must]
    assert str(found).startswith("✓ 120 rows read · ")
    assert "every row has both sides" in str(found)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.rows = 3


def test_carried_fields() -> None:
    rows = [{**row, "answer": f"answer {number}"} for number, row in enumerate(pairs(30))]
    assert "'answer'" in str(doctor(rows))
    assert "'answer'" not in str(doctor(rows, carry=["answer"]))
    assert "30 of 30 rows: missing_field" in str(doctor(rows, carry=["reward"]))


def test_at_most_so_many_rows(tmp_path: pathlib.Path) -> None:
    path = json_lines(tmp_path / "rows.jsonl", pairs(2500))
    assert doctor(path).rows == 2000
    assert doctor(path, rows=10).rows == 10
    assert doctor(lambda: iter(pairs(30)), rows=10).rows == 10


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


LONG = [{**row, "prompt": "word " * 30} for row in pairs(50)]
SWAPPED = [{**row, "margin": -1.0} for row in pairs(40)]
ENDS = dataclasses.replace(load_tokenizer("bytes"), pad_token="<|im_end|>")
LONGER = [{"prompt": f"q{row}", "chosen": "long one", "rejected": "x"} for row in range(30)]
ALONE = [{"prompt": f"q{row}"} for row in range(9)]
UNPAIRED = [{"prompt": f"q{row}", "completion": "a", "label": row % 2 == 0} for row in range(30)]
RENDERED = [{**row, "prompt": f"<|im_start|>user\n{row['prompt']}<|im_end|>\n"} for row in pairs(30)]
CASES: dict[str, tuple[Any, dict[str, Any], str, bool]] = {
    "no template": (pairs(40), {"tokenizer": BARE}, "no chat template: prompt and response joined as text", False),
    "too short": (LONG, {"task": mps.DPO(40)}, "48 of 50 rows lose their whole question. max_length=", False),
    "malformed": ([*pairs(30), {"prompt": 3}], {}, "1 of 31 rows: ", False),
    "malformed, dropped": ([*pairs(30), {"prompt": 3}], {"on_bad_row": "drop"}, "1 of 31 rows: ", True),
    "identical": ([*pairs(30), {"prompt": "a", "chosen": "b", "rejected": "b"}], {}, "identical", True),
    "nothing left": ([{"prompt": "a", "chosen": "b", "rejected": "b"}] * 3, {}, "3 of 3 rows: identical", False),
    "empty": ([*pairs(30), {"prompt": "a", "chosen": "", "rejected": "b"}], {}, "empty_response", True),
    "unpaired": (UNPAIRED, {}, "Use mps.KTO", False),
    "labels of a wrong type": (
        [{**row, "label": 1} for row in UNPAIRED], {"task": mps.KTO(60)}, "field 'label' is int 1", False,
    ),
    "steps": (
        [{"prompt": "q", "completions": ["a"], "labels": [True]}] * 9, {}, "Use mps.ProcessReward for such rows", False,
    ),
    "no response": (ALONE, {"task": mps.RLHF(60, 80)}, "9 of 9 rows have no", True),
    "swapped": (SWAPPED, {"format": mps.formats.strings()}, "look swapped", True),
    "turns as text": (
        [{**row, "prompt": json.dumps(answer("x"))} for row in pairs(20)], {}, "JSON text of turns", False,
    ),
    "rendered": (RENDERED, {}, "30 of 30 rows look rendered already", True),
    "duplicates": (pairs(1) * 30, {}, "29 of the first 30 rows repeat", True),
    "one side": (LONGER, {}, "chosen is longer in 30", True),
    "pad": (pairs(30), {"tokenizer": ENDS}, "the pad id 258 is the end token's", True),
    "no file": ("gone.jsonl", {}, "gone.jsonl", False),
    "no tokenizer": (pairs(30), {"tokenizer": "gone"}, "gone", False),
    "text without tokenizer": (pairs(30), {"tokenizer": None}, "tokenizer=None is for rows", False),
    "no reward token": (pairs(30), {"task": mps.Reward(90, layout="reward_token")}, "no reserved token", False),
    "no room": (pairs(30), {"task": mps.DPO(11)}, "takes 12", False),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_would_go_wrong(case: str) -> None:
    source, options, said, ok = CASES[case]
    found = doctor(source, **options)
    assert said in str(found), str(found)
    assert found.ok is ok, str(found)
    assert ("✗" in str(found)) is not ok


def test_an_array_that_is_named_as_lines(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(pairs(30)))
    found = doctor(path)
    assert not found.ok


@pytest.mark.parametrize(("length", "code"), [(128, 0), (40, 1)])
def test_the_command(
    length: int, code: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pairs(60) if length == 128 else LONG
    path = json_lines(tmp_path / "rows.jsonl", rows)
    words = ["doctor", str(path), "--task", "dpo", "--max-length", str(length), "--tokenizer", "bytes"]
    monkeypatch.setattr(sys, "argv", ["ms-prefstream", *words])
    with pytest.raises(SystemExit) as left:
        main.main()
    assert (left.value.code or 0) == code
    shown = capsys.readouterr()
    assert shown.out.startswith(f"✓ {len(rows)} rows read")
    assert "\x1b" not in shown.out + shown.err
    if code:
        assert "--max-length " in shown.out, "remedies name flags"


def test_one_row_is_one_row() -> None:
    assert str(doctor(pairs(1))).startswith("✓ 1 row read · ")
    assert str(mps.stats(pairs(1))).startswith("list · 1 row · ")
