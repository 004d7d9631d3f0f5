# ruff: noqa: E501 - Jinja reads best a tag at a time
"""A family of chat templates: how they write contents, calls, schemas and reasoning, rightly and with every fault."""

from __future__ import annotations

CONTENTS = {
    "as it is": "{{ m.content if m.content is not none else '' }}",
    "trimmed": "{{ (m.content or '') | trim }}",
    "printing None": "{{ m.content }}",
    "lower case": "{{ (m.content or '') | lower }}",
    "without thoughts": "{% set c = m.content or '' %}{% if '</think>' in c %}{% set c = c.split('</think>')[-1] %}{% endif %}{{ c }}",
    "thoughts apart": "{% set c = m.content or '' %}{% if '</think>' in c %}<think>\n{{ c.split('</think>')[0].split('<think>')[-1].strip('\n') }}\n</think>\n\n{{ c.split('</think>')[-1].lstrip('\n') }}{% else %}{{ c }}{% endif %}",
    "without the system": "{% if m.role != 'system' %}{{ m.content or '' }}{% endif %}",
    "without tool results": "{% if m.role != 'tool' %}{{ m.content or '' }}{% endif %}",
    "first words": "{{ (m.content or '')[:9] }}",
    "by lines": "{% for line in (m.content or '').splitlines() %}{{ line }}\n{% endfor %}",
    "indented": "{{ (m.content or '') | indent(2) }}",
    "without numerals": "{{ (m.content or '') | replace('7', '') }}",
}
CALLS = {
    "all of them": "{{ m.tool_calls | tojson }}",
    "one by one": "{% for c in m.tool_calls %}{% set f = c.function or c %}call {{ f.name }} {{ f.arguments | tojson }};{% endfor %}",
    "indented": "{% for c in m.tool_calls %}{{ c | tojson(indent=2) }}{% endfor %}",
    "made anew": "{% for c in m.tool_calls %}{{ {'name': c.function.name, 'parameters': c.function.arguments} | tojson }}{% endfor %}",
    "joined text": "{% for c in m.tool_calls %}{{ 'call ' + c['function']['name'] + '\\n```json\\n' + c['function']['arguments'] + '\\n```' }}{% endfor %}",
    "printed": "{% for c in m.tool_calls %}{{ c.function.name }}({{ c.function.arguments }}){% endfor %}",
    "text or mapping": "{% for c in m.tool_calls %}{{ c.function.name }}: {% if c.function.arguments is string %}{{ c.function.arguments }}{% else %}{{ c.function.arguments | tojson }}{% endif %}{% endfor %}",
    "item by item": "{% for c in m.tool_calls %}<{{ c.function.name }}>{% for k, v in c.function.arguments | items %}{{ k }}={{ v | tojson | safe }},{% endfor %}{% endfor %}",
    "printed item by item": "{% for c in m.tool_calls %}<{{ c.function.name }}>{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }},{% endfor %}{% endfor %}",
    "only without content": "{% if m.content is none %}{% for c in m.tool_calls %}{{ c | tojson }}{% endfor %}{% endif %}",
    "the first": "{{ m.tool_calls[0] | tojson }}",
    "names": "{% for c in m.tool_calls %}{{ c.function.name }}{% endfor %}",
    "arguments": "{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}",
    "values": "{% for c in m.tool_calls %}{{ c.function.name }}{{ c.function.arguments.values() | join(' ') }}{% endfor %}",
    "in Python's notation": "{{ m.tool_calls | string }}",
    "encoded twice": "{% for c in m.tool_calls %}{{ c.function.name }}{{ c.function.arguments | tojson | tojson }}{% endfor %}",
    "lower case": "{{ m.tool_calls | tojson | lower }}",
    "their number": "{{ m.tool_calls | length }} calls",
    "dropped": "",
}
SCHEMAS = {
    "all of them": "{{ tools | tojson }}",
    "one by one": "{% for t in tools %}{{ t | tojson(indent=4) }}\n{% endfor %}",
    "functions": "{% for t in tools %}{{ t.function | tojson }}{% endfor %}",
    "described": "{% for t in tools %}{% set f = t.function %}{{ f.name }}: {{ f.description }}{% for k, v in f.parameters.properties.items() %} {{ k }} {{ v.description }}{% endfor %};{% endfor %}",
    "names": "{% for t in tools %}{{ t.function.name }}{% endfor %}",
    "without properties": "{% for t in tools %}{{ t.function.name }} {{ t.function.description }}{% endfor %}",
    "the first": "{{ tools[0] | tojson }}",
    "their number": "{{ tools | length }}",
    "dropped": "",
}
THOUGHTS = {
    "written": "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}",
    "of another name": "{% if m.reasoning %}<think>{{ m.reasoning }}</think>{% endif %}",
    "empty": "{% if m.role == 'assistant' %}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}",
    "dropped": "",
}


def template_of(content: str, calls: str, schemas: str, thoughts: str) -> str:
    """A template of four parts, by their names."""
    return (
        f"{{% if tools %}}<|tools|>{SCHEMAS[schemas]}<|end|>{{% endif %}}"
        "{% for m in messages %}<|{{ m.role }}|>"
        f"{THOUGHTS[thoughts]}{CONTENTS[content]}{{% if m.tool_calls %}}{CALLS[calls]}{{% endif %}}<|end|>"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
