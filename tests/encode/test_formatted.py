"""Templates that write contents by ``%`` and ``format``: the same text, and the place of every content is known."""

from __future__ import annotations

from typing import Any

import jinja2.sandbox
import pytest

import ms_prefstream as mps
from ms_prefstream.encode.jinja import renderer
from ms_prefstream.encode.tracked_text import ContentReads, Run, Tracked

PLAIN = [
    "{{ '<%s>%s%%' % (role, content) }}",
    "{{ 'a%sb' % content }}",
    "{{ '<{}>{}'.format(role, content) }}",
    "{{ '{1}{0}{1}{{}}'.format(role, content) }}",
    "{{ '{r}: {c}'.format(r=role, c=content) }}",
]
OTHER = ["{{ '%5s|%r' % (content, content) }}", "{{ '{:>9}{!r}'.format(content, content) }}", "{{ '%d' % 3 }}"]


def rendered(template: str, content: Any) -> str:
    text = (
        "{% for m in messages %}" + template.replace("role", "m.role").replace("content", "m.content") + "{% endfor %}"
    )
    return renderer(text, {})([{"role": "user", "content": content}])


@pytest.mark.parametrize("template", [*PLAIN, *OTHER])
@pytest.mark.parametrize("content", ["Hi", "%s {} {0} %", ""])
def test_the_text_is_jinjas(template: str, content: str) -> None:
    reads = ContentReads()
    found = rendered(template, Tracked(content, (Run(0, len(content), 0),), reads))
    expected = jinja2.sandbox.ImmutableSandboxedEnvironment().from_string(template)
    assert str.__str__(found) == expected.render(role="user", content=content)
    assert reads.looked == (template in OTHER[:2])
    if template in PLAIN:
        assert isinstance(found, Tracked)
        assert {found[run.begin : run.end] for run in found.runs} == {content}


@pytest.mark.parametrize("by", ["% (m.role, m.content)", "| format(m.role, m.content)"])
def test_nothing_is_said_to_be_rewritten(by: str) -> None:
    template = "{% for m in messages %}{{ '<|im_start|>%s\\n%s<|im_end|>\\n' BY }}{% endfor %}".replace("BY", by)
    template += "{% if add_generation_prompt %}{{ '<|im_start|>{}\\n'.format('assistant') }}{% endif %}"
    row = {"prompt": "Why? %s", "chosen": "Because.", "rejected": "No."}
    found = mps.encode(row, task=mps.DPO(64), tokenizer="bytes", template=template)
    assert found.sample is not None
    assert not found.notes
    usual = mps.encode(row, task=mps.DPO(64), tokenizer="bytes")
    for one, other in zip(found.sample.sequences, usual.sample.sequences, strict=True):  # type: ignore[union-attr]
        assert one.ids.tolist() == other.ids.tolist()
        assert one.spans == other.spans
