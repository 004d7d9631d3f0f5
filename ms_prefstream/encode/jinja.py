"""Compiles and renders chat templates in the sandbox that transformers uses, with the same helpers and settings.

The additions: `Tracked` strings stay tracked, and operations that read a content mark it as read. What would make the
text depend on chance, on the process or on the day is refused, or fixed (`template_date`). Time and memory are limited
(`template_limits.py`).
"""

from __future__ import annotations

import bisect
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
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils

from ms_prefstream.encode.template_limits import (
    LONGEST,
    SECONDS,
    TemplateLimitError,
    check_growth,
    counted,
    limited,
    made,
    tick,
)
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
    """Code generator in which ``a ~ b`` keeps the track of contents, and ``a in b`` marks a as read.

    Blocks and comparisons ask for the time. Lists, tuples, mappings and slices are counted.
    """

    def blockvisit(self, nodes: Iterable[jinja2.nodes.Node], frame: jinja2.compiler.Frame) -> None:
        self.writeline("environment.tick()")
        super().blockvisit(nodes, frame)

    def visit_List(self, node: jinja2.nodes.List, frame: jinja2.compiler.Frame) -> None:  # noqa: N802
        self.write("environment.made(")
        super().visit_List(node, frame)
        self.write(")")

    def visit_Dict(self, node: jinja2.nodes.Dict, frame: jinja2.compiler.Frame) -> None:  # noqa: N802
        self.write("environment.made(")
        super().visit_Dict(node, frame)
        self.write(")")

    def visit_Tuple(self, node: jinja2.nodes.Tuple, frame: jinja2.compiler.Frame) -> None:  # noqa: N802
        made = node.ctx == "load"  # else names that are assigned to
        self.write("environment.made(" * made)
        super().visit_Tuple(node, frame)
        self.write(")" * made)

    def visit_Getitem(self, node: jinja2.nodes.Getitem, frame: jinja2.compiler.Frame) -> None:  # noqa: N802
        made = isinstance(node.arg, jinja2.nodes.Slice)  # which the environment does not see
        self.write("environment.made(" * made)
        super().visit_Getitem(node, frame)
        self.write(")" * made)

    def visit_Concat(self, node: jinja2.nodes.Concat, frame: jinja2.compiler.Frame) -> None:  # noqa: N802
        self.write("environment.concat(map(str, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")))")

    def visit_Compare(self, node: jinja2.nodes.Compare, frame: jinja2.compiler.Frame) -> None:  # noqa: N802
        searched = any(operand.op in ("in", "notin") for operand in node.ops)
        self.write(f"(environment.{'searched' if searched else 'compared'}(")
        self.visit(node.expr, frame)
        self.write(")")
        for operand in node.ops:
            self.visit(operand, frame)
        self.write(")")


class _Namespace(jinja2.utils.Namespace):
    """Variables that a template sets in loops. It may not print them: they may hold each other."""

    def __repr__(self) -> str:
        raise TemplateRefusal("it writes a namespace, which holds variables and is no text")


