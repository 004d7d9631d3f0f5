# ruff: noqa: E501 - Jinja reads best a tag at a time
"""Tracked values of a row: their text is that of plain values, however a template writes them."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ms_prefstream.encode.jinja import TemplateRefusal, names_in, renderer
from ms_prefstream.encode.template_text import is_day, unread_variables
from ms_prefstream.encode.tracked_text import ContentReads, Run, Tracked, plain
from ms_prefstream.encode.tracked_values import Values, tracked_json

LAW = settings(settings.get_profile("cheap"), derandomize=True)

letters = st.characters(exclude_categories=("Cs", "Co"))  # private-use characters hide control tokens
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(letters, max_size=6)
keys = st.text(letters, max_size=4)
values = st.recursive(scalars, lambda item: st.lists(item, max_size=3) | st.dictionaries(keys, item, max_size=3))
options = st.fixed_dictionaries(
    {},
    optional={
        "ensure_ascii": st.booleans(),
        "indent": st.sampled_from([None, 0, 2, "\t"]),
        "separators": st.sampled_from([None, (",", ":"), (", ", " = ")]),
        "sort_keys": st.booleans(),
    },
)


def wrapped(value: Any, chance: random.Random) -> Any:
    """The value with some of its parts tracked, in containers of the template's own."""
    if chance.random() < 0.4:
        return Values(ContentReads()).node(value).shown
    if isinstance(value, dict):
        return {wrapped(key, chance): wrapped(item, chance) for key, item in value.items()}
    if isinstance(value, list):
        return [wrapped(item, chance) for item in value]
    return value


@LAW
@given(values, options, st.randoms(use_true_random=False))
def test_json_is_that_of_plain_values(value: Any, given_options: dict[str, Any], chance: random.Random) -> None:
    found = tracked_json(wrapped(value, chance), **given_options)
    assert plain(found) == json.dumps(value, **given_options)


@LAW
@given(st.dictionaries(st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False), scalars, max_size=3))
def test_keys_of_other_types(value: dict[Any, Any]) -> None:
    mixed = {key: Values(ContentReads()).node(item).shown for key, item in value.items()}
    assert plain(tracked_json(mixed)) == json.dumps(value)


TEMPLATES = [
    "{{ v }}", "{{ v | string }}", "{{ v ~ 'x' }}", "{{ '%s' % v }}", "{{ '{}'.format(v) }}", "{{ v | tojson }}",
    "{{ v | tojson(indent=2) }}", "{{ v | length }}", "{% for i in v %}{{ i }};{% endfor %}", "{{ v | list }}",
    "{{ v | join(',') }}", "{{ v is mapping }}{{ v is string }}{{ v is sequence }}{{ v is iterable }}",
    "{% if v %}yes{% endif %}", "{{ v == v }}", "{{ v | first }}", "{{ v | tojson | safe }}", "{{ v | tojson | indent }}",
]  # fmt: skip
OF_MAPPINGS = [
    "{% for k, i in v.items() %}{{ k }}={{ i }};{% endfor %}", "{{ v.a }}{{ v['a'] }}{{ v.get('a', 1) }}",
    "{{ v.get('no', 'x') }}{{ v.no is defined }}{{ 'a' in v }}", "{% for k, i in v | items %}{{ k }}{{ i }}{% endfor %}",
    "{% for k, i in v | dictsort %}{{ k }}{{ i }}{% endfor %}", "{{ v.values() | list }}{{ v.keys() | list }}",
    "{{ dict(v) | tojson }}", "{{ {'x': v, 'y': v.a} | tojson }}", "{{ v.copy() | tojson }}",
]  # fmt: skip
OF_LISTS = [
    "{{ v[0] }}{{ v[-1] }}{{ v[1:] }}{{ v[::-1] }}", "{{ v | last }}", "{{ (v + ['z'])[-1] }}{{ (['z'] + v) | tojson }}",
    "{{ v | reverse | list }}", "{{ v | map('string') | join }}", "{{ v | unique | list }}",
]  # fmt: skip


