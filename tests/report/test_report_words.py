"""What people read: each finding with its remedy and the share from which it appears, and a whole printed report."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest

import ms_prefstream as mps
from ms_prefstream.encode.tokenizer import load_tokenizer
from ms_prefstream.errors import DroppedRowError, NoUsableRowsError, Reason, RowError
from ms_prefstream.formats.record import Completion, Message, Pair, TokenCompletion, TokenPair
from ms_prefstream.report.bad_rows import BadRows
from ms_prefstream.report.findings import CHECKS, Seen, findings
from ms_prefstream.report.report import PartReport, Report
from ms_prefstream.sample import Block, Loaded, Note, Sample, Sequence

BARE = dataclasses.replace(load_tokenizer("bytes"), chat_template=None, name="bare")
GOOD = Sample((Sequence(np.array([1, 2], np.int32), ((1, 2),)),))


def turn(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def pair(prompt: str = "q", chosen: str = "ab", rejected: str = "cd", **more: Any) -> Pair:
    return Pair(turn(prompt), turn(chosen), turn(rejected), **more)


def said(task: Any = None, **seen: Any) -> list[tuple[str, bool]]:
    found = findings(Seen(task=task or mps.DPO(64), **seen))
    return [(str(one), one.must) for one in found]


def noted(note: Note, count: int, total: int) -> list[Loaded]:
    return [Loaded(GOOD, None, note if row < count else Note.NONE) for row in range(total)]


def test_of_nothing_nothing_is_said() -> None:
    assert said() == said(records=[pair()] * 3, raws=[{"a": 1}] * 3, loaded=noted(Note.NONE, 0, 3)) == []


def test_no_template() -> None:
    text = (
        "no chat template: prompt and response joined as text. The tokenizer bare has none: take one that has, give "
        "template=<Jinja text or .jinja file>, or template=None if that is meant."
    )
    tokens: list[Any] = [TokenPair((1,), (2,), (3,)), TokenCompletion((1,))]
    for records in ([], [pair()], [*tokens, pair()]):
        assert said(records=records, joined=True, tokenizer=BARE) == [(text, True)]
    assert said(records=tokens, joined=True, tokenizer=BARE) == []
    assert said(joined=True) == said(tokenizer=BARE) == []


def test_lengths_that_cut() -> None:
    at_limit, above = noted(Note.TRUNCATED, 20, 100), noted(Note.TRUNCATED, 21, 100)
    assert said(loaded=at_limit) == []
    assert said(loaded=above) == [("max_length 64: 21 of 100 rows are cut. Raise max_length.", False)]
    task = mps.DPO(64, max_prompt_length=32)
    named = "max_prompt_length 32, max_length 64: 21 of 100 rows are cut. Raise max_prompt_length or max_length."
    assert said(task, loaded=above) == [(named, False)]
    few_lost = noted(Note.TRUNCATED | Note.QUESTION_CUT, 5, 100)[:5] + above[5:]
    assert said(loaded=few_lost) == [("max_length 64: 21 of 100 rows are cut. Raise max_length.", False)]
    both_limits = "max_prompt_length 20, seq_length 64: 21 of 100 rows are cut. Raise max_prompt_length or seq_length."
    assert said(mps.RLHF(20, 64), loaded=above) == [(both_limits, False)]
    lengths = {"max_length": [*range(10, 110)], "max_prompt_length": [], "seq_length": [900]}
    keeps = "max_length 64: 21 of 100 rows are cut. max_length=112 keeps 90 % of the rows whole, max_length=112 99 %."
    assert said(loaded=above, lengths=lengths) == [(keeps, False)]
    assert said(loaded=above, lengths={"max_length": [64] * 9})[0][0].endswith("Raise max_length.")
    both = {"max_prompt_length": [33], "max_length": [65] * 99 + [9000]}
    assert said(task, loaded=above, lengths=both)[0][0].endswith(
        "max_prompt_length=48 keeps 90 % of the rows whole, max_prompt_length=48 99 %; "
        "max_length=80 keeps 90 % of the rows whole, max_length=160 99 %."
    )
    lost = noted(Note.QUESTION_CUT | Note.TRUNCATED, 6, 100)
    assert said(loaded=lost) == [("max_length 64: 6 of 100 rows lose their whole question. Raise max_length.", True)]
    assert said(loaded=noted(Note.QUESTION_CUT, 5, 100)) == []
    dropped = [Loaded(None, DroppedRowError(Reason.TIE, "equal"))] * 100
    assert said(loaded=above + dropped)[-1][0].startswith("max_length 64: 21 of 100 rows"), "of the rows that are kept"


def test_fields_that_nothing_reads() -> None:
    rows = [pair(unread=("a", "b")), pair(unread=("b", "c")), pair(unread=("b", "c", "d")), pair(unread=("a",))]
    remedy = (
        'Name it in fields={{"<standard name>": "{0}"}} if it belongs to the text, or in carry if it is to be a '
        "column; else remove it."
    )
    expected = [
        (f"{count} of 4 rows hold {name!r}, which nothing reads{where}. {remedy.format(name)}", False)
        for name, count, where in (("b", 3, " (first: r0)"), ("a", 2, " (first: r0)"), ("c", 2, " (first: r1)"))
    ]
    assert said(records=rows, origins=["r0", "r1"]) == expected
    assert [text.replace(" (first: r0)", "") for text, _ in expected[:2]] == [text for text, _ in said(records=rows)][
        :2
    ]
    loaded = [Loaded(GOOD, None, Note.NONE, ("z",)), *noted(Note.NONE, 0, 4)]
    assert said(records=rows, loaded=loaded)[0][0].startswith("1 of 5 rows hold 'z', which nothing reads. Name it")


def test_prompts_alone() -> None:
    some: list[Any] = [Completion(turn("q")), Completion(turn("q"), turn("a")), TokenCompletion((1,))]
    text = (
        "2 of 4 rows have no response, so that nothing of them is under the loss. Name the response, as "
        'fields={"response": "answer"}, unless only rollouts use these rows.'
    )
    assert said(mps.RLHF(20, 64), records=[*some, TokenCompletion((1,), (2,))]) == [(text, False)]
    assert said(mps.RLHF(20, 64), records=some[1:2]) == said(records=some) == said(mps.Prompts(20), records=some) == []


@pytest.mark.parametrize("name", ["chosen", "rejected"])
def test_one_side_that_is_longer(name: str) -> None:
    long, same = pair(**{name: "abc"}), pair()
    text = (
        f"{name} is longer in 19 of 20 pairs, so length alone distinguishes the sides. Balance the lengths, or "
        "expect a model that learns them."
    )
    assert said(records=[long] * 19 + [same]) == [(text, False)]
    assert said(records=[long] * 18 + [same] * 2) == said(records=[long] * 19) == said(records=[same] * 20) == []
    tokens = [TokenPair((1,), (2, 3), (4,))] * 30
    assert said(records=tokens) == []


def test_rows_that_repeat() -> None:
    def rows(different: int, copies: int) -> list[Any]:
        return [*({"row": row} for row in range(different)), *({"row": 0} for _ in range(copies)), None, None]

    assert said(raws=rows(38, 2)) == []
    text = "3 of the first 40 rows repeat another row. Remove the copies."
    assert said(raws=rows(37, 3)) == [(text, False)]
    assert said(raws=rows(1, 18)) == []
    assert len(said(raws=rows(1, 19))) == 1
    assert said(raws=[{"row": 0}] * 30) == [], "one row that gives several records"


def test_margins_that_are_negative() -> None:
    def margins(*given: float | None) -> list[tuple[str, bool]]:
        return said(records=[pair(margin=margin) for margin in given])

    text = (
        'the margin is negative in 2 of 3 pairs: sides look swapped. Swap the sides, as fields={"chosen": "rejected", '
        '"rejected": "chosen"}, or the scores.'
    )
    assert margins(-1.0, -0.5, 0.5, None) == [(text, False)]
    assert margins(-1.0, 0.5) == margins(0.0, 0.0, -1.0) == margins(None) == []


def test_turns_that_are_text() -> None:
    remedy = "Parse it, as format=lambda row: {**row, 'prompt': json.loads(row['prompt'])}."
    texts = ['[{"role": "user"}]', "\n [ { 'from' : 'x'}]", '{"content": 3}', "[{'value':"]
    for text in texts:
        for records in ([pair(text)], [pair(chosen=text)], [pair(rejected=text)], [Completion(turn("q"), turn(text))]):
            (found,) = said(records=[*records, pair()])
            assert found == (f"1 of 2 rows have the JSON text of turns as content. {remedy}", True)
    for text in ('see [{"role": "user"}]', "[1, 2]", '{"name": 3}'):
        assert said(records=[pair(text)]) == []


def test_notes_of_templates() -> None:
    texts = {
        Note.MARKERS: "2 of 9 rows look rendered already: markers would be trained as text. Pass the messages, or "
        'template=None with special_tokens_in_content="allow".',
        Note.CONTENT_LOST: "2 of 9 rows lose words of a trained turn to the chat template. Pass template= that keeps "
        'them, or content_lost="drop".',
    }
    for note, text in texts.items():
        assert said(loaded=noted(note, 2, 9)) == [(text, False)]


def test_rows_that_are_dropped() -> None:
    errors: list[RowError] = [
        DroppedRowError(Reason.TIE, "both are equal"),
        RowError(Reason.BAD_TYPE, "it is no text", "Correct it", "row 7"),
        RowError(Reason.MISSING_FIELD, "there is none"),
        RowError(Reason.MISSING_FIELD, "there is none either"),
    ]
    loaded = [*(Loaded(None, error) for error in errors), *noted(Note.NONE, 0, 2)]
    expected = [
        (
            '2 of 6 rows: missing_field (first: r2: there is none). Correct them, or pass on_bad_row="drop".',
            True,
        ),
        ("1 of 6 rows: bad_type (first: row 7: it is no text). Correct it.", True),
        (
            "1 of 6 rows: tie (first: r0: both are equal). They are left out; both sides have the same score.",
            False,
        ),
    ]
    origins = [f"r{row}" for row in range(6)]
    assert sorted(said(loaded=loaded, origins=origins)) == sorted(expected)
    assert [must for _, must in said(loaded=loaded, origins=origins)] == [True, True, False]
    assert [must for _, must in said(loaded=loaded, origins=origins, drops=True)] == [False] * 3
    assert said(loaded=loaded[:1]) == [
        ("1 of 1 rows: tie (first: : both are equal). They are left out; both sides have the same score.", True)
    ]


REMEDIES = {
    Reason.PROMPT_ENDS_WITH_ANSWER: ' Pass continue_final_message="join" if the response continues that answer.',
    Reason.IDENTICAL: " They are left out; both sides are the same.",
    Reason.TIE: " They are left out; both sides have the same score.",
    Reason.EMPTY_RESPONSE: " They are left out; a side has no text.",
    Reason.TOO_LONG: " Raise the task's length, or choose another truncation.",
    Reason.NO_RESPONSE_TOKENS: " Raise the task's length.",
    Reason.IDENTICAL_AFTER_TRUNCATION: " Raise the task's length.",
    Reason.TEMPLATE_REFUSED: " Pass a template= that takes such conversations.",
}


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_a_remedy_if_it_stops_a_run(reason: Reason) -> None:
    ((text, must),) = said(loaded=[Loaded(None, RowError(reason, "why")), *noted(Note.NONE, 0, 1)])
    usual = ' Correct them, or pass on_bad_row="drop".' if reason.malformed else ""
    assert text == f"1 of 2 rows: {reason} (first: : why).{REMEDIES.get(reason, usual)}"
    assert must == reason.malformed


def test_a_pad_id_that_ends_sequences() -> None:
    text = (
        f"the pad id {BARE.eos_id} is the end token's. Pass pad_token_id=<id of an unused token> if your model masks "
        "by the id instead of the masks here."
    )
    assert said(tokenizer=BARE, pad_id=BARE.eos_id) == [(text, False)]
    assert said(tokenizer=BARE, pad_id=0) == said(pad_id=None) == []
    assert said(tokenizer=dataclasses.replace(BARE, eos_token=None), pad_id=None) == []


def test_checks_can_be_left_out_and_what_must_be_mended_is_first() -> None:
    seen = Seen(task=mps.DPO(64), loaded=noted(Note.MARKERS | Note.QUESTION_CUT, 9, 9), tokenizer=BARE, joined=True)
    assert [one.must for one in findings(seen)] == [True, True, False]
    for check in CHECKS:
        expected = [one for one in findings(seen) if one not in list(check(seen))]
        assert findings(seen, without=[check]) == expected


def full_report() -> Report:
    report = Report(rows=2000, read=1234, filtered=5, repeats=6, repeats_per_epoch=7, remainder_per_epoch=8, left_out=9)
    report.truncated, report.question_cut, report.rewritten, report.boundary_differs = 10, 20, 30, 40
    report.content_lost, report.empty_think, report.markers, report.separator_trimmed = 11, 12, 13, 14
    report.origins = {name: [f"{name}.jsonl:1", f"{name}:2"] for name in ("content_lost", "empty_think", "markers")}
    report.dropped = Counter(tie=50, identical=40, too_long=30, bad_type=20, empty_response=10, missing_field=5)
    report.origins |= {reason: [f"{reason} 1"] for reason in report.dropped}
    report.desirable, report.undesirable = 30, 10
    report.unread, report.origins["unread score"] = Counter(score=3), ["row 3"]
    report.packs_made, report.packs_wanted, report.packs, report.packs_closed = 90, 120, 40, 10
    report.tokens, report.cells, report.widths, report.chosen_widths = 3000, 4000, Counter({64: 2, 128: 1}), (64, 128)
    report.tokenizer, report.template = "name · fast\n  because", "joined as text"
    report.parts = {"a": PartReport(0.25, rows=1000, read=900, repeats_per_epoch=1001, left_out_per_epoch=2002)}
    report.parts["a"].dropped.update(tie=3, identical=4)
    report.left_out_files = {f"file {number}": "a cache" for number in range(6)}
    report.warnings = ["look out"]
    return report


REPORT = """\
rows read 1,234 of 2,000, dropped 155 (12.6 %)
  tie: 50 (4.1 %), first at tie 1
  identical: 40 (3.2 %), first at identical 1
  too_long: 30 (2.4 %), first at too_long 1
  bad_type: 20 (1.6 %), first at bad_type 1
  empty_response: 10 · missing_field: 5
