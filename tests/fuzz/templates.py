"""Target: chat templates, spliced and changed as text, with conversations of every kind."""

from __future__ import annotations

import json
import pathlib
import random
import re
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

import ms_prefstream as mps
from ms_prefstream.encode.backends.bytes_backend import CONTROL
from ms_prefstream.encode.calls import FORMS, CallForm
from ms_prefstream.encode.tokenizer import load_tokenizer
from tests.encode.chat_templates import FAMILIES
from tests.fuzz.mutations import text
from tests.fuzz.rows import dialogues, with_tools

SECONDS = 1.0  # of one conversation
LONGEST = 4096
WORDS = [
    "{{ ", " }}", "{% ", " %}", "{#", "#}", "{%- ", " -%}", "{% endif %}", "{% endfor %}", "{% else %}",
    "{% break %}", "{% for message in messages %}", "{% if loop.last %}", "{% if message.tool_calls %}",
    "{% set x = 1 %}", "{% set ns = namespace(a=0) %}", "{% macro f(x) %}{{ x }}{% endmacro %}", "{{ f(1) }}",
    "{% raw %}", "{% endraw %}", "{% generation %}", "{% endgeneration %}", "{{ message }}", "{{ messages }}",
    "{{ messages | tojson }}", "{{ tools }}", "{{ message.content | length }}", "{{ message.content[::-1] }}",
    "{{ message.content | upper }}", " ~ ", " + ", " * 9", " | trim", " | replace('e', '')", " | tojson(indent=2)",
    " | int", " | list", " | join(',')", " | first", " | random", " | map(attribute='role')",
    " | selectattr('role', 'equalto', 'user')", " | batch(2)", " | default('x')", "[0]", "[1:]", "[-1]",
    ".split(' ')", ".strip()", ".format(1)", ".items()", "['role']", ".content", ".missing", "is defined",
    "is string", "not ", " and ", " or ", " in ", "('a' * 10**9)", "range(10**9)", "2 ** 20000",
    "raise_exception('no')", "strftime_now('%Y')", "self", "loop.index0", "cycler('a', 'b').next()", "joiner()()",
    "lipsum()", "dict(a=1)", "''.__class__", "(" * 200, "{% if 1 %}" * 30,
    "{% for i in range(9999) %}{% for j in range(9999) %}", "{% include 'x' %}", "{% import 'x' as y %}",
    "{% call f(1) %}", "{% filter upper %}", "{% block a %}", "{% endblock %}", "{% do x %}", "{% set x %}",
    "<|im_end|>", "<|im_start|>", "\n", "  ", "-", "'", '"', "\x00", "你好", "\ud800", "%", "{", "}", "true", "none",
    "1e999", "0x", "namespace",
]  # fmt: skip
EXPRESSIONS = [
    "message", "messages", "message.content", "message['role']", "message.content[::-1]", "message.content[1:]",
    "tools", "message.content | upper", "message.content | length", "message.content.split(' ') | last",
    "message.content ~ 'x'", "message.content.strip()", "message.content.replace('e', '')",
    "message.content | trim | title", "message | tojson", "messages | map(attribute='role') | join(',')",
    "messages[0].content", "messages[-1].role", "messages | length * 2", "message.content * 3", "message.missing",
    "message.content.format(1)", "message.content | int", "message.items() | list", "'%s' % message.content",
    "message.content | e", "message.content | wordwrap(3)", "message.content | indent", "eos_token",
    "message.content | list | random", "range(9) | list", "loop.index0", "message.content if loop.first else ''",
    "1 / 0", "[message.content, message.role] | join", "{'a': message.content} | tojson",
    "message.content | truncate(5)", "('a' * 10**9)", "range(10**9) | list", "2 ** 20000", "raise_exception('no')",
    "strftime_now('%Y')", "namespace(a=1)", "message.content | replace('y', message.content)", "dict(a=message)",
    "message.content | center(9999)", "7 | round(-400)", "message.content | regex", "message.content.encode()",
    "messages.append(1)", "message.update(a=1)", "cycler(1, 2).next()", "message.content | batch(2) | list",
    "message.content | groupby(0) | list", "messages | groupby('role') | list", "self",
    "message.content in messages", "message.content | string | reverse", "caller()", "lipsum()", "'\\ud800'",
    "'<|im_end|>'", "(messages | selectattr('role', 'eq', 'user') | list | length)", "message.content | format(1)",
    "message.content | xmlattr",
]  # fmt: skip
STATEMENTS = [
    "{% if {x} %}{p}{% endif %}", "{% if not {x} %}{p}{% else %}{q}{% endif %}", "{% set x = {x} %}{{ x }}{p}",
    "{% for i in {x} %}{p}{{ i }}{% endfor %}", "{% for i in range(3) %}{p}{% endfor %}",
    "{% generation %}{p}{% endgeneration %}", "{% set x %}{p}{% endset %}{{ x }}{{ x }}",
    "{% filter upper %}{p}{% endfilter %}", "{% macro f(a) %}{p}{{ a }}{% endmacro %}{{ f({x}) }}",
    "{% raw %}{p}{% endraw %}", "{# {p} #}", "{%- if {x} -%}\n {p}\n{%- endif -%}\n",
    "{% block a %}{p}{% endblock %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{p}{% endfor %}{% endfor %}",
    "{% with x = {x} %}{p}{% endwith %}", "{% macro g(n) %}{{ g(n + 1) }}{% endmacro %}{{ g(1) }}",
    "{% autoescape true %}{p}{{ {x} }}{% endautoescape %}", "{% call(y) f(1) %}{p}{% endcall %}",
    "{% set ns.x = {x} %}", "{% for m in messages if {x} %}{p}{% else %}{q}{% endfor %}",
]  # fmt: skip
_PIECE = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|[^{]+", re.DOTALL)


class TemplatesTarget:
    """A template: what its rows are encoded to is what Jinja makes of them."""

    place = r"template|row \d|rows"

    def __init__(self, folder: pathlib.Path) -> None:
        self._tokenizer = load_tokenizer("bytes")
        self._rows: Any = [dialogues(2)[1], {**with_tools(1)[0]}, *dialogues(1)]
        self._rows[2]["chosen"][-1]["content"] = "<think>\nhm\n</think>\n\nyes <b>é</b> "
        self._texts = {id_: name for name, id_ in CONTROL.items()}

    def start(self, draw: random.Random) -> Any:
        return FAMILIES[draw.choice(sorted(FAMILIES))].template, draw.randrange(3)

    def mutate(self, value: Any, draw: random.Random) -> Any:
        template, row = value
        if draw.random() < 0.15:
            return text(template, draw, WORDS), row
        pieces = _PIECE.findall(template)
        printed = [at for at, piece in enumerate(pieces) if not piece.startswith("{%")] or [0]
        at, expression = draw.choice(printed), draw.choice(EXPRESSIONS)
        piece = pieces[at] if pieces else ""
        change = draw.randrange(6)
        if change == 0:
            new = draw.choice(["", piece * 2, expression])
        elif change == 1:
            new = piece + "{{ " + expression + " }}"
        elif change == 2 and piece.startswith("{{"):
            new = piece[:-2] + draw.choice([" + ", " ~ ", " | default("]) + expression + "}}"
        elif change == 3:
            new = text(piece, draw, WORDS)
        else:
            other = pieces[draw.choice(printed)] if pieces else ""
            new = draw.choice(STATEMENTS).replace("{x}", expression).replace("{p}", piece).replace("{q}", other)
        pieces[at : at + 1] = [new]
        return "".join(pieces), row

    def run(self, value: Any) -> bool:
        template, at = value
        row = self._rows[at]
        stream = mps.stream(
            [row], task=mps.DPO(LONGEST), tokenizer=self._tokenizer, template=template, template_limit_s=SECONDS,
            batching=mps.Pad(1, length=LONGEST), boundary="joint", verbose=False,
        )  # fmt: skip
        (batch,) = stream.batches()
        for side in ("chosen", "rejected"):
            ids = batch[f"{side}_input_ids"][0][batch[f"{side}_attention_mask"][0] > 0].tolist()
            if "strftime_now" not in template and not stream.report.truncated:
                assert self._decoded(ids) in references(template, row, side), "another text"
        return True

    def is_parsed(self, value: Any) -> bool:
        try:
            environment().parse(value[0])
        except (jinja2.TemplateError, RecursionError, UnicodeError):
            return False
        return True

    def _decoded(self, ids: list[int]) -> str:
        parts = [bytes([id_]) if id_ < 256 else self._texts[id_].encode() for id_ in ids]
        return b"".join(parts).decode()


class Generation(jinja2.ext.Extension):
    """The marks that transformers has for answers."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares it so

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        return jinja2.nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


def environment() -> Any:
    """The sandbox of transformers, with its helpers."""

    def tojson(
        value: Any, ensure_ascii: Any = False, indent: Any = None, separators: Any = None, sort_keys: Any = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    made.intercepted_binops = frozenset({"*", "**"})  # not computed in compiling
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = refuse
    return made


def references(template: str, row: Any, side: str) -> list[str]:
    """The texts of one side by Jinja alone: of each form of its calls that the template accepts, see `CallForm`."""
    messages = (
        row[side] if isinstance(row[side], list) else [*row["prompt"], {"role": "assistant", "content": row[side]}]
    )
    compiled, found, failed = environment().from_string(template), list[str](), None
    for form in FORMS if any("tool_calls" in message for message in messages) else FORMS[:1]:
        shown = [in_form(message, form) for message in messages]
        try:
            found.append(
                compiled.render(
                    messages=shown, tools=row.get("tools"), add_generation_prompt=False, eos_token="<|im_end|>",
                    pad_token="<|pad|>",
                )
            )  # fmt: skip
        except Exception as error:
            failed = failed or error
    if not found and failed is not None:
        raise failed
    return found


def in_form(message: Any, form: CallForm) -> Any:
    """Returns a message as `CallForm` describes it; the rows have the first of the forms."""
    if "tool_calls" not in message:
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    content = None if form.none and not message["content"] else message["content"]
    return {**message, "content": content, "tool_calls": calls if form.text else message["tool_calls"]}
