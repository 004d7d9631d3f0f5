"""Compiles and renders chat templates in the sandbox that transformers uses, with the same helpers and settings.

The additions: `Tracked` strings stay tracked, and operations that read a content mark it as read. What would make the
text depend on chance, on the process or on the day is refused, or fixed (`template_date`).
"""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import jinja2
import jinja2.compiler
import jinja2.ext
import jinja2.filters
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from ms_prefstream.encode.tracked_text import Leaf, Tracked, braces, joined, mark_read, percent, plain
from ms_prefstream.encode.tracked_values import NoContent, tracked_json
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
            if getattr(method, "__name__", "") == "join" and len(args) == 1:
                args = (list(args[0]),)
                if all(isinstance(part, str) for part in args[0]):
                    return joined(part for item in args[0] for part in (text, item))[len(text) * bool(args[0]) :]
        return super().call(context, function, *args, **options)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    # Jinja's own filter escapes HTML; models were trained on plain JSON.
    return tracked_json(mark_read(value), ensure_ascii=ensure_ascii, indent=indent, **options)


@jinja2.pass_environment
def _join(environment: jinja2.Environment, value: Iterable[Any], d: str = "", attribute: Any = None) -> str:
    if attribute is not None:
        value = map(jinja2.filters.make_attrgetter(environment, attribute), value)
    return joined(part for at, item in enumerate(value) for part in ((str(d), str(item)) if at else (str(item),)))


def _refuse(message: str) -> None:
    raise TemplateRefusal(message)


def _by_chance(*args: Any, **options: Any) -> Any:
    raise TemplateRefusal("its text is random, so a row would have other tokens in each run")


def _reading(function: Callable[..., Any], rewrites: bool = False) -> Callable[..., Any]:
    """Returns a filter that marks the contents among its arguments as read.

    If it `rewrites` its first argument, a text, the result is tracked as far as only white space is different.
    """

    @functools.wraps(function)  # also copies the marks by which Jinja chooses the arguments
    def reading(*args: Any, **options: Any) -> Any:
        for at, value in enumerate(args):
            if isinstance(value, Tracked):
                value.reads.was_read = True
                if rewrites:
                    return value.changed(str(function(*args[:at], plain(value), *args[at + 1 :], **options)))
        return function(*args, **options)

    return reading


_REWRITING = frozenset({
    *("capitalize", "center", "e", "escape", "forceescape", "indent", "lower", "striptags", "title", "truncate"),
    *("upper", "urlize", "wordwrap"),
})  # fmt: skip


def _format(text: str, *args: Any, **named: Any) -> str:
    found = percent(text, args) if args and not isinstance(text, Tracked) else None
    return jinja2.filters.do_format(text, *args, **named) if found is None else found


def _safe(value: Any) -> Any:
    # Nothing is escaped, so text that is marked as safe is no other text.
    return str(value) if isinstance(value, (Tracked, Leaf)) else jinja2.filters.do_mark_safe(value)


_EXTENSIONS = (_Generation, "jinja2.ext.loopcontrols")
_WRITE_ONLY = ("trim", "string", "default", "d", "safe")  # filters that show nothing about a content


@functools.lru_cache(maxsize=32)
def _compile(text: str) -> jinja2.Template:
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=_EXTENSIONS)
    reading: dict[str, Any] = {
        name: _reading(f, name in _REWRITING) for name, f in environment.filters.items() if name not in _WRITE_ONLY
    }
    reading["safe"], reading["format"] = _safe, _reading(_format)
    reading["random"] = environment.globals["lipsum"] = _by_chance
    environment.filters.update(reading)
    environment.tests["none"] = lambda value: value is None or isinstance(value, NoContent)
    is_in: Any = environment.tests["in"]
    environment.tests["in"] = _reading(is_in)
    environment.filters["join"] = _join
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    try:
        return environment.from_string(text)
    except jinja2.TemplateError as error:
        where = f"line {error.lineno}: " if isinstance(error, jinja2.TemplateSyntaxError) else ""
        raise TemplateError(
            f"the chat template does not compile: {where}{error.message}. Expected Jinja as in "
            "tokenizer_config.json; correct the template or pass template=None to join prompt and response as text."
        ) from None


@functools.lru_cache(maxsize=32)
def names_in(text: str) -> frozenset[str]:
    """Returns the variables that a template reads and does not set itself; none if it does not compile."""
    try:
        tree = _Environment(extensions=_EXTENSIONS).parse(text)
    except jinja2.TemplateError:
        return frozenset()
    return frozenset(jinja2.meta.find_undeclared_variables(tree))


def renderer(text: str, variables: Mapping[str, Any], date: datetime.date | None = None) -> Render:
    """Returns the compiled template.

    Args:
        text: The Jinja source.
        variables: Further names that it may use: ``bos_token``, ``eos_token`` ...
        date: The day that ``strftime_now`` gives; None for today's.

    Raises:
        TemplateError: If the template does not compile.
    """
    template = _compile(text)
    day = datetime.datetime.combine(date or datetime.date.today(), datetime.time())
    names = {"documents": None, "strftime_now": day.strftime, **variables}
    known_address = bool(_ADDRESS.search(text))

    def render(messages: Sequence[Mapping[str, Any]], tools: Any = None, generation: bool = False) -> str:
        try:
            found = template.render(messages=messages, tools=tools, add_generation_prompt=generation, **names)
        except TemplateRefusal:
            raise
        except Exception as error:  # any error of the template on one conversation
            raise TemplateRefusal(f"{type(error).__name__}: {error}") from None
        if " at 0x" in plain(found) and not known_address and _has_address(found):
            raise TemplateRefusal("it writes the address of an object, so a row would have other tokens in each run")
        return found

    return render


_ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-fA-F]+>")


def _has_address(text: str) -> bool:
    """Returns whether the template itself wrote an object's address, outside of the values of the row."""
    runs = text.runs if isinstance(text, Tracked) else ()
    return any(
        not any(run.begin <= found.start() and found.end() <= run.end for run in runs)
        for found in _ADDRESS.finditer(plain(text))
    )
