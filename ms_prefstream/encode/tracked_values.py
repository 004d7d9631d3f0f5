"""The values of a row beside its contents, as templates read them: tool calls, tool schemas, further keys of a turn.

A template may write such a value as a whole (``tojson``) or item by item. Either way its text is `Tracked`, so the
rendered text shows which values it holds. Their owners are negative, apart from the contents', which are messages.

    {"a": 1} | tojson  ->  '{"a": 1}' with one run of the mapping
    {"a": 1}["a"]      ->  a number whose text has a run of its own
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ms_prefstream.encode.template_limits import counted
from ms_prefstream.encode.tracked_text import ContentReads, Leaf, Run, Tracked, joined, plain

NO_CONTENT = -1  # the owner of the word None, written for a content that is missing


class JsonText(str):
    """A value as JSON text, which a template must write as it is: ``tojson`` would encode it a second time."""


class Sealed(dict[Any, Any]):
    """A mapping that stands for any other that is not empty: a template that looks into it reads it."""


class Node:
    """One value of a row, and the values in it that a template read.

    Args:
        values: Gives the owners of one rendering.
        given: The value: text, a number, a bool, None, a list or a dict.
        as_json: Whether ``str`` of a list or mapping, which is Python's notation, does not count as writing it.

    Attributes:
        shown: The value that the template gets.
        items: The values in it that the template read, by key or index.
        keys: The keys that it read.
    """

    __slots__ = ("_values", "as_json", "given", "items", "keys", "owner", "shown")

    def __init__(self, values: Values, given: Any, as_json: bool) -> None:
        self._values, self.given, self.as_json = values, given, as_json
        self.owner = values.new_owner()
        self.items: dict[Any, Node] = {}
        self.keys: dict[Any, Node] = {}
        self.shown: Any = given
        if isinstance(given, str):
            self.shown = Tracked(given, (Run(0, len(given), self.owner),), values.reads)
        elif isinstance(given, dict):
            self.shown = (SealedDict if isinstance(given, Sealed) else TrackedDict)(self)
        elif isinstance(given, list):
            self.shown = TrackedList(self)
        elif isinstance(given, (int, float)) and not isinstance(given, bool):
            self.shown = (TrackedInt if isinstance(given, int) else TrackedFloat)(given)
            self.shown._node = self

    def item(self, key: Any) -> Any:
        """Returns the value at a key or an index, as templates read it."""
        if key not in self.items:
            self.items[key] = Node(self._values, self.given[key], self.as_json)
        return self.items[key].shown

    def key(self, key: Any) -> Any:
        """Returns a key as templates read it."""
        if key not in self.keys:
            self.keys[key] = Node(self._values, key, self.as_json)
        return self.keys[key].shown

    def written(self, text: str, held: int = 1, form: Any = None) -> Tracked:
        """Returns a text that stands for the whole value."""
        return Tracked(text, (Run(0, len(text), self.owner, (), False, 0, held, form),), self._values.reads)

    def look(self) -> None:
        """Records that the text may depend on everything in the value."""
        self._values.reads.looked = True


class Values:
    """The values of one conversation as nodes.

    Args:
        reads: The record of the rendering.
    """

    def __init__(self, reads: ContentReads) -> None:
        self.reads = reads
        self._last = NO_CONTENT

    def new_owner(self) -> int:
        """Returns an owner that no other value has."""
        self._last -= 1
        return self._last

    def node(self, given: Any, as_json: bool = False) -> Node:
        """Returns the node of a value."""
        return Node(self, given, as_json)


class _Number(Leaf):
    _node: Node

    def __str__(self) -> str:
        return self._node.written(repr(self._node.given))

    __repr__ = __str__


class TrackedInt(_Number, int):
    """An int whose text is tracked."""


class TrackedFloat(_Number, float):
    """A float whose text is tracked."""


class TrackedDict(Leaf, dict[Any, Any]):
    """A mapping whose text, keys and values are tracked."""

    def __init__(self, node: Node) -> None:
        super().__init__(node.given)
        self._node = node

    def __getitem__(self, key: Any, /) -> Any:
        dict.__getitem__(self, key)
        return self._node.item(plain(key) if isinstance(key, str) else key)

    def get(self, key: Any, default: Any = None, /) -> Any:
        return self[key] if key in self else default  # noqa: SIM401 - that is this method

    def keys(self) -> Any:
        return [self._node.key(key) for key in self._node.given]

    def values(self) -> Any:
        return [self._node.item(key) for key in self._node.given]

    def items(self) -> Any:
        return list(zip(self.keys(), self.values(), strict=True))

    def __iter__(self) -> Iterator[Any]:
        return iter(self.keys())

    def copy(self) -> dict[Any, Any]:
        return dict(self.items())

    def __str__(self) -> str:
        return self._node.written(dict.__repr__(self), held=not self._node.as_json)

    __repr__ = __str__


class SealedDict(TrackedDict):
    """A tracked mapping that records each look into it."""

    def __bool__(self) -> bool:
        return True


def _looking(name: str) -> Any:
    def method(self: SealedDict, *args: Any, **options: Any) -> Any:
        self._node.look()
        return getattr(TrackedDict, name)(self, *args, **options)

    return method


for _name in (
    *("__getitem__", "__iter__", "__reversed__", "__len__", "__contains__", "__eq__", "__ne__", "__or__", "__ror__"),
    *("get", "keys", "values", "items", "copy"),
):
    setattr(SealedDict, _name, _looking(_name))


class TrackedList(Leaf, list[Any]):
    """A list whose text and items are tracked."""

    def __init__(self, node: Node) -> None:
        super().__init__(node.given)
        self._node = node

    def __getitem__(self, key: Any, /) -> Any:
        found = range(len(self))[key]
        return self._node.item(found) if isinstance(found, int) else [self._node.item(at) for at in found]

    def __iter__(self) -> Iterator[Any]:
        return (self._node.item(at) for at in range(len(self)))

    def __reversed__(self) -> Iterator[Any]:
        return iter([*self][::-1])

    def __add__(self, other: Any, /) -> Any:
        return list(self) + other

    def __radd__(self, other: Any, /) -> Any:
        return other + list(self)

    def __str__(self) -> str:
        return self._node.written(list.__repr__(self), held=not self._node.as_json)

    __repr__ = __str__


class NoContent:
    """The None that some templates expect as content beside tool calls; its text is tracked."""

    def __init__(self, reads: ContentReads) -> None:
        self._reads = reads

    def __bool__(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return other is None or isinstance(other, NoContent)

    def __hash__(self) -> int:
        return hash(None)

    def __str__(self) -> str:
        return Tracked("None", (Run(0, 4, NO_CONTENT, (), False, 0, 0),), self._reads)

    __repr__ = __str__


class JsonForm(NamedTuple):
    """The form in which a value is written as JSON.

    Attributes:
        line: A line break with the indentation of the value.
        options: Those of ``json.dumps``.
    """

    line: str
    options: Mapping[str, Any]

    def text(self, value: Any) -> str:
        """Returns a value in this form; text comes without its quotes."""
        return self.writer()(value)

    def writer(self) -> Callable[[Any], str]:
        """Returns `text` for many values."""
        encode = json.JSONEncoder(**{**self.options, "ensure_ascii": False}).encode
        is_ascii = bool(self.options.get("ensure_ascii", True))

        def text(value: Any) -> str:
            found = _ascii(encode(value)) if is_ascii else encode(value)
            return found[1:-1] if isinstance(value, str) else found.replace("\n", self.line)

        return text


def tracked_json(value: Any, **options: Any) -> str:
    """Returns ``json.dumps(value, **options)``, with the runs of the tracked values in it."""
    return joined(counted(_json(value, "\n", options)))


def _json(value: Any, line: str, options: Mapping[str, Any]) -> Iterable[str]:
    """Yields the JSON text of a value in parts; `line` is a line break with the indentation of the value."""
    if isinstance(value, (_Number, TrackedDict, TrackedList)):
        node = value._node
        return [node.written(_dumps(node.given, options).replace("\n", line), form=JsonForm(line, options))]
    if isinstance(value, NoContent):
        return ["null"]
    if isinstance(value, Tracked):
        return [_json_string(value, bool(options.get("ensure_ascii", True)))]
    if isinstance(value, dict) and value:
        return _json_items("{}", _members(value, options), line, options)
    if isinstance(value, (list, tuple)) and value:
        return _json_items("[]", (("", item) for item in value), line, options)
    return [_dumps(value, options)]


def _members(value: Mapping[Any, Any], options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields (text of the key with its colon, value) of a mapping."""
    _, colon = _separators(options)
    for key, item in sorted(value.items()) if options.get("sort_keys") else value.items():
        if isinstance(key, Tracked):
            yield joined((_json_string(key, bool(options.get("ensure_ascii", True))), colon)), item
            continue
        member = _dumps({key: 0}, {**options, "indent": None, "separators": (",", ":")})
        if len(member) > 2:  # with skipkeys=True a key may be left out
            yield member[1:-3] + colon, item