rows cut to fit: 10 (0.81 %) · rows whose whole question was cut away: 20 (1.6 %)
rows whose text the chat template changed: 30 (2.4 %)
rows whose prompt ids differ at generation: 40 (3.2 %)
rows whose last separator the chat template trims: 14 (1.1 %) · filtered out by the format: 5
slots filled by a stand-in: 6 · rows repeated an epoch to fill the last step: 7
rows left out an epoch, less than one step: 8
rows left out, because the steps did not hold them: 9
desirable rows: 30 (75.0 %), balanced by desirable_weight 0.33 to 0.44 or undesirable_weight 2.26 to 3
rows that lost words of a trained turn to the chat template: 11 (0.89 %), first at content_lost.jsonl:1, content_lost:2
rows with an empty think block, which is not trained: 12 (0.97 %), first at empty_think.jsonl:1, empty_think:2
rows whose text looks rendered already (template=None with special_tokens_in_content="allow" reads its control tokens)\
: 13 (1.1 %), first at markers.jsonl:1, markers:2
field 'score', which nothing read: 3 (0.24 %), first at row 3
part a: share 25.0 %, rows read 900 of 1,000, dropped 7 (identical 4, tie 3), repeated an epoch 1,001, \
left out an epoch 2,002
tokens in batches: 3,000, padding 25.0 % of the cells · widths chosen for the data: 64, 128
packed rows that the rows fill: 75.0 % of what the steps took
warning: max_segments closed 25.0 % of the packed rows although there was room for one more sample; raise it, or give \
fewer tokens
tokenizer: name · fast · because
joined as text
files that this library wrote, left out: 6 (file 0: a cache, file 1: a cache, file 2: a cache, file 3: a cache, \
file 4: a cache, ...)
warning: look out"""


def test_a_report_with_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    report = full_report()
    assert len(str(report).splitlines()) == 12
    assert repr(report) == str(report)
    monkeypatch.setattr("ms_prefstream.report.report.MOST_LINES", 99)
    assert str(report) == REPORT
    assert str(Report()) == "rows read 0, dropped 0 (0.00 %)"
    report.left_out_files.popitem()
    assert "left out: 5 (file 0: a cache, file 1: a cache, file 2: a cache, file 3: a cache, file 4: a cache)" in str(
        report
    )


def test_a_report_as_plain_values() -> None:
    values = full_report().as_dict()
    shown = {field.name for field in dataclasses.fields(Report) if not field.name.startswith("_")}
    assert {*values} == shown - {"delivered", "warnings", "template"}
    assert values["dropped"] == dict(full_report().dropped)
    assert (values["widths"], values["chosen_widths"], values["unread"]) == ({64: 2, 128: 1}, [64, 128], {"score": 3})
    assert values["parts"]["a"]["dropped"] == {"tie": 3, "identical": 4}
    empty = {"content_lost", "empty_think", "markers", "separator_trimmed", "desirable", "undesirable", "unread"}
    assert {*Report().as_dict()} == {*values} - empty - {"left_out_files"}
    assert {type(value) for value in values.values()} == {int, str, list, dict}


def test_a_part_of_a_mix() -> None:
    part = PartReport(0.5, read=1200)
    assert str(part) == "share 50.0 %, rows read 1,200, dropped 0"
    part.count(RowError(Reason.TIE, "why"))
    part.count(None)
    assert part.as_dict() == {
        "share": 0.5,
        "rows": None,
        "read": 1202,
        "dropped": {"tie": 1},
        "repeats_per_epoch": 0,
        "left_out_per_epoch": None,
    }
    assert type(part.as_dict()["dropped"]) is dict
    assert str(part) == "share 50.0 %, rows read 1,202, dropped 1 (tie 1)"


def test_weights_of_kto() -> None:
    assert full_report().desirable_share == 0.75
    assert full_report().kto_weights == {"desirable_weight": (0.33, 0.44), "undesirable_weight": (2.26, 3.0)}
    assert (Report().desirable_share, Report(desirable=1).desirable_share, Report(undesirable=1).desirable_share) == (
        None,
        1.0,
        0.0,
    )
    assert Report(desirable=1).kto_weights == Report(undesirable=1).kto_weights == {}


def test_batches_and_stand_ins_add_up() -> None:
    report = Report()
    three = Block.of([Loaded(GOOD, None)] * 3)
    report.batch(three, 8)
    report.batch(three, 8)
    report.batch(three, 4)
    assert (report.delivered, report.tokens, report.cells, report.widths) == (9, 18, 60, {8: 2, 4: 1})
    assert report.padding == 0.7
    tie = RowError(Reason.TIE, "why", origin="row 1")
    report.stand_in(3, [tie])
    report.stand_in(2, [tie])
    assert report.repeats == 5
    assert report.ledger()["repeats"] == 2, "three of them fill the last step, which the plan counts"
    assert report.ledger()["reasons"] == {"tie": 2}, "one row, whose turn came twice"


def test_notes_are_counted_by_kind() -> None:
    report = Report()
    notes = np.array([Note.TRUNCATED, Note.MARKERS, Note.TRUNCATED | Note.MARKERS, Note.NONE], np.uint16)
    report.note([5, 6, 7, 8], notes, "row {}".format)
    assert (report.truncated, report.markers, report.rewritten) == (2, 2, 0)
    assert report.origins == {"markers": ["row 6", "row 7"]}


def test_the_ledger_adds_up_ranks() -> None:
    first, second = Report(rows=100, delivered=145), Report(rows=100, delivered=50)
    tie, identical = (RowError(reason, "why", origin="row 1") for reason in (Reason.TIE, Reason.IDENTICAL))
    first.stand_in(1, [tie])
    second.stand_in(3, [tie, identical])
    for _ in range(2):
        first.epoch(rows=0, remainder=3, repeats=1)  # of all ranks
    expected = {"rows": 200, "delivered": 195, "dropped": 3, "remainder": 6, "repeats": 5}
    assert first.ledger([second]) == {**expected, "reasons": {"tie": 2, "identical": 1}}
    assert Report().ledger() == {**dict.fromkeys(expected, 0), "reasons": {}}


def test_a_row_far_beyond_the_others_is_new_once() -> None:
    report = Report()
    assert report.first_time([7, 10_000_000, 7]) == [True, True, False]
    assert report.first_time([10_000_001, 10_000_000]) == [True, False]
    assert report.read == 3


def test_packs_that_are_closed() -> None:
    def block(*totals: int) -> Block:
        sides = [Sample((Sequence(np.ones(total, np.int32), ((0, 1),)),)) for total in totals]
        return Block.of([Loaded(sample, None) for sample in sides])

    report = Report()
    report.packed_batch([block(3, 4), block(5), block(2, 3)], tokens=10, most=2)
    assert (report.delivered, report.tokens, report.packs, report.cells) == (5, 17, 3, 30)
    assert (report.packs_closed, report.widths) == (2, {10: 1}), "3 are left in the first, 5 in the third"
    report.packed_batch([block(4, 4)], tokens=10, most=2)
    assert report.packs_closed == 2, "2 are left, fewer than any of its samples has"


def test_the_error_of_a_window_without_a_good_row() -> None:
    report = Report()
    bad_rows = BadRows(report, True, "row {}".format, raw=lambda row: row)
    text = "none of the 9 rows of a window can be used (dropped so far: {}); expected at least one good row in each "
    text += "window. {}, or use a larger window."
    remedies = {
        Reason.TOO_LONG: "Raise the task's length, or choose another truncation",
        Reason.NO_RESPONSE_TOKENS: "Raise the task's length",
        Reason.IDENTICAL_AFTER_TRUNCATION: "Raise the task's length",
        Reason.IDENTICAL: "Leave out pairs whose sides are the same",
        Reason.EMPTY_RESPONSE: "Leave out rows without a response",
        Reason.TEMPLATE_REFUSED: "Pass a template= that takes such conversations",
        Reason.BAD_TYPE: "Correct the rows, or choose the format= that reads them",
    }
    assert str(bad_rows.nothing_left(9)) == text.format("", remedies[Reason.BAD_TYPE])
    for count, (reason, remedy) in enumerate(remedies.items(), 1):
        for row in range(count):
            report.drop(RowError(reason, "why", origin=f"{reason}:{row}"))
        found = bad_rows.nothing_left(9)
        assert isinstance(found, NoUsableRowsError)
        parts = [f"{some} {n}, first at {some}:0" for n, some in reversed([*enumerate(remedies, 1)][:count])]
        assert str(found) == text.format("; ".join(parts), remedy)


def test_counts_of_an_index_replace_those_of_the_pass_that_built_it() -> None:
    report = Report()
    for row in range(3):
        report.drop(RowError(Reason.TIE, "why", origin=f"row {row}"))
    report.read = 10
    report.known([("tie", 5, [f"row {row}" for row in range(9)]), ("identical", 2, ["row 70"])])
    assert (report.read, report.dropped) == (14, {"tie": 5, "identical": 2})
    assert report.origins == {"tie": [f"row {row}" for row in range(5)], "identical": ["row 70"]}
    assert report.ledger()["dropped"] == 0
    for epoch in (1, 2):
        report.epoch(rows=20, remainder=0, repeats=0)
        assert report.ledger()["reasons"] == {"tie": 5 * epoch, "identical": 2 * epoch}, "in each epoch"
    part = PartReport(0.5, read=3)
    part.known([("tie", 5), ("identical", 2)])
    assert (part.read, part.dropped) == (10, {"tie": 5, "identical": 2})
