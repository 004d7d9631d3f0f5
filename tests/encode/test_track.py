"""Tracked strings: they behave as strings, record whose characters they hold, and mark contents as read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ms_prefstream.encode.jinja import renderer
from ms_prefstream.encode.tracked_text import ContentReads, Run, Tracked, edited, joined, plain

QUICK = settings(settings.get_profile("cheap"), derandomize=True)


def tracked(text: str, owner: int = 0, reads: ContentReads | None = None) -> Tracked:
    return Tracked(text, (Run(0, len(text), owner),), reads or ContentReads())


def was_read(reads: ContentReads) -> bool:
    """Returns whether more of a content was read than whether there is any text."""
    return reads.looked or any(question.name != "__len__" for question in reads.asked)


def needed(reads: ContentReads) -> set[Any]:
    """(owner, edits) of contents that were tested for being non-empty."""
    return {(question.owner, question.edits) for question in reads.asked if question.name == "__len__"}


def owned(text: str) -> list[tuple[int, str]]:
    """(owner, characters) of the runs."""
    assert isinstance(text, Tracked)
    return [(run.owner, plain(text)[run.begin : run.end]) for run in text.runs]


def test_joining_keeps_places_and_is_not_a_look() -> None:
    reads = ContentReads()
    a, b = tracked("ab", 0, reads), tracked("", 1, reads)
    text = "<" + a + ">" + b + "!"
    assert plain(text) == "<ab>!"
    assert type(plain(text)) is str
    assert text.runs == (Run(1, 3, 0), Run(4, 4, 1))  # type: ignore[attr-defined]
    assert joined(["x", text, a]).runs == (Run(2, 4, 0), Run(5, 5, 1), Run(6, 8, 0))  # type: ignore[attr-defined]
    assert type(joined(["x", "y"])) is str
    assert not was_read(reads)
    assert not needed(reads)


def test_strips_of_a_whole_content_are_remembered() -> None:
    text = tracked(" \n ab \n", 3)
    stripped = text.strip().rstrip("b")
    assert plain(stripped) == "a"
    assert stripped.runs == (Run(0, 1, 3, (("strip", None), ("rstrip", "b")), at=3),)
    assert edited(plain(text), stripped.runs[0].edits) == "a"
    assert not was_read(text.reads)


def test_a_strip_of_more_than_a_content_depends_on_it() -> None:
    text = tracked(" ab ")
    stripped = ("  x" + text).strip()
    assert plain(stripped) == "x ab"
    assert owned(stripped) == [(0, " ab")]
    assert not stripped.runs[0].whole  # type: ignore[attr-defined]
    assert was_read(text.reads)


READS: dict[str, Callable[[Any], Any]] = {
    "length": len, "item": lambda t: t[0], "slice": lambda t: t[1:], "in": lambda t: "a" in t, "iterate": list,
    "equal": lambda t: t == "ab", "not equal": lambda t: t != "ab", "swapped": lambda t: "ab" == t,  # noqa: SIM300
    "less": lambda t: t < "b", "hash": hash, "repr": repr, "format": lambda t: f"{t:>5}", "times": lambda t: t * 2,
    "percent": lambda t: "%s" % t, "left percent": lambda t: t % (), "upper": lambda t: t.upper(),  # noqa: UP031
    "starts": lambda t: t.startswith("a"), "find": lambda t: t.find("a"), "split": lambda t: t.split("a"),
    "replace": lambda t: t.replace("a", "b"), "partition": lambda t: t.partition("a"),
    "replace nothing": lambda t: t.replace("", "-", 2), "options": lambda t: ("\t" + t).expandtabs(tabsize=2),
    "lines": lambda t: t.splitlines(), "encode": lambda t: t.encode(), "isdigit": lambda t: t.isdigit(),
}  # fmt: skip


@pytest.mark.parametrize("name", READS)
def test_reads_are_marked_and_give_what_a_string_gives(name: str) -> None:
    text = tracked("ab")
    assert READS[name](text) == READS[name]("ab")
    assert was_read(text.reads)


HARMLESS: dict[str, Callable[[Any], Any]] = {
    "str": str, "add": lambda t: t + "x", "right add": lambda t: "x" + t, "kind": lambda t: isinstance(t, str),
    "none": lambda t: t == None, "number": lambda t: t != 3, "strip": lambda t: t.strip(),  # noqa: E711
}  # fmt: skip


@pytest.mark.parametrize("name", HARMLESS)
def test_operations_that_show_nothing_are_not_reads(name: str) -> None:
    text = tracked("ab")
    found = HARMLESS[name](text)
    assert not was_read(text.reads)
    assert found == HARMLESS[name]("ab")


@pytest.mark.parametrize("ask", [bool, lambda t: t == "", lambda t: t != "", lambda t: bool(t and t)])
def test_asking_whether_there_is_a_content(ask: Callable[[Any], bool]) -> None:
    text = tracked("ab", 5)
    assert ask(text) == ask("ab")
    assert not was_read(text.reads)
    assert needed(text.reads) == {(5, ())}
    empty = tracked("", 5).strip()
    assert ask(empty) == ask("")
    assert needed(empty.reads) == {(5, (("strip", None),))}


def test_a_text_with_words_of_the_template_is_never_empty() -> None:
    text = tracked("ab")
    assert "x" + text
    assert not needed(text.reads)
    assert joined((text, tracked("", 1, text.reads)))
    assert was_read(text.reads)


def test_pieces_know_where_they_come_from() -> None:
    text = "<" + tracked("aXbXc") + ">"
    assert [owned(part) for part in text.split("X")] == [[(0, "a")], [(0, "b")], [(0, "c")]]
    assert [plain(part) for part in text.split("X", 1)] == ["<a", "bXc>"]
    assert owned(text.replace("X", "--")) == [(0, "a"), (0, "b"), (0, "c")]
    assert owned(text[1:3]) == [(0, "aX")]
    assert owned(text[-2]) == [(0, "c")]
    with pytest.raises(IndexError):
        text[99]


words = st.text(st.sampled_from("ab \n"), max_size=8)


@QUICK
@given(words, words, words, st.sampled_from(["a", "ab", "\n", " ", None]), st.integers(-1, 2))
def test_the_same_as_strings(left: str, content: str, right: str, sep: str | None, count: int) -> None:
    """Whatever is done, the text is that of ordinary strings and every run holds characters of the content."""
    whole = left + content + right
    text = joined((left, tracked(content), right))
    made: list[tuple[Any, Any]] = [
        (text.split(sep, count), whole.split(sep, count)),
        (
            [text.strip(sep), text.lstrip(sep), text.rstrip(sep)],
            [whole.strip(sep), whole.lstrip(sep), whole.rstrip(sep)],
        ),
        ([text[count:], text[:count], text[1:3], text[::-1]], [whole[count:], whole[:count], whole[1:3], whole[::-1]]),
    ]
    if sep is not None:
        made.append(([text.replace(sep, "--", count)], [whole.replace(sep, "--", count)]))
    for parts, expected in made:
        assert list(map(plain, parts)) == expected
        for part in parts:
            for run in getattr(part, "runs", ()):
                assert plain(part)[run.begin : run.end] in content
                assert 0 <= run.begin <= run.end <= len(plain(part))


# Template text, and whether it looks into the content of the first message.
TEMPLATES = {
    "{{ m.content }}": False,
    "{{ 'a' + m.content ~ 'b' }}": False,
    "{{ m['content'] | trim }}": False,
    "{{ m.content | string | default('x') }}": False,
    "{{ [m.content, 'x'] | join('-') }}": False,
    "{% set x %}<{{ m.content }}>{% endset %}{{ x }}": False,
    "{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(m.content) }}": False,
    "{% if m.content is string %}{{ m.content }}{% endif %}": False,
    "{% if m.content %}{{ m.content }}{% endif %}": False,
    "{% if m.content is defined and m.content is not none %}{{ m.content }}{% endif %}": False,
    "{% generation %}{{ m.content }}{% endgeneration %}": False,
    "{% macro f(x) %}{{ x }}{% endmacro %}{{ f(m.content) | upper }}": True,
    "{% macro f(x) %}<{{ x }}>{% endmacro %}{% if 'a' in f(m.content) %}{% endif %}{{ m.content }}": True,
    "{% set x %}<{{ m.content }}>{% endset %}{% if 'a' in x %}{% endif %}{{ m.content }}": True,
    "{% set x = 'a' ~ m.content %}{% if x.startswith('b') %}{% endif %}{{ m.content }}": True,
    "{% set x = [m.content] | join(',') %}{% if 'a' in x %}{% endif %}{{ m.content }}": True,
    "{{ m.content | replace('a', 'b') }}": True,
    "{{ m.content | e }}": True,
    "{{ m | tojson }}": True,
    "{{ m.content | tojson }}": True,
    "{{ m.content | length }}{{ m.content }}": True,
    "{{ '%s' | format(m.content) }}": True,
    "{{ '{}'.format(m.content) }}": False,
    "{{ '{:>9}'.format(m.content) }}": True,
    "{{ '%s' % m.content }}": False,
    "{{ '%9s' % m.content }}": True,
    "{{ m }}": True,
    "{{ ('x' + m.content) | trim }}": True,
    "{{ ', '.join([m.content]) }}": True,
    "{% if 'a'.startswith(m.content) %}{% endif %}{{ m.content }}": True,
    "{% if m.content in 'abc' %}{% endif %}{{ m.content }}": True,
    "{% if m.content not in ['a', 'b'] %}{% endif %}{{ m.content }}": True,
    "{% if m.content is in ['a', 'b'] %}{% endif %}{{ m.content }}": True,
    "{% if {'a': 1}[m.content] %}{% endif %}{{ m.content }}": True,
    "{% if m.role in ['user'] and 'content' in m %}{{ m.content }}{% endif %}": False,
    "{% if 1 < 2 <= m.role | length %}{{ m.content }}{% endif %}": False,
    "{% if m.content == 'a' %}{% endif %}{{ m.content }}": True,
    "{% for c in m.content %}{{ c }}{% endfor %}": True,
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_what_templates_do(template: str) -> None:
    """Templates that only write a content down are told from those that look into it, and the text is Jinja's own."""
    render = renderer("{% set m = messages[0] %}" + template, {})
    content = tracked(" a<b ")
    text = render([{"role": "user", "content": content}])
    assert plain(text) == render([{"role": "user", "content": " a<b "}])
    assert was_read(content.reads) is TEMPLATES[template]
    if not was_read(content.reads):
        assert isinstance(text, Tracked)
        assert [edited(" a<b ", run.edits) for run in text.runs] == [piece for _, piece in owned(text)]
        assert all(run.whole for run in text.runs)
