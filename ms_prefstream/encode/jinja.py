"""Compiles and renders chat templates in the sandbox that transformers uses, with the same helpers and settings.

The one addition: `Tracked` strings stay tracked, and operations that read a content mark it as read.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import jinja2
import jinja2.compiler
import jinja2.ext
import jinja2.filters
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from ms_prefstream.encode.tracked_text import Tracked, braces, joined, mark_read, percent
from ms_prefstream.errors import TemplateError


class TemplateRefusal(Exception):
    """Refusal of a conversation by the template itself (`raise_exception`, or a field it needs is missing)."""


class Render(Protocol):
    """A compiled template."""

    def __call__(self, messages: Sequence[Mapping[str, Any]], tools: Any = None, generation: bool = False) -> str:
        """Returns the text of a conversation, with the generation header at its end if `generation`.

        Raises:
            TemplateRefusal: If the template refuses it.
        """


class _Generation(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}` marks assistant text for transformers; here it renders its body."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares it so

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


class _Generator(jinja2.compiler.CodeGenerator):
    """Code generator in which ``a ~ b`` keeps the track of contents, and ``a in b`` marks a as read."""

    def visit_Concat(self, node: jinja2.nodes.Concat, frame: jinja2.compiler.Frame) -> None:  # noqa: N802
        self.write("environment.concat(map(str, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")))")

    def visit_Compare(self, node: jinja2.nodes.Compare, frame: jinja2.compiler.Frame) -> None:  # noqa: N802
        searched = any(operand.op in ("in", "notin") for operand in node.ops)
        self.write("(environment.searched(" if searched else "(")
        self.visit(node.expr, frame)
        self.write(")" if searched else "")
        for operand in node.ops:
            self.visit(operand, frame)
        self.write(")")


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    code_generator_class = _Generator
    concat = staticmethod(joined)
    searched = staticmethod(mark_read)
    intercepted_binops = frozenset({"%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Returns ``left % right``: plain conversions keep the track of contents, others read their values."""
        if isinstance(left, str):
            found = None if isinstance(left, Tracked) else percent(left, right)
            if found is not None:
                return found
            mark_read([left, right])
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, function: Any, /, *args: Any, **options: Any) -> Any:
        """Call a function; methods of ordinary strings read their arguments, except plain ``format``."""
        method = getattr(function, "__wrapped__", function)  # the sandbox wraps ``format``, in some versions
        text = getattr(method, "__self__", None)
        if isinstance(text, str) and not isinstance(text, Tracked):
            if getattr(method, "__name__", "") == "format" and (found := braces(text, args, options)) is not None:
                return found
            mark_read([*args, *options.values()])
        return super().call(context, function, *args, **options)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    # Jinja's own filter escapes HTML; models were trained on plain JSON.
    return json.dumps(mark_read(value), ensure_ascii=ensure_ascii, indent=indent, **options)


@jinja2.pass_environment
def _join(environment: jinja2.Environment, value: Iterable[Any], d: str = "", attribute: Any = None) -> str:
    if attribute is not None:
        value = map(jinja2.filters.make_attrgetter(environment, attribute), value)
    return joined(part for at, item in enumerate(value) for part in ((str(d), str(item)) if at else (str(item),)))


def _refuse(message: str) -> None:
    raise TemplateRefusal(message)


def _reading(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a filter that marks the contents among its arguments as read."""

    @functools.wraps(function)  # also copies the marks by which Jinja chooses the arguments
    def reading(*args: Any, **options: Any) -> Any:
        for value in args:
            if isinstance(value, Tracked):
                value.reads.was_read = True
        return function(*args, **options)

    return reading


_WRITE_ONLY = ("trim", "string", "default", "d")  # filters that show nothing about a content


@functools.lru_cache(maxsize=32)
def _compile(text: str) -> jinja2.Template:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    reading: dict[str, Any] = {name: _reading(f) for name, f in environment.filters.items() if name not in _WRITE_ONLY}
    environment.filters.update(reading)
    is_in: Any = environment.tests["in"]
    environment.tests["in"] = _reading(is_in)
    environment.filters["join"] = _join
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return environment.from_string(text)
    except jinja2.TemplateError as error:
        where = f"line {error.lineno}: " if isinstance(error, jinja2.TemplateSyntaxError) else ""
        raise TemplateError(
            f"the chat template does not compile: {where}{error.message}. Expected Jinja as in "
            "tokenizer_config.json; correct the template or pass template=None to join prompt and response as text."
        ) from None


def renderer(text: str, variables: Mapping[str, Any]) -> Render:
    """Returns the compiled template; `variables` are further names that it may use: ``bos_token``, ``eos_token`` ...

    Raises:
        TemplateError: If the template does not compile.
    """
    template = _compile(text)

    def render(messages: Sequence[Mapping[str, Any]], tools: Any = None, generation: bool = False) -> str:
        try:
            return template.render(
                messages=messages, tools=tools, documents=None, add_generation_prompt=generation, **variables
            )
        except TemplateRefusal:
            raise
        except Exception as error:  # any error of the template on one conversation
            raise TemplateRefusal(f"{type(error).__name__}: {error}") from None

    return render