def outcome(render: Any, value: Any) -> str:
    """The text, or why there is none."""
    try:
        return plain(render([value]))
    except TemplateRefusal as refusal:
        return f"refused: {refusal}"


@pytest.mark.parametrize("value", [{"a": 1}, {"a": [True, None, 2.5], "b": {"c": "x"}}, ["p", "q"], [1, -2.0], {}, []])
def test_templates_write_the_same_text(value: Any) -> None:
    for template in TEMPLATES + (OF_MAPPINGS if isinstance(value, dict) else OF_LISTS):
        render = renderer("{% set v = messages[0] %}" + template, {})
        shown = Values(ContentReads()).node(value).shown
        assert outcome(render, shown) == outcome(render, value), template


@pytest.mark.parametrize(
    ("change", "held"),
    [
        (lambda text: text.rsplit("X", 1)[1], (4, 5)), (lambda text: text.partition("X")[2], (2, 5)),
        (lambda text: text.rpartition("X")[0], (0, 3)), (lambda text: text.removeprefix("aX"), (2, 5)),
        (lambda text: text.removesuffix("Xc"), (0, 3)), (lambda text: list(text)[2], (2, 3)),
        (lambda text: text.splitlines()[0], (0, 5)), (lambda text: text.lower(), (0, 0)),
        (lambda text: text.center(9), (0, 5)), (lambda text: text.strip("ac"), (1, 4)), (lambda text: text[1:4][1:], (2, 4)),
        (lambda text: text[2:].center(9), (2, 5)),
    ],
)  # fmt: skip
def test_runs_state_the_characters_that_they_stand_for(change: Any, held: tuple[int, int]) -> None:
    text = Tracked("aXbXc", (Run(0, 5, 0),), ContentReads())
    assert plain(change(text)) == change("aXbXc")
    (run,) = change(text).runs
    assert run.source == held


class TestChance:
    """A text that depends on chance or on the process is refused."""

    @pytest.mark.parametrize(
        ("template", "why"),
        [
            ("{{ ['a', 'b'] | random }}", "random"), ("{{ lipsum() }}", "random"),
            ("{{ raise_exception }}", "address"), ("{{ messages | map('upper') }}", "address"),
            ("{{ joiner() }}", "address"), ("{{ strftime_now }}", "address"), ("{{ messages[0].strip }}", "address"),
        ],
    )  # fmt: skip
    def test_refused(self, template: str, why: str) -> None:
        with pytest.raises(TemplateRefusal, match=why):
            renderer(template, {})(["x"])  # type: ignore[list-item]

    def test_an_address_of_the_row_or_of_the_template_is_text(self) -> None:
        text = "<object at 0x7f>"
        assert renderer(text, {})([]) == text
        content = Tracked(text, (Run(0, len(text), 0),), ContentReads())
        assert plain(renderer("{{ messages[0] }}", {})([content])) == text  # type: ignore[list-item]


def test_names_that_a_template_reads() -> None:
    text = "{% if not date_string is defined %}{% set date_string = strftime_now('%d') %}{% endif %}{{ date_string }}{{ x }}"
    assert names_in(text) == {"date_string", "strftime_now", "x"}
    assert names_in("{% if %}") == frozenset()
    assert unread_variables("{{ strftime_now('%d') }}{{ x }}", {"x": 1, "date_string": "", "y": 2}) == ["y"]
    assert unread_variables("{{ x }}", {"date_string": "2024-07-26"}) == ["date_string"]


@pytest.mark.parametrize("value", ["20240726", "26 Jul 2024", "2024-07-26 ", "", 20240726, None, ["2024-07-26"]])
def test_days_of_saved_files(value: Any) -> None:
    assert not is_day(value)
    assert is_day("2024-07-26")