def _json_items(
    brackets: str, members: Iterable[tuple[str, Any]], line: str, options: Mapping[str, Any]
) -> Iterator[str]:
    indent, (comma, _) = options.get("indent"), _separators(options)
    inner = "" if indent is None else line + (indent if isinstance(indent, str) else " " * indent)
    first = True
    for key, item in members:
        yield brackets[0] + inner if first else comma + inner
        first = False
        yield key
        yield from _json(item, inner or line, options)
    if first:
        yield brackets
    else:
        yield ("" if indent is None else line) + brackets[1]


def _separators(options: Mapping[str, Any]) -> tuple[str, str]:
    return options.get("separators") or ((", ", ": ") if options.get("indent") is None else (",", ": "))


_NOT_ASCII = re.compile("[^\x00-\x7e\ue002\ue003\U000f0000-\U0010fffd]")


def _dumps(value: Any, options: Mapping[str, Any]) -> str:
    """Returns ``json.dumps(value, **options)``, in which control tokens stay hidden (see `ControlTokens.hide`)."""
    if not options.get("ensure_ascii", True):
        return json.dumps(value, **options)
    return _ascii(json.dumps(value, **{**options, "ensure_ascii": False}))


def _ascii(text: str) -> str:
    return _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text)


def _json_string(text: Tracked, ascii_only: bool) -> Tracked:
    """Returns a string as JSON; its runs stand for the same characters as before."""
    whole, parts, runs, position = plain(text), ['"'], [], 0
    length = 1

    def add(begin: int, end: int) -> None:
        nonlocal length
        parts.append(_dumps(whole[begin:end], {"ensure_ascii": ascii_only})[1:-1])
        length += len(parts[-1])

    complete = text.alone is not None and text.runs[0].held < 0
    if not complete or text.reads.answering is None:
        text.reads.looked = True
    for run in text.runs:
        add(position, run.begin)
        first = length
        add(run.begin, run.end)
        at, end = run.source
        again = run.owner < 0 < run.held  # what is JSON already is no longer what a model reads as the value
        form = JsonForm("", {"ensure_ascii": ascii_only}) if complete else None
        runs.append(Run(first, length, run.owner, run.edits, False, at, 0 if again else end - at, form))
        position = run.end
    add(position, len(whole))
    return Tracked("".join(parts) + '"', tuple(runs), text.reads)


def has_text(value: Any) -> bool:
    """Returns whether a value is text that is not blank, or bytes, or holds either."""
    if isinstance(value, (str, bytes)):
        return bool(value.strip())
    items: Sequence[Any] = [*value.values()] if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return any(map(has_text, items))
