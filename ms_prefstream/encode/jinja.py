"""Compiles and renders chat templates in the sandbox that transformers uses, with the same helpers and settings."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from ms_prefstream.errors import TemplateError


class TemplateRefusal(Exception):
    """The template itself refused a conversation (`raise_exception`, or a field it needs is missing)."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}` marks assistant text for transformers; here it renders its body."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    # Jinja's own filter escapes HTML; models were trained on plain JSON.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _refuse(message: str) -> None:
    raise TemplateRefusal(message)


@functools.lru_cache(maxsize=32)
def _compile(text: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return environment.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(
            f"the chat template does not compile: line {error.lineno}: {error.message}. Expected Jinja as in "
            "tokenizer_config.json; correct the template or pass template=None to join prompt and response as text."
        ) from None


def renderer(text: str, variables: Mapping[str, Any]) -> Callable[..., str]:
    """A function ``(messages, tools=None, generation=False) -> str`` for a template.

    Args:
        text: The Jinja source.
        variables: What the template may name besides messages: ``bos_token``, ``eos_token`` ...

    Raises:
        TemplateError: If the template does not compile.
    """
    template = _compile(text)

    def render(messages: Sequence[Mapping[str, Any]], tools: Any = None, generation: bool = False) -> str:
        try:
            return template.render(messages=messages, tools=tools, add_generation_prompt=generation, **variables)
        except TemplateRefusal:
            raise
        except Exception as error:  # anything a template can do wrong with one conversation
            raise TemplateRefusal(f"{type(error).__name__}: {error}") from None

    return render
