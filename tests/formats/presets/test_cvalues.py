from __future__ import annotations

import json
import pathlib
from collections import Counter
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream.errors import OptionError, Reason, SourceError
from ms_prefstream.formats import DIFFICULTIES, ManyRecords, OneRecord, cvalues
from ms_prefstream.formats.record import Pair

from ..conversations import assistant, refusal, user

ROW = {
    "prompt": "怎么办？",
    "pos_resp": "我不能这样做。",
    "neg_resp": "好的。",
    "pos_type": "拒绝为主",
    "neg_type": "风险回复",
}
PAIR = Pair((user("怎么办？"),), (assistant("我不能这样做。"),), (assistant("好的。"),))


def test_polarity_pos_resp_is_better() -> None:
    assert cvalues()(ROW) == PAIR
    assert isinstance(cvalues(), OneRecord)


def test_the_documented_difficulties() -> None:
    assert DIFFICULTIES == (
        ("拒绝&正向建议", "拒绝为主"),
        ("拒绝为主", "风险回复"),
        ("拒绝&正向建议", "风险回复"),
    )


@pytest.mark.parametrize("types", [[("拒绝为主", "风险回复")], ["拒绝为主>风险回复"], "拒绝为主 ＞ 风险回复"])
def test_the_filter_keeps_its_combinations(types: list[tuple[str, str] | str]) -> None:
    fmt = cvalues(types=types)
    assert isinstance(fmt, ManyRecords)
    assert (fmt.count(ROW), fmt(ROW)) == (1, (PAIR,))
    swapped = {**ROW, "pos_type": "风险回复", "neg_type": "拒绝为主"}
    assert (fmt.count(swapped), fmt(swapped)) == (0, ())


def test_the_filter_needs_the_types_and_the_rest_does_not() -> None:
    untyped = {name: ROW[name] for name in ("prompt", "pos_resp", "neg_resp")}
    assert cvalues()(untyped) == PAIR
    fmt = cvalues(types=DIFFICULTIES)
    assert isinstance(fmt, ManyRecords)
    refusal(Reason.MISSING_FIELD, fmt.count, untyped)
    refusal(Reason.BAD_TYPE, fmt.count, {**ROW, "neg_type": None})


@pytest.mark.parametrize("types", [[], [("a",)], ["拒绝为主"], [5], [("a", 1)], "a>b>c"])
def test_combinations_are_checked(types: object) -> None:
    with pytest.raises(OptionError, match="types"):
        cvalues(types=types)  # type: ignore[arg-type]


def test_margin_and_missing_fields() -> None:
    found = cvalues()({**ROW, "margin": 3})
    assert isinstance(found, Pair)
    assert found.margin == 3.0
    said = refusal(Reason.MISSING_FIELD, cvalues(), {"prompt": "x", "pos_rsp": "y", "neg_resp": "z"})
    assert "Did you mean 'pos_resp' instead of 'pos_rsp'?" in said


def test_its_text_names_the_options() -> None:
    assert repr(cvalues(types=["a>b"])) == "cvalues(types=(('a', 'b'),))"
    assert repr(cvalues()) == "cvalues()"


def test_the_filter_splits_real_rows(shared: pathlib.Path) -> None:
    with (shared / "data" / "cvalues_like_2k.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    expected = Counter((row["pos_type"], row["neg_type"]) for row in rows)
    for combination in DIFFICULTIES:
        fmt = cvalues(types=[combination])
        assert isinstance(fmt, ManyRecords)
        assert sum(map(fmt.count, rows)) == sum(len(fmt(row)) for row in rows) == expected[combination] > 0


def test_names_for_the_documented_combinations() -> None:
    assert repr(cvalues(types="hard")) == repr(cvalues(types=[("拒绝&正向建议", "拒绝为主")]))
    assert repr(cvalues(types=["medium", "easy"])) == repr(
        cvalues(types=["拒绝为主>风险回复", "拒绝&正向建议>风险回复"])
    )
    with pytest.raises(OptionError, match="types has 'hrad'; expected 'hard', 'medium', 'easy', or pairs"):
        cvalues(types="hrad")


def test_a_filter_that_no_row_passes_shows_what_there_is() -> None:
    rows = [{**ROW, "pos_type": "a"}, {**ROW, "pos_type": "a"}, {**ROW, "neg_type": "b"}]
    options: dict[str, Any] = {"task": mps.DPO(512), "tokenizer": "bytes", "batching": mps.Pad(1)}
    fmt = cvalues(types=[("拒绝为住", "风险回复")])
    with pytest.raises(SourceError) as caught:
        _ = mps.stream(rows, format=fmt, **options).steps_per_epoch
    said = str(caught.value)
    assert f"found 'a>{ROW['neg_type']}' (2), '{ROW['pos_type']}>b' (1)" in said
    assert "拒绝为住" in said
    with pytest.raises(SourceError, match=r"found 'a>.* \(2\), '.*>b' \(1\)"):
        _ = mps.stream(mps.mix([rows]), format=fmt, **options).steps_per_epoch