_JINJAS_OWN = ("_loop_vars", "_block_vars")  # arguments of every call, which no function gets


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    code_generator_class = _Generator
    tick = staticmethod(tick)
    made = staticmethod(made)
    intercepted_binops = frozenset({"+", "-", "*", "**", "%"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree = super()._parse(source, name, filename)
        node: Any
        for node in tree.find_all((jinja2.nodes.Call, jinja2.nodes.Filter, jinja2.nodes.Test)):
            if node.dyn_args is not None:  # *arguments become a list, which is limited
                node.dyn_args = jinja2.nodes.Filter(node.dyn_args, "list", [], [], None, None, lineno=node.lineno)
        return tree

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Returns the parts of a text as one."""
        return joined(counted(parts))

    @staticmethod
    def searched(value: Any) -> Any:
        """Returns a value that is searched for in another."""
        tick()
        return mark_read(value)

    @staticmethod
    def compared(value: Any) -> Any:
        """Returns a value that is compared with another."""
        tick()
        return value

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Returns an item or an attribute. The name of an attribute that filters get may have many parts."""
        tick()
        return super().getitem(obj, argument)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Returns the value of ``left operator right``.

        ``left % right`` with plain conversions keeps the track of contents; others read their values.
        """
        check_growth(operator, (left, right))
        if operator == "%" and isinstance(left, str):
            found = None if isinstance(left, Tracked) else percent(left, right)
            if found is not None:
                return found
            mark_read([left, right])
        return made(super().call_binop(context, operator, left, right))

    def call(self, context: Any, function: Any, /, *args: Any, **options: Any) -> Any:
        """Calls a function; methods of ordinary strings read their arguments, except plain ``format``."""
        method = getattr(function, "__wrapped__", function)  # the sandbox wraps ``format``, in some versions
        text, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(text, Tracked) and isinstance(method, functools.partial):
            name = method.args[0]  # of a method such as ``strip``
        if isinstance(text, str) and name == "join" and len(args) == 1:
            check_growth("list", args)
            args = (made(list(args[0])),)
        if isinstance(text, (str, bytes, int, float, list, tuple, dict)):
            named = {key: value for key, value in options.items() if key not in _JINJAS_OWN}
            check_growth(name, (text, *args), named)
            if isinstance(text, str) and not isinstance(text, Tracked):
                if name == "format" and (found := braces(text, args, options)) is not None:
                    return made(found)
                mark_read([*args, *named.values()])
                if name == "join" and len(args) == 1 and all(isinstance(part, str) for part in args[0]):
                    return joined(part for item in args[0] for part in (text, item))[len(text) * bool(args[0]) :]
        return made(super().call(context, function, *args, **options))


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    # Jinja's own filter escapes HTML; models were trained on plain JSON.
    return tracked_json(value, ensure_ascii=ensure_ascii, indent=indent, **options)


@jinja2.pass_environment
def _join(environment: jinja2.Environment, value: Iterable[Any], d: str = "", attribute: Any = None) -> str:
    if attribute is not None:
        value = map(jinja2.filters.make_attrgetter(environment, attribute), value)
    parts = (part for at, item in enumerate(value) for part in ((str(d), str(item)) if at else (str(item),)))
    return joined(counted(parts))


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
                value.reads.looked = True
                if rewrites:
                    return value.changed(str(function(*args[:at], plain(value), *args[at + 1 :], **options)))
        return function(*args, **options)

    return reading


_GIVEN_BY_JINJA = (jinja2.Environment, jinja2.runtime.Context, jinja2.nodes.EvalContext)


def _limited(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a filter that is refused where its result would be too large, and whose result is counted."""

    @functools.wraps(function)
    def checked(*args: Any, **options: Any) -> Any:
        check_growth(name, args[isinstance(args[0], _GIVEN_BY_JINJA) :] if args else args, options)
        return made(function(*args, **options))

    return checked


def _timed(test: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a test that asks for the time."""

    @functools.wraps(test)
    def timed(*args: Any, **options: Any) -> Any:
        tick()
        return test(*args, **options)

    return timed


def _of_kind(test: Any) -> Callable[[Any], Any]:
    """Returns a test that texts, mappings and lists always pass, so that it need not look into them."""
    return lambda value: isinstance(value, (str, dict, list)) or test(value)


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
    for name in ("iterable", "sequence"):
        environment.tests[name] = _of_kind(environment.tests[name])
    is_in: Any = environment.tests["in"]
    environment.tests["in"] = _reading(is_in)
    environment.filters["join"] = _join
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["namespace"] = _Namespace
    environment.filters.update({name: _limited(name, f) for name, f in environment.filters.items()})
    tests: dict[str, Any] = environment.tests
    tests.update({name: _timed(test) for name, test in tests.items()})
    try:
        if len(text) > LONGEST:
            raise TemplateLimitError(f"it has {len(text)} characters; {LONGEST} are the limit")
        text.encode("utf-8")  # for its error: a lone surrogate reaches no tokenizer
        with limited(SECONDS):
            return environment.from_string(text)
    except Exception as error:  # also of the parser, at its limits of recursion, and of the compiler of Python
        where = f"line {error.lineno}: " if isinstance(error, jinja2.TemplateSyntaxError) else ""
        what = error.message if isinstance(error, jinja2.TemplateError) else f"{error}" or type(error).__name__
        raise TemplateError(
            f"the chat template does not compile: {where}{what}. Expected Jinja as in "
            "tokenizer_config.json; correct the template or pass template=None to join prompt and response as text."
        ) from None


@functools.lru_cache(maxsize=32)
def names_in(text: str) -> frozenset[str]:
    """Returns the variables that a template reads and does not set itself; none if it does not compile."""
    if len(text) > LONGEST:
        return frozenset()
    try:
        return frozenset(jinja2.meta.find_undeclared_variables(_Environment(extensions=_EXTENSIONS).parse(text)))
    except (jinja2.TemplateError, RecursionError):
        return frozenset()


def renderer(
    text: str, variables: Mapping[str, Any], date: datetime.date | None = None, limit_s: float | None = SECONDS
) -> Render:
    """Returns the compiled template.

    Args:
        text: The Jinja source.
        variables: Further names that it may use: ``bos_token``, ``eos_token`` ...
        date: The day that ``strftime_now`` gives; None for today's.
        limit_s: Seconds that it may take for one conversation; None for no limit of time and memory.

    Raises:
        TemplateError: If the template does not compile.
    """
    template = _compile(text)
    day = datetime.datetime.combine(date or datetime.date.today(), datetime.time())
    names = {"documents": None, "strftime_now": _limited("strftime", day.strftime), **variables}
    known_address = bool(_ADDRESS.search(text))

    def render(messages: Sequence[Mapping[str, Any]], tools: Any = None, generation: bool = False) -> str:
        try:
            with limited(limit_s):
                found = template.render(messages=messages, tools=tools, add_generation_prompt=generation, **names)
        except (TemplateRefusal, TemplateLimitError):
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
    begins = [run.begin for run in runs]
    for found in _ADDRESS.finditer(plain(text)):
        at = bisect.bisect_right(begins, found.start())
        if not at or found.end() > runs[at - 1].end:
            return True
    return False
