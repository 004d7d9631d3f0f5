# ruff: noqa: E501 - templates are read as one line
"""Templates that nobody has read: whatever they do ends soon, in one error that names the limit and its option."""

from __future__ import annotations

import functools
import json
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream.encode import template_limits
from ms_prefstream.encode.jinja import renderer
from ms_prefstream.encode.template_limits import TemplateLimitError
from ms_prefstream.encode.tracked_text import ContentReads, Run, Tracked, plain
from ms_prefstream.inspection import rows_of
from tests.encode.chat_templates import FAMILIES

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
DOUBLING = "{% set ns = namespace(x=START) %}{% for _ in range(60) %}{% set ns.x = STEP %}{% endfor %}{{ END }}"


def doubling(start: str, step: str, end: str = "ns.x | length") -> str:
    return DOUBLING.replace("START", start).replace("STEP", step).replace("END", end)


NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}BODY{% endfor %}{% endfor %}"
SLOW = {
    "empty loops": NESTED.replace("BODY", ""),
    "conditions": NESTED.replace("BODY", "{% if a == b %}{% endif %}"),
    "filtered loops": "{% for a in range(99999) %}{% for b in range(99999) if a > 10 ** 9 %}{% endfor %}{% endfor %}",
    "tested loops": "{% for a in range(99999) %}{% for b in range(99999) if b is odd and b is even %}{% endfor %}{% endfor %}",
    "calls": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "lazy filters": "{% for a in range(99999) %}{{ range(99999) | map('string') | map('length') | sum }}{% endfor %}",
    "selected": "{% for a in range(99999) %}{{ range(99999) | select('in', range(99999) | list) | list | length }}{% endfor %}",
    "searches": "{% set a = 'a' * 10 ** 6 %}{% for b in range(99999) %}{% for c in range(99999) if 'b' in a %}{% endfor %}{% endfor %}",
    "methods": "{% for a in range(99999) %}{% for b in range(99999) if 'abc'.count('d') %}{% endfor %}{% endfor %}",
    "long names of attributes": "{{ range(99999) | map(attribute='real' ~ '.real' * 45000) | list | length }}",
    "long names to sort by": "{{ range(99999) | sort(attribute='real' ~ '.real' * 45000) | length }}",
    "JSON": "{{ ([range(99999) | list] * 30) | tojson | length }}",
    "recursive loops": "{% for a in [[1], [2]] recursive %}{% for _ in range(9999) %}{% for _ in range(9999) %}{% endfor %}{% endfor %}{{ loop(a) }}{% endfor %}",
}
LARGE = {
    "repeated": "{{ 'a' * 10 ** 9 }}",
    "repeated list": "{{ ([1] * 10 ** 9) | length }}",
    "power": "{{ 2 ** (10 ** 9) }}",
    "power of powers": doubling("2", "ns.x ** 9", "ns.x"),
    "product": doubling("2 ** 5000", "ns.x * ns.x", "ns.x"),
    "sum of texts": doubling("'ab'", "ns.x + ns.x"),
    "joined by ~": doubling("'ab'", "ns.x ~ ns.x"),
    "sum of lists": doubling("[1, 2]", "ns.x + ns.x"),
    "lists in lists": doubling("[1, 2]", "[ns.x, ns.x]", "ns.x"),
    "tuples in tuples": doubling("(1, 2)", "(ns.x, ns.x)", "{(ns.x): 1}"),
    "mappings": doubling("{'a': 1}", "{'a': ns.x, 'b': ns.x}", "ns.x | tojson"),
    "dict()": doubling("dict(a=1)", "dict(a=ns.x, b=ns.x)", "ns.x | string"),
    "batched": doubling("[1, 2]", "[ns.x, ns.x] | batch(2) | list", "ns.x"),
    "width of %": "{{ '%1000000000d' % 1 }}",
    "width of % from a value": "{{ '%*d' % (10 ** 9, 1) }}",
    "width of format": "{{ '{:>1000000000}'.format('a') }}",
    "width of format from a value": "{{ '{:>{}}'.format('a', 10 ** 9) }}",
    "format_map": "{{ '{a:>1000000000}'.format_map({'a': 'a'}) }}",
    "filter format": "{{ '%1000000000d' | format(1) }}",
    "center": "{{ 'a' | center(10 ** 10) }}",
    "ljust": "{{ 'a'.ljust(10 ** 10) }}",
    "zfill": "{{ 'a'.zfill(10 ** 10) }}",
    "expandtabs": "{{ '\\t'.expandtabs(10 ** 9) }}",
    "replace": "{{ ('a' * 10 ** 6) | replace('a', 'b' * 10 ** 6) }}",
    "replace of nothing": "{{ ('a' * 10 ** 6).replace('', 'b' * 10 ** 6) }}",
    "join": "{{ range(99999) | join('a' * 10 ** 6) }}",
    "str.join": "{{ ('a' * 10 ** 6).join('b' * 10 ** 6) }}",
    "translate": "{{ ('a' * 10 ** 6).translate({97: 'b' * 10 ** 6}) }}",
    "indent": "{{ ('a\\n' * 10 ** 6) | indent(10 ** 6) }}",
    "tojson": "{{ range(9999) | list | tojson(indent=10 ** 8) }}",
    "batch": "{{ [1] | batch(10 ** 9, 0) | list | length }}",
    "slice": "{{ [1] | slice(10 ** 9, 0) | list | length }}",
    "round": "{{ 2.5 | round(10 ** 9, 'ceil') }}",
    "to_bytes": "{{ (1).to_bytes(10 ** 10, 'big') | length }}",
    "wordwrap": "{{ ('a' * 10 ** 6) | wordwrap(1) }}",
    "urlize": "{{ ('a.' * 10 ** 6) | urlize }}",
    "striptags": "{{ ('<!--' * 10 ** 6) | striptags }}",
    "sum of many lists": "{{ range(99999) | batch(1) | sum(start=[]) | length }}",
    "pieces": "{{ ('a ' * 10 ** 7).split() | length }}",
    "characters": "{{ ('a' * 5 * 10 ** 7) | list | length }}",
    "output": NESTED.replace("BODY", "{{ 'a' * 10 ** 6 }}"),
    "many texts": "{% set ns = namespace(x=[]) %}{% for a in range(9999) %}{% set ns.x = ns.x + ['%d' % a * 10 ** 6] %}{% endfor %}",
    "slices": "{% set a = 'a' * 3 * 10 ** 7 %}{% for b in range(999) %}{{ a[b:] }}{% endfor %}",
    "slices that stay": "{% set a = 'a' * 3 * 10 ** 7 %}"
    + "".join(f"{{% set a{b} = a[{b}:] %}}" for b in range(1, 40)),
    "empty slices": "{{ [] | slice(6 * 10 ** 7) | list | length }}",
    "empty slices in turn": "{{ [] | slice(6 * 10 ** 7) | max }}",
    "filled batch": "{{ [1] | batch(6 * 10 ** 7, 'a') | list | length }}",
    "search from the end": "{{ ('a' * 10 ** 7).rfind('ab' + 'a' * 5 * 10 ** 6) }}",
    "split from the end": "{{ ('a' * 6 * 10 ** 6).rsplit('ab' + 'a' * 3 * 10 ** 6) | length }}",
    "indented deep": "{% set ns = namespace(x=range(99999) | list * 5) %}{% for a in range(150) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson(indent=16) }}",
    "written by its code": "{{ [('\\U0001fffe' * 1000 ~ '\\U0001f600') * 8000] }}",
    "wide text": "{% set a = '\U0001f600' * 6 * 10 ** 7 %}{% set b = a + a %}",
    "title": "{{ ('a-' * 10 ** 7) | title | length }}",
    "urlencode": "{{ ('\x01' * 3 * 10 ** 7) | urlencode | length }}",
    "escape": "{{ ('&' * 3 * 10 ** 7) | escape | length }}",
    "sorted characters": "{{ ('a' * 3 * 10 ** 7) | sort | length }}",
    "joined characters": "{{ ''.join('a' * 3 * 10 ** 7) | length }}",
    "arguments": "{% macro f() %}{% endmacro %}{{ f(*('a' * 3 * 10 ** 7)) }}",
    "dates": "{{ strftime_now('%c' * 10 ** 6) | length }}",
    "long field": "{{ ('{0.real' ~ '.real' * 5 * 10 ** 6 ~ '}').format(1) }}",
    "deep": "{% set ns = namespace(x=[]) %}{% for a in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
    "deep tuples": "{% set ns = namespace(x=()) %}{% for a in range(99999) %}{% set ns.x = (ns.x, ) %}{% endfor %}{{ {(ns.x): 1} }}",
}


