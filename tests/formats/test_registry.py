from __future__ import annotations

import functools
import inspect
import pickle
import pkgutil
import re
from typing import Any

import pytest

import ms_prefstream.formats as formats
from ms_prefstream.errors import OptionError, Reason, RowError
from ms_prefstream.formats import PRESETS, Format, Pair, presets, resolve_format
from ms_prefstream.formats.auto import Auto

from .conversations import assistant, refusal, user

PAIR = Pair((user("Hi"),), (assistant("Hello"),), (assistant("What"),))


def rename(row: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": row["q"], "chosen": row["good"], "rejected": row["bad"]}


ROW = {"q": "Hi", "good": "Hello", "bad": "What"}


def test_names_stand_for_the_defaults() -> None:
    for name, preset in PRESETS.items():
        fmt = resolve_format(name)
        assert fmt == preset.factory()
        assert fmt.name == name
        assert isinstance(fmt, Format)
    assert isinstance(resolve_format("auto"), Auto)


def test_every_file_of_a_preset_is_imported() -> None:
    found = {module.name for module in pkgutil.iter_modules(presets.__path__)}
    assert found == {preset.factory.__module__.rpartition(".")[2] for preset in PRESETS.values()}


def test_what_a_factory_made_is_taken_as_it_is() -> None:
    made = formats.cvalues(types=["a>b"])
    assert resolve_format(made) is made
    automatic = formats.auto()
    assert resolve_format(automatic) is automatic
    mapped = resolve_format(rename)
    assert resolve_format(mapped) is mapped


def test_a_factory_without_its_brackets() -> None:
    assert resolve_format(formats.orca) == formats.orca()


@pytest.mark.parametrize("factory", [preset.factory for preset in PRESETS.values()])
def test_every_factory_is_public_documented_and_can_travel(factory: Any) -> None:
    assert getattr(formats, factory.__name__) is factory
    assert factory.__name__ in formats.__all__
    text = inspect.getdoc(factory) or ""
    assert "->" in text, "a before / after"
    assert "better" in text or "best" in text, "its polarity"
    for name in inspect.signature(factory).parameters:
        assert f"{name}:" in text
    made = factory()
    assert pickle.loads(pickle.dumps(made)) == made
    assert " at 0x" not in repr(resolve_format(made))


def test_an_unknown_name_lists_the_known_and_the_nearest() -> None:
    with pytest.raises(
        OptionError, match=r"format is 'sharegbt'; known formats: auto, alpaca.*Did you mean 'sharegpt'"
    ):
        resolve_format("sharegbt")
    with pytest.raises(OptionError, match="function row -> row"):
        resolve_format("zzz")


@pytest.mark.parametrize("value", [None, 5, ["messages"], {"a": 1}])
def test_what_is_no_format(value: object) -> None:
    with pytest.raises(OptionError, match="expected the name of a preset"):
        resolve_format(value)


def test_a_function_row_to_row_is_read_by_auto() -> None:
    fmt = resolve_format(rename)
    assert fmt(ROW) == PAIR
    assert fmt.name == "rename"
    assert not hasattr(fmt, "count")
    assert pickle.loads(pickle.dumps(fmt))(ROW) == PAIR


def test_a_function_may_return_a_record() -> None:
    assert resolve_format(lambda row: PAIR)(ROW) is PAIR


def test_an_exception_of_the_function_names_function_exception_and_fields() -> None:
    with pytest.raises(RowError) as caught:
        resolve_format(rename)({"q": "Hi"})
    assert caught.value.reason is Reason.BAD_TYPE
    assert isinstance(caught.value.__cause__, KeyError)
    assert "rename raised KeyError: 'good' on a row with the fields q" in str(caught.value)


def test_a_row_error_of_the_function_stays_what_it_is() -> None:
    def refuse(row: Any) -> Any:
        raise RowError(Reason.TIE, "equal")

    refusal(Reason.TIE, resolve_format(refuse), ROW)


@pytest.mark.parametrize("result", [None, "text", 5, (PAIR,), [ROW]])
def test_a_function_that_returns_something_else(result: Any) -> None:
    said = refusal(Reason.BAD_TYPE, resolve_format(functools.partial(lambda given, row: given, result)), ROW)
    assert "returned" in said
    assert "expected a row (a dict) or a record" in said


def test_what_auto_says_of_the_result_is_said() -> None:
    refusal(Reason.MISSING_FIELD, resolve_format(lambda row: {"prompt": "Hi", "chosen": "x"}), ROW)


class Several:
    """A user's format that gives a row as often as the row says."""

    def __call__(self, row: Any) -> Any:
        return [rename(row)] * row["times"]

    def count(self, row: Any) -> int:
        return int(row["times"])


def test_a_callable_with_count_gives_several() -> None:
    fmt: Any = resolve_format(Several())
    assert fmt({**ROW, "times": 2}) == (PAIR, PAIR)
    assert fmt.count({**ROW, "times": 0}) == 0
    assert fmt.name == "Several"
    assert re.fullmatch("mapped\\(Several [0-9a-f]{8}\\)", repr(fmt))
    assert "KeyError" in refusal(Reason.BAD_TYPE, fmt.count, ROW)


def test_a_callable_with_count_that_gives_nonsense() -> None:
    class Wrong:
        def __call__(self, row: Any) -> Any:
            return row

        def count(self, row: Any) -> Any:
            return -1

    fmt: Any = resolve_format(Wrong())
    assert "expected a list" in refusal(Reason.BAD_TYPE, fmt, ROW)
    assert "expected a whole number" in refusal(Reason.BAD_TYPE, fmt.count, ROW)
