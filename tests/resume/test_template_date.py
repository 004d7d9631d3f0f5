"""The day that a chat template writes is that of the run: kept by its states, indexes and caches."""

from __future__ import annotations

import datetime
import json
import pathlib
from typing import Any

import numpy as np
import pytest

import ms_prefstream as mps
from ms_prefstream.encode import template_text
from ms_prefstream.errors import StateError

TEMPLATE = (
    "{{ strftime_now('%d %b %Y') }}{{ mood }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def source(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"q{n}", "chosen": f"yes {n}", "rejected": "no"} for n in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


class Clock:
    """Sets the day for everything that asks `datetime` in the package."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.today = datetime.date(2026, 3, 1)
        clock = self

        class Date(datetime.date):
            @classmethod
            def today(cls) -> Any:
                return clock.today

        module = type("module", (), {**vars(datetime), "date": Date})
        monkeypatch.setattr(template_text, "datetime", module)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def make(source: Any, **options: Any) -> Any:
    options = {"tokenizer": "bytes", "template": TEMPLATE, "index": None, **options}
    return mps.stream(source, task=mps.DPO(128), batching=mps.Bucket(2, multiple_of=8), **options)


def day_of(stream: Any) -> str:
    batch = next(iter(stream.batches()))
    return bytes(batch["chosen_input_ids"][0, :11].astype(np.uint8)).decode()


def same(one: Any, other: Any) -> bool:
    pairs = zip(one.batches(), other.batches(), strict=True)
    return all(np.array_equal(a[name], b[name]) for a, b in pairs for name in a)


NEXT_DAY = datetime.date(2026, 3, 2)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_keeps_its_day(source: pathlib.Path, clock: Clock, workers: int) -> None:
    first = make(source)
    state = json.loads(json.dumps(first.state(2)))
    assert (day_of(first), state["template_date"]) == ("01 Mar 2026", "2026-03-01")
    clock.today = NEXT_DAY
    second = make(source, workers=workers)
    assert second.resume(state) is second
    assert day_of(second) == "01 Mar 2026"
    assert second.state(3)["template_date"] == "2026-03-01"
    assert day_of(make(source)) == "02 Mar 2026"


def test_a_state_that_is_refused_changes_nothing(source: pathlib.Path, clock: Clock) -> None:
    state = make(source, seed=1).state(2)
    clock.today = NEXT_DAY
    stream = make(source)
    with pytest.raises(StateError, match="seed"):
        stream.resume(state)
    assert day_of(stream) == "02 Mar 2026"


def test_a_state_of_before_days_were_saved(source: pathlib.Path, clock: Clock) -> None:
    state = make(source).state(2)
    del state["template_date"]
    assert day_of(make(source).resume(state)) == "01 Mar 2026"


@pytest.mark.parametrize("damage", ["yesterday", 3, None, "2026-3-1"])
def test_a_damaged_day(source: pathlib.Path, clock: Clock, damage: Any) -> None:
    with pytest.raises(StateError, match="template_date"):
        make(source).resume({**make(source).state(2), "template_date": damage})


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("named", [True, False])
def test_an_index_keeps_its_day(source: pathlib.Path, clock: Clock, named: bool, workers: int) -> None:
    first = make(source)
    index = first.build_index()
    clock.today = NEXT_DAY
    second = make(source, index=index.path if named else "auto", workers=workers)
    assert day_of(second) == "01 Mar 2026"
    assert same(second, first)
    again = make(source, index=index.path if named else "auto").resume(second.state(2))
    assert day_of(again) == "01 Mar 2026"


def test_a_cache_keeps_its_day(source: pathlib.Path, clock: Clock, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "cache"
    mps.write_cache(make(source), out)
    clock.today = NEXT_DAY
    cached = make(out, tokenizer=None, template="auto")
    assert day_of(cached) == "01 Mar 2026"
    assert day_of(make(out)) == "01 Mar 2026"  # its template is given, and its day stays
    state = cached.state(1)
    assert state["template_date"] == "2026-03-01"
    assert day_of(make(out, tokenizer=None, template="auto").resume(state)) == "01 Mar 2026"


def test_an_interrupted_cache_is_finished_with_its_day(
    source: pathlib.Path, clock: Clock, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ms_prefstream.cache import write

    out, real = tmp_path / "cache", write.write_part
    written: list[int] = []

    def write_part(loader: Any, task: Any) -> Any:
        if task.number == 1 and not written.count(1):
            written.append(1)
            raise KeyboardInterrupt
        written.append(task.number)
        return real(loader, task)

    monkeypatch.setattr(write, "write_part", write_part)
    with pytest.raises(KeyboardInterrupt):
        mps.write_cache(make(source), out, rows_per_part=4)
    clock.today = NEXT_DAY
    stream = make(source)
    mps.write_cache(stream, out, rows_per_part=4)
    assert written == [0, 1, 1, 2]  # part 0 was kept
    assert {bytes(batch["chosen_input_ids"][0, :11].astype(np.uint8)) for batch in make(out).batches()} == {
        b"01 Mar 2026"
    }


class TestVariables:
    """Variables decide about tokens, so states, indexes and caches of others are refused."""

    GIVEN: dict[str, Any] = {"template_variables": {"mood": "x", "date_string": "2026-03-01"}}  # noqa: RUF012

    def test_states(self, source: pathlib.Path) -> None:
        plain, given = make(source), make(source, **self.GIVEN)
        assert "template_variables" not in plain.state(1)
        assert json.loads(given.state(1)["template_variables"]) == self.GIVEN["template_variables"]
        assert "template_date" not in given.state(1)
        for one, other in ((plain, given), (given, plain)):
            with pytest.raises(StateError, match=r"template_variables was .* and is .* now"):
                one.resume(other.state(1))
        make(source, **self.GIVEN).resume(given.state(1))

    @pytest.mark.parametrize("option", ["content_lost", "continue_final_message", "train_empty_think"])
    def test_other_options_of_states(self, source: pathlib.Path, option: str) -> None:
        other = {"content_lost": "drop", "continue_final_message": "join", "train_empty_think": True}[option]
        plain, given = make(source), make(source, **{option: other})
        for one, two in ((plain, given), (given, plain)):
            with pytest.raises(StateError, match=rf"{option} was .* and is .* now"):
                one.resume(two.state(1))

    def test_indexes(self, source: pathlib.Path) -> None:
        index = make(source, **self.GIVEN).build_index()
        assert make(source, index=index.path, **self.GIVEN).data.index is not None
        with pytest.raises(StateError, match="template_variables"):
            make(source, index=index.path)

    def test_caches(self, source: pathlib.Path, tmp_path: pathlib.Path) -> None:
        mps.write_cache(make(source, **self.GIVEN), tmp_path / "cache")
        make(tmp_path / "cache", tokenizer=None, template="auto")
        make(tmp_path / "cache", **self.GIVEN)
        with pytest.raises(StateError, match="template_variables"):
            make(tmp_path / "cache")
        with pytest.raises(StateError, match="template_variables"):
            make(tmp_path / "cache", tokenizer=None, template="auto", template_variables={"mood": "y"})


def test_parts_of_a_mix_that_have_an_index_keep_it(source: pathlib.Path, clock: Clock, tmp_path: pathlib.Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_bytes(source.read_bytes())
    alone = make(source)
    checksum = alone.build_index().checksum
    clock.today = NEXT_DAY
    mixed = make(mps.mix([(source, 1), (other, 1)]), index="build", verbose=False)
    assert day_of(mixed) == "01 Mar 2026"
    again = make(source, index="auto").resume(alone.state(2))
    assert again.state(2)["index"] == checksum