@pytest.mark.parametrize("text", SLOW.values(), ids=SLOW)
def test_time_is_limited(text: str) -> None:
    render = renderer(text, {}, limit_s=0.2)
    begin = time.monotonic()
    with pytest.raises(TemplateLimitError, match=r"needs more than 0\.2 s for one conversation"):
        render(MESSAGES)
    assert time.monotonic() - begin < 5  # 0.2 s and one step, on a busy machine


def test_waiting_for_a_busy_machine_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    work = "{% for m in messages %}{{ m.role }}{% endfor %}"
    monkeypatch.setattr(template_limits, "plain", lambda text: time.sleep(0.3) or text)  # of the arguments of `replace`
    assert renderer("{{ 'a' | replace('a', 'b') }}" + work, {}, limit_s=0.2)(MESSAGES) == "buserassistant"


@pytest.mark.parametrize("text", LARGE.values(), ids=LARGE)
def test_memory_is_limited(text: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.monotonic()
    with pytest.raises(TemplateLimitError):
        renderer(text, {})(MESSAGES)
    assert time.monotonic() - begin < 8
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 1024  # 256 MB, and the last step


def test_documents_are_none_as_in_transformers() -> None:
    assert renderer("{{ documents is none }}", {})(MESSAGES) == "True"


def test_small_results_are_jinjas() -> None:
    text = "{{ 3.14159 | round(2) }} {{ 2.5 | round }} {{ [1, 2] | sum }}"
    assert renderer(text, {})(MESSAGES) == "3.14 2.0 3"


COMPILED = [
    "{{ 2 ** 20000 }}",
    "(" * 3000,
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "{% if a %}" * 500 + "{% endif %}" * 500,
    "{% for a in b %}" * 100 + "{% endfor %}" * 100,
    "{{ " + "1 + " * 20_000 + "1 }}",
    "{{ " + "-" * 20_000 + "1 }}",
    "{{ " + "not " * 5_000 + "a }}",
    "{{ a" + ".b" * 20_000 + " }}",
    "{{ a" + " | upper" * 5_000 + " }}",
    "{{ '" + "a" * 2**20 + "' }}",
    "{{ 'a' | center(10 ** 10) }}",
]
COMPILE = """
import json, sys, ms_prefstream as mps
rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 4
for text in json.load(sys.stdin):
    try:
        template = "{{ messages[0].content }}" + text
        next(mps.stream(rows, task=mps.DPO(max_length=64), tokenizer="bytes", batching=mps.Pad(2), template=template).batches())
    except mps.PrefStreamError as error:
        print(type(error).__name__, len(str(error)))
"""


@pytest.mark.slow
def test_whatever_does_not_compile_is_one_error() -> None:
    """In a process of its own, because a compiler at its limits may end it."""
    given = json.dumps(COMPILED)
    done = subprocess.run([sys.executable, "-c", COMPILE], input=given, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [line.split() for line in done.stdout.splitlines()]
    assert len(found) >= len(COMPILED) - 1  # sixteen figures of a number may be cut off
    assert all(kind in ("TemplateError", "RowError") and int(length) < 1000 for kind, length in found), found


def stream_of(template: str, rows: list[dict[str, str]], **options: object) -> mps.Stream:
    return mps.stream(
        rows, task=mps.DPO(max_length=256), tokenizer="bytes", batching=mps.Pad(2), template=template, **options
    )  # type: ignore[arg-type]


ROWS = [{"prompt": f"question {n}", "chosen": "yes", "rejected": "no"} for n in range(8)]
ENDLESS = "{% for m in messages %}{{ m.content }}{% endfor %}" + SLOW["empty loops"]


def test_a_template_that_never_ends_is_named_with_its_limit() -> None:
    with pytest.raises(
        mps.TemplateError,
        match=r"needs more than 0\.1 s for one conversation \(2 messages with 2 characters\)\. Check it, or raise "
        r"template_limit_s \(now 0\.1\); None lifts all limits\.",
    ):
        stream_of(ENDLESS, ROWS, template_limit_s=0.1)


def test_a_very_long_row_is_at_fault_itself() -> None:
    quadratic = "{% for m in messages %}{{ m.content }}{% if m.content | length > 9 %}" + NESTED.replace("BODY", "")
    long = {"prompt": "p" * 200_000, "chosen": "yes", "rejected": "no"}
    stream = stream_of(
        quadratic + "{% endif %}{% endfor %}",
        [{**row, "prompt": "p"} for row in ROWS[:3]] + [long],
        template_limit_s=0.3,
        on_bad_row="drop",
    )
    assert len(list(stream.batches())) == 2
    assert stream.report.dropped == {"template_refused": 1}


def deep(levels: int) -> Any:
    return {} if not levels else {"a": deep(levels - 1)}


@pytest.mark.parametrize(
    "values", [deep(250), {"a": [1] * 110_000}, {"a": "a" * 200_000}], ids=["deep", "many", "long"]
)
@pytest.mark.parametrize("place", ["tools", "calls"])
def test_a_row_with_very_large_values_is_at_fault_itself(
    values: Any, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_limits, "LARGEST", 100_000)
    schema = {"type": "function", "function": {"name": "f", "parameters": values if place == "tools" else {}}}
    call = {"type": "function", "function": {"name": "f", "arguments": values if place == "calls" else {}}}
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    row = {"tools": [schema], "prompt": [*turns, {"role": "tool", "content": "1"}], "chosen": "yes", "rejected": "no"}
    stream = stream_of(FAMILIES["qwen2.5"].template, [*ROWS[:3], row], on_bad_row="drop")  # type: ignore[list-item]
    assert len(list(stream.batches())) == 2
    assert stream.report.dropped == {"template_refused": 1}


FIFTH = {"prompt": "question", "chosen": "five", "rejected": "no"}
WITH_FIFTH = [*ROWS[:5], FIFTH, *ROWS[5:]]
LARGE_FOR_FIFTH = (
    "{% for m in messages %}{{ m.content }}{% if m.content == 'five' %}{{ 'a' * 10 ** 9 }}{% endif %}{% endfor %}"
)


def batches_of(source: Any, **options: Any) -> None:
    stream = stream_of(LARGE_FOR_FIFTH, source, on_bad_row="drop", shuffle=False, **options)
    for _ in stream.batches():
        pass


def said_by(found: Any) -> None:
    (line,) = [line for line in str(found).splitlines() if "the chat template makes" in line]
    raise mps.TemplateError(line.removeprefix("✗ "))


ENCODING: dict[str, Any] = {"task": mps.DPO(max_length=64), "tokenizer": "bytes", "template": LARGE_FOR_FIFTH}
DOORS: dict[str, Callable[[pathlib.Path], Any]] = {
    "a file": batches_of,
    "a window": functools.partial(batches_of, window=9),
    "rows in memory": lambda path: batches_of(WITH_FIFTH),
    "one pass": lambda path: batches_of(lambda: iter(WITH_FIFTH)),
    "one pass with workers": lambda path: batches_of(lambda: iter(WITH_FIFTH), workers=1, window=9),
    "rows with workers": functools.partial(batches_of, workers=1),
    "an index": lambda path: mps.build_index(path, path.with_suffix(".mprefidx"), **ENCODING),
    "an index that compares": lambda path: mps.build_index(
        path, path.with_suffix(".mprefidx"), dedup="row", **ENCODING
    ),
    "a cache": lambda path: mps.write_cache(stream_of(LARGE_FOR_FIFTH, path), path.with_suffix(".cache")),  # type: ignore[arg-type]
    "a cache of one pass": lambda path: mps.write_cache(
        stream_of(LARGE_FOR_FIFTH, lambda: iter(WITH_FIFTH)), path.with_suffix(".cache")
    ),  # type: ignore[arg-type]
    "statistics": lambda path: mps.stats(path, progress=False, **ENCODING),
    "the doctor": lambda path: said_by(mps.doctor(path, **ENCODING)),
    "rows to look at": lambda path: list(rows_of(path, None, ENCODING)),
    "one row": lambda path: mps.encode(FIFTH, **ENCODING),
}


@pytest.mark.parametrize("name", DOORS)
def test_the_row_that_shows_a_limit_is_named(name: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in WITH_FIFTH))
    where = {"one row": r"the row", "rows in memory": "row 5 of list"}.get(name, r"rows\.jsonl:6|row 5\b")
    with pytest.raises(
        mps.TemplateError, match=rf"^(.*/)?({where}).*: the chat template makes a value of more than 32 MB"
    ):
        DOORS[name](path)


NUMBERS = [
    "{{ N | tojson }}", "{{ {'a': N} | tojson(indent=2) }}", "{{ '%d' % N }}", "{{ '%d' | format(N) }}", "{{ '{}'.format(N) }}",
    "{{ N | e }}", "{{ N | center(12) }}", "{{ N | replace(N, 1) }}", "{{ N | pprint }}", "{{ N.bit_length() }}", "{{ [N, N] | join(N) }}",
]  # fmt: skip


@pytest.mark.parametrize("text", NUMBERS)
@pytest.mark.parametrize("number", ["2147483647", "(-10 ** 18)", "messages[0].time"])
def test_a_large_number_is_short_as_text(text: str, number: str) -> None:
    limited, free = (renderer(text.replace("N", number), {}, limit_s=s) for s in (10.0, None))
    given = [{"role": "user", "time": 1_764_547_200_000}]
    assert limited(given) == free(given)


@pytest.mark.parametrize(
    "read", ["m.content.strip('\\n')", "m.content.split('</think>')[-1].lstrip('\\n')", "m.content | tojson(indent=4)"]
)
def test_a_long_content_is_no_reason(read: str) -> None:
    text = "{% for m in messages[::-1] %}{% if not m.content.startswith('<tool_response>') %}{{ READ }}{% endif %}{% endfor %}"
    messages = [{"role": "user", "content": Tracked("\u4f60\U0001f600 a\n" * 400_000, (), ContentReads())}]
    limited, free = (renderer(text.replace("READ", read), {}, limit_s=s) for s in (100.0, None))
    assert plain(limited(messages)) == plain(free(messages))


def test_many_addresses_in_contents_take_no_time() -> None:
    content = "<a at 0x1> " * 20
    text = "{% for m in messages %}{{ m.content }}{% endfor %}"
    reads = ContentReads()
    run = Run(0, len(content), 0)
    begin = time.monotonic()
    renderer(text, {})([{"content": Tracked(content, (run,), reads)}] * 4000)
    assert time.monotonic() - begin < 8  # 80,000 addresses in 4,000 contents


@pytest.mark.parametrize("limit", [None, float("inf")])
def test_none_lifts_the_limits(limit: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "LARGEST", 100)
    large = "{% for m in messages %}{{ m.content }}{% endfor %}{{ 'a' * 101 }}"  # more than LARGEST
    with pytest.raises(mps.PrefStreamError, match="makes a value of more than"):
        stream_of(large, ROWS)
    next(stream_of(large, ROWS, template_limit_s=limit, on_bad_row="raise").batches())


@pytest.mark.parametrize("limit", [0, -1, "10", True, float("nan")])
def test_the_limit_is_a_positive_number(limit: object) -> None:
    with pytest.raises(mps.PrefStreamError, match=r"template_limit_s is .*; expected a positive number of seconds"):
        stream_of("{{ messages[0].content }}", ROWS, template_limit_s=limit)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_usual_templates_make_the_same_text(family: Any) -> None:
    limited, free = (
        renderer(family.template, {"bos_token": "<s>", "eos_token": "</s>"}, limit_s=s) for s in (10.0, None)
    )
    assert limited(MESSAGES, None, True) == free(MESSAGES, None, True)
