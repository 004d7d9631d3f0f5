"""What a user may pass to `mix`, and the records of a mix: in any order, and from the front."""

from __future__ import annotations

import pathlib
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from ms_prefstream.errors import OptionError, Reason, RowError, SourceError
from ms_prefstream.formats import Pair
from ms_prefstream.load.one_pass import MixedOnePassRecords, SingleOnePassRecords, open_one_pass
from ms_prefstream.load.records import MixedRecords, fingerprint_of, formats_of, open_records
from ms_prefstream.plan.mixture import Schedule, whole_weights
from ms_prefstream.sources.mix import Mix, Part, mix
from ms_prefstream.sources.open import open_source
from tests.pools import write


def rows(name: str, count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{name}{k}", "chosen": "yes", "rejected": "no"} for k in range(count)]


def renamed(row: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": row["q"], "chosen": row["good"], "rejected": row["bad"]}


def twice(row: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """A format that gives no, one or two records: as many as the row says."""
    return tuple({**row, "prompt": f"{row['prompt']}.{k}"} for k in range(row["n"]))


twice.count = lambda row: row["n"]  # type: ignore[attr-defined]

OTHERS = [{"q": f"other{k}", "good": "yes", "bad": "no"} for k in range(3)]


def names(records: list[Any]) -> list[str]:
    return [record.prompt[0].content for record in records]


def test_records_of_parts_are_numbered_through_each_in_its_own_format() -> None:
    made = mix([Part(rows("a", 4), 1), Part(OTHERS, 2, format=renamed), Part(rows("c", 2), 1, name="last")])
    records = open_records(made, formats_of(made, "auto"))
    assert isinstance(records, MixedRecords)
    assert len(records) == 9
    found = records.read([8, 0, 4, 6, 3, 0])
    assert names(found) == ["c1", "a0", "other0", "other2", "a3", "a0"]
    assert [records.origin(row) for row in (0, 3, 4, 8)] == [
        "row 0 of list", "row 3 of list", "row 0 of list", "row 1 of list",
    ]  # fmt: skip
    assert records.raw(5) == OTHERS[1]
    assert [records.part_of(row) for row in range(9)] == [0] * 4 + [1] * 3 + [2] * 2
    assert (records.mixture.sizes, records.mixture.weights) == ((4, 3, 2), (1, 2, 1))
    assert [part.name for part in made.parts] == ["list", "list (2)", "last"]
    with pytest.raises(SourceError, match="row 9 was requested"):
        records.read([9])


def test_origins_name_the_parts_file(tmp_path: pathlib.Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "p", "chosen": "x", "rejected": "y"}\n{broken\n')
    made = mix([(tmp_path / "a.jsonl", 1), (str(tmp_path / "b.jsonl"), 1)])
    records = open_records(made, formats_of(made, "auto"))
    assert records is not None
    assert records.origin(3) == f"{tmp_path / 'b.jsonl'}:2"
    found = records.read([3])[0]
    assert isinstance(found, RowError)
    assert found.reason is Reason.BAD_JSON
    assert records.raw(3) is None


def test_formats_that_give_several_records_or_none() -> None:
    source = [{**row, "n": n} for row, n in zip(rows("a", 4), (2, 0, 1, 3), strict=True)]
    made = mix([Part(source, 1, format=twice), Part(rows("b", 2), 1)])
    records = open_records(made, formats_of(made, "auto"))
    assert isinstance(records, MixedRecords)
    assert records.mixture.sizes == (6, 2)
    assert records.filtered == 1
    assert names(records.read([7, 5, 2])) == ["b1", "a3.2", "a2.0"]
    assert records.origin(5) == "row 3 of list#3"


def test_the_fingerprint_names_the_data_and_their_order_but_not_the_weights() -> None:
    def of(*parts: Any) -> str:
        made = mix(list(parts))
        records = open_records(made, formats_of(made, "auto"))
        assert records is not None
        return fingerprint_of(records)

    a, b = rows("a", 3), rows("b", 3)
    assert of((a, 1), (b, 1)) == of((a, 0.3), (b, 0.9))
    assert of((a, 1), (b, 1)) != of((b, 1), (a, 1))
    assert of((a, 1), (b, 1)) != of((a, 1), (rows("b", 4), 1))


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(1, (1, 4)), (2, (1, 2)), (1e9, (1, 1)), (0.5, (1, 16)), (Fraction(2), (1, 2))],
)
def test_weights_by_size(temperature: Any, expected: tuple[int, ...]) -> None:
    made = mix([rows("a", 10), Part(rows("b", 40))], temperature=temperature)
    found = np.array(whole_weights(made.weights([10, 40])))
    assert np.allclose(found / found.sum(), np.array(expected) / sum(expected), atol=1e-6)


def test_the_size_of_a_part_is_the_number_of_its_records() -> None:
    source = [{**row, "n": 3} for row in rows("a", 2)]
    made = mix([Part(source, format=twice), rows("b", 3)], temperature=1)
    records = open_records(made, formats_of(made, "auto"))
    assert isinstance(records, MixedRecords)
    assert records.mixture.sizes == (6, 3)
    assert records.mixture.weights == (2, 1)
    assert records.mixture.rows == 9


def test_without_weights_all_parts_share_equally() -> None:
    assert whole_weights(mix([rows("a", 10), rows("b", 40)]).weights([10, 40])) == (1, 1)


def test_a_tuple_of_two_paths_is_a_source(tmp_path: pathlib.Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text("{}\n")
    made = mix([(str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"))])
    assert len(made.parts[0].source) == 2  # type: ignore[arg-type]


A = rows("a", 1)


@pytest.mark.parametrize(
    ("parts", "options", "found"),
    [
        ([], {}, "an empty list"),
        ("a.jsonl", {}, "mix got an object of type str; expected a list"),
        ({"a.jsonl": 1}, {}, "mix got an object of type dict"),
        ([(A, 1), (A, 0)], {}, "Item 1 of the mix, .*: weight is 0; .* Leave the part out"),
        ([(A, -1)], {}, "Item 0 of the mix, .*: weight is -1"),
        ([(A, float("nan"))], {}, "weight is nan"),
        ([("a.jsonl", 1), (0.5, "a.jsonl")], {}, "Item 1 of the mix, .*: weight is 'a.jsonl'"),
        ([(A, float("inf"))], {}, "weight is inf"),
        ([(A, True)], {}, "weight is True"),
        ([(A, 1), A], {}, "Item 1 of the mix has no weight, but others have"),
        ([(A, 1), (A, 1)], {"temperature": 2}, "weights are given. Leave one of the two out"),
        ([A, A], {"temperature": 0}, "temperature is 0"),
        ([A, A], {"temperature": True}, "temperature is True"),
        ([A, A], {"temperature": "1"}, "temperature is '1'"),
        ([(A, 1)], {"stop": "last"}, "stop is 'last'; expected 'first' or 'all'"),
        ([Part(A, 1, name="x"), Part(A, 1, name="x")], {}, "Two parts of the mix are named 'x'"),
        ([(mix([(A, 1)]), 1)], {}, "Item 0 of the mix is a Mix, expected a source"),
        ([Part(Part(A, 1), 1)], {}, "Item 0 of the mix is a Part"),
        ([lambda: iter(A), A], {"temperature": 2}, "needs the size of every part, but .*lambda.* only be read from"),
    ],
)
def test_options_check_themselves(parts: Any, options: dict[str, Any], found: str) -> None:
    with pytest.raises(OptionError, match=found):
        mix(parts, **options)


def test_a_tuple_of_folders_with_numbers_as_names_is_a_source(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("2023", "2024"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "rows.jsonl", rows(name, 2))
    assert len(mix([("2023", "2024")]).parts) == 1


def test_a_part_that_cannot_be_opened_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SourceError, match=r"Item 1 of the mix: .*no such file"):
        mix([(A, 1), (tmp_path / "none.jsonl", 1)])
    with pytest.raises(OptionError, match="name is ''"):
        Part(A, 1, name="")
    with pytest.raises(OptionError, match="weight is '3'"):
        Part(A, "3")


def test_a_mix_in_a_list_of_sources_is_refused_rather_than_read_without_its_weights(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{}\n")
    with pytest.raises(SourceError, match="of type Mix"):
        open_source([str(path), mix([(A, 1)])])


def test_a_part_whose_rows_are_all_filtered_out_is_named() -> None:
    none = [{**row, "n": 0} for row in rows("a", 2)]
    made = mix([(A, 1), Part(none, 1, format=twice, name="empty")])
    with pytest.raises(SourceError, match="empty, a part of the mix, has no rows that pass the filter"):
        open_records(made, formats_of(made, "auto"))


# From the front


def front_of(parts: list[Any], **options: Any) -> MixedOnePassRecords:
    made = mix(parts, **options)
    assert open_records(made, formats_of(made, "auto")) is None
    front = open_one_pass(made, formats_of(made, "auto"))
    assert isinstance(front, MixedOnePassRecords)
    return front


def taken(front: MixedOnePassRecords | SingleOnePassRecords, first: int = 0, most: int = 10**6) -> list[str]:
    records = front.start(first)
    return names([record for (_, _, record), _ in zip(records, range(most), strict=False)])


@pytest.mark.parametrize("stop", ["first", "all"])
def test_from_the_front_turns_follow_the_schedule_and_any_number_can_be_skipped(stop: Any) -> None:
    parts = [(lambda: iter(rows("a", 20)), 0.5), (rows("b", 7), 0.3), (lambda: iter(rows("c", 9)), 0.2)]
    front = front_of(parts, stop=stop)
    count = front.count()
    whole = taken(front, most=count)
    assert len(whole) == count
    turns, numbers = Schedule(front.weights).locate(np.arange(count))
    sizes = (20, 7, 9)
    assert whole == [f"{'abc'[p]}{n % sizes[p]}" for p, n in zip(turns.tolist(), numbers.tolist(), strict=True)]
    assert [front.part_of(position) for position in range(count)] == turns.tolist()
    for first in range(0, count):
        assert taken(front, first, count - first) == whole[first:], first
    if stop == "first":
        assert taken(front) == whole  # it ends by itself
        assert count == 24  # b, the first to run out, would take its eighth turn then
        assert "b6" in whole
    else:
        assert {f"a{k}" for k in range(20)} | {f"c{k}" for k in range(9)} <= set(whole)
        assert len(taken(front, most=10 * count)) == 10 * count
        assert taken(front, 7 * count, 5) == taken(front, most=7 * count + 5)[-5:]


def test_from_the_front_shares_are_those_of_records_and_origins_those_of_parts() -> None:
    source = [{**row, "n": n} for row, n in zip(rows("a", 4), (2, 0, 1, 3), strict=True)]
    front = front_of([Part(lambda: iter(source), 1, format=twice), Part(lambda: iter(OTHERS), 1, format=renamed)])
    found = list(front.start(0))
    assert names([record for _, _, record in found]) == ["other0", "a0.0", "other1", "a0.1", "other2", "a2.0"]
    assert [raw.get("q") for _, raw, _ in found][::2] == ["other0", "other1", "other2"]
    assert all(isinstance(record, Pair) for _, _, record in found)
    assert front.count() == 6
    assert taken(front, 3) == ["a0.1", "other2", "a2.0"]


def test_an_empty_part_and_a_used_up_one_are_errors_that_name_it() -> None:
    empty = front_of([(lambda: iter(A), 1), Part(lambda: iter([]), 1, name="nothing")], stop="all")
    with pytest.raises(SourceError, match="has no rows"):
        taken(empty, most=4)
    with pytest.raises(SourceError, match="nothing, a part of the mix, has no rows"):
        empty.count()
    once = front_of([(lambda: iter(rows("a", 9)), 1), (iter(rows("b", 2)), 1)], stop="all")
    with pytest.raises(SourceError, match="cannot be read again"):
        taken(once, most=9)
    with pytest.raises(OptionError, match="can be read only once, so its rows cannot be counted"):
        once.count()


def test_what_the_report_is_told_about_the_parts() -> None:
    made = mix([Part(rows("a", 30), 1, name="long"), Part(rows("b", 10), 1, name="short")], stop="all")
    records = open_records(made, formats_of(made, "auto"))
    assert isinstance(records, MixedRecords)
    reports = records.reports(56)  # 7 steps of 8; an epoch of the mixture has 60 rows
    assert {name: (part.share, part.rows) for name, part in reports.items()} == {"long": (0.5, 30), "short": (0.5, 10)}
    assert (reports["short"].repeats_per_epoch, reports["short"].left_out_per_epoch) == (18, 0)
    assert (reports["long"].repeats_per_epoch, reports["long"].left_out_per_epoch) == (0, 2)
    front = front_of([(lambda: iter(rows("a", 30)), 1), (lambda: iter(rows("b", 10)), 1)])
    unknown = list(front.reports(8).values())
    assert [(part.rows, part.left_out_per_epoch) for part in unknown] == [(None, None)] * 2
    front.count()
    assert [(part.rows, part.left_out_per_epoch) for part in front.reports(16).values()] == [(30, 22), (10, 2)]
    assert isinstance(made, Mix)
