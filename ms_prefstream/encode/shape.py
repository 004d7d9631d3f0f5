"""The shape of a conversation with calls, schemas or further keys: everything but its texts, arguments and schemas.

`Shapes` finds the shape of one conversation, `groups_of` the conversations of one shape among many.

Conversations of one shape share a layout, in which these values are slots. A text that is blank belongs to the shape,
and so does each key, number and flag outside of arguments and schemas.

    {"name": "find", "arguments": {"key": 1}}  ->  shape ("{", ("name", TEXT), ("arguments", MAPPING))
                                                   values "find", {"key": 1}
"""

from __future__ import annotations

import enum
import marshal
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ms_prefstream.encode.calls import CALL_KEYS, decoded, plain_value, schema_list
from ms_prefstream.encode.control_tokens import ControlTokens
from ms_prefstream.encode.tracked_text import Edits, Run, by_object, edited
from ms_prefstream.encode.tracked_values import JsonForm, JsonText, Sealed
from ms_prefstream.formats.record import Message, Messages

TEXT, MAPPING = "text", "mapping"
SCHEMAS = 256  # lists of schemas that are kept with their JSON texts
_MOST_COLUMNS = 1024  # columns of a group; a value that holds itself has no end
_PLACE = re.compile("\ue000([0-9]+)\ue001")
_AS_TEXT = JsonForm("", {"ensure_ascii": False})


class Schema:
    """A tool schema whose JSON texts are kept.

    Args:
        value: The schema.
        hidden: Whether it holds a control token.
    """

    def __init__(self, value: Mapping[str, Any], hidden: bool) -> None:
        self.value, self.hidden = value, hidden
        self._texts: dict[str, str] = {}

    def text(self, form: JsonForm) -> str:
        """Returns the schema as JSON text."""
        key = repr(form)
        if key not in self._texts:
            self._texts[key] = form.text(self.value)
        return self._texts[key]


class Shape(NamedTuple):
    """The shape of one conversation.

    Attributes:
        key: What all conversations of the shape have in common.
        values: What fills the slots: each content, then the texts, arguments and schemas in their order.
        placed: Makes the turns and the schemas (None if there are none) with a placeholder for each value.
    """

    key: tuple[Any, ...]
    values: list[Any]
    placed: Callable[[], tuple[Messages, Any]]


class Slot(NamedTuple):
    """A place in the text for one value.

    Attributes:
        value: Its index among the values.
        edits: Strips of a text.
        form: How it is written as JSON; None for a text as it is.
    """

    value: int
    edits: Edits
    form: JsonForm | None

    def text(self, values: Sequence[Any]) -> str:
        """Returns what stands in the place."""
        return self._written(values[self.value], self._form.text)

    def texts(self, column: Sequence[Any]) -> list[str | None]:
        """Returns what stands in the place for each of many values; None for one that JSON has no form for."""
        write = self._form.writer()

        def written(values: Iterable[Any]) -> Iterator[str | None]:
            for value in values:
                try:
                    yield self._written(value, write)
                except (TypeError, ValueError, RecursionError):
                    yield None

        return by_object(column, written)

    def shows(self, control: ControlTokens) -> bool:
        """Returns whether a control token in a value is the same text in the place."""
        options = self._form.options
        return not self.edits and control.in_json and not (options.get("ensure_ascii", True) or options.get("skipkeys"))

    @property
    def _form(self) -> JsonForm:
        return self.form or _AS_TEXT

    def _written(self, value: Any, write: Callable[[Any], str]) -> str:
        if isinstance(value, str):
            text = edited(value, self.edits)
            return text if self.form is None else write(text)
        return value.text(self._form) if isinstance(value, Schema) else write(value)


class Shapes:
    """Finder of shapes, with the schemas that it has seen.

    Args:
        find_in: Returns the first control token in a value.
    """

    def __init__(self, find_in: Callable[[Any], str | None]) -> None:
        self._find_in = find_in
        self._schemas: dict[bytes, list[Schema]] = {}
        self._last: tuple[Any, list[Schema]] | None = None  # both sides of a pair have the same
        self._other: tuple[Messages, Any, Shape] | None = None  # the conversation before

    def of(self, messages: Messages, tools: Any) -> Shape | None:
        """Returns the shape; None for a conversation that must be rendered in full."""
        shape = self._as_other(messages, tools)
        if shape is None:
            shape = self._found(messages, tools)
            self._other = None if shape is None else (messages, tools, shape)
        return shape

    def _as_other(self, messages: Messages, tools: Any) -> Shape | None:
        """Returns the shape of the conversation before with other contents, where only answers in text differ.

        This is so for the second side of most pairs.
        """
        if self._other is None or tools is not self._other[1] or len(messages) != len(self._other[0]):
            return None
        before, _, shape = self._other
        values = list(shape.values)
        for at, (message, other) in enumerate(zip(messages, before, strict=True)):
            if message is other:
                continue
            role, content, extra = message
            is_text = bool(content.strip()) and bool(other.content.strip())
            if extra or other.extra or role != other.role or not is_text or self._find_in(content) is not None:
                return None
            values[at] = content

        def placed() -> tuple[Messages, Any]:
            found = self._found(messages, tools)
            assert found is not None  # the other conversation has a shape
            return found.placed()

        return Shape(shape.key, values, placed)

    def _found(self, messages: Messages, tools: Any) -> Shape | None:
        schemas = self.schemas_of(tools)
        if schemas is None or any(schema.hidden for schema in schemas):
            return None
        plain: list[Mapping[str, Any]] = [message.extra or {} for message in messages]
        found = _turns(messages, plain)
        if found is None:
            plain = [plain_value(extra) for extra in plain]
            found = _turns(messages, plain)
        if found is None:
            return None
        turns, values = found
        if any(map(self._find_in, values)):
            return None  # a template gets such values with other characters
        first = len(values)

        def placed() -> tuple[Messages, Any]:
            numbers = iter(range(len(messages), first))
            turned = [
                Message(
                    message.role,
                    _place(owner) if message.content.strip() else message.content,
                    {k: _placed_calls(v, numbers) if k in CALL_KEYS else _placed(v, numbers) for k, v in extra.items()}
                    or None,
                )
                for owner, (message, extra) in enumerate(zip(messages, plain, strict=True))
            ]
            sealed = [Sealed({_place(first + at): 0}) for at in range(len(schemas))]
            return tuple(turned), sealed or None

        return Shape((len(schemas), *turns), [*values, *schemas], placed)

    def schemas_of(self, tools: Any) -> list[Schema] | None:
        """Returns the schemas, with those of equal lists as the same objects; None if they cannot be slots."""
        if tools is None:
            return []
        if self._last is not None and tools is self._last[0]:
            return self._last[1]
        try:
            key = marshal.dumps(tools, 2)
        except ValueError:
            return None
        if key not in self._schemas:
            if len(self._schemas) >= SCHEMAS:
                self._schemas.clear()
            schemas = schema_list(tools) or []
            if not all(isinstance(schema, dict) and schema for schema in schemas):
                return None
            self._schemas[key] = [Schema(schema, self._find_in(schema) is not None) for schema in schemas]
        self._last = tools, self._schemas[key]
        return self._schemas[key]


def shape_key(messages: Messages, schemas: int) -> tuple[Any, ...]:
    """Returns the key of the shape of messages whose further keys are plain values, with so many schemas."""
    found = _turns(messages, [message.extra or {} for message in messages])
    assert found is not None  # they are plain
    return (schemas, *found[0])


def slot_of(given: Any, run: Run) -> Slot | None:
    """Returns the slot of a run of the value `given`; None if it is not the complete value, or is no placeholder."""
    text = given if isinstance(given, str) else next(iter(given)) if isinstance(given, Sealed) else ""
    found = _PLACE.search(text)
    complete = run.form is not None or (run.whole and run.held < 0)
    if found is None or not complete or (isinstance(given, JsonText) and (run.form or run.edits)):
        return None
    return Slot(int(found[1]), run.edits, run.form)


def holds_place(text: str) -> bool:
    """Returns whether a text has a placeholder, or a part of one."""
    return "\ue000" in text or "\ue001" in text


def _turns(messages: Messages, extras: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[Any]] | None:
    """Returns the shapes of turns with these further keys, and their values; None if some value is no plain one."""
    values: list[Any] = [message.content for message in messages]
    turns: list[Any] = []
    try:
        for (role, content, _), extra in zip(messages, extras, strict=True):
            keys = [(key, _calls(it, values) if key in CALL_KEYS else _key(it, values)) for key, it in extra.items()]
            turns.append((role, None if content.strip() else content, *keys))
    except TypeError:
        return None
    return turns, values


def _key(value: Any, values: list[Any]) -> Any:
    """Returns the shape of a value; its texts are added to `values`.

    Raises:
        TypeError: It is no plain value, see `plain_value`.
    """
    if isinstance(value, str):
        if not value.strip():
            return value
        values.append(value)
        return (TEXT,)
    if isinstance(value, dict):
        return ("{", *[(key, _key(item, values)) for key, item in value.items()])
    if isinstance(value, list):
        return ("[", *[_key(item, values) for item in value])
    if value is None or value.__class__ in (bool, int, float):
        return (value.__class__, repr(value))
    raise TypeError(f"{value.__class__} is no plain value")


def _placed(value: Any, numbers: Any) -> Any:
    """Returns the value with a placeholder for each text that `_key` adds to the values."""
    if isinstance(value, str):
        return _place(next(numbers)) if value.strip() else value
    if isinstance(value, dict):
        return {key: _placed(item, numbers) for key, item in value.items()}
    if isinstance(value, list):
        return [_placed(item, numbers) for item in value]
    return value


def _calls(value: Any, values: list[Any]) -> Any:
    """Returns the shape of calls, see `in_form`."""
    if isinstance(value, list):
        return ("[", *[_calls(call, values) for call in value])
    if not isinstance(value, dict):
        return _key(value, values)
    if isinstance(value.get("function"), dict):
        return ("{", *[(k, _calls(v, values) if k == "function" else _key(v, values)) for k, v in value.items()])
    return ("{", *[(k, _arguments(v, values) if k == "arguments" else _key(v, values)) for k, v in value.items()])


def _arguments(value: Any, values: list[Any]) -> Any:
    found = decoded(value)
    if not isinstance(found, dict) or not found:
        return _key(found, values)
    values.append(found)
    return (MAPPING,)


def _placed_calls(value: Any, numbers: Any) -> Any:
    if isinstance(value, list):
        return [_placed_calls(call, numbers) for call in value]
    if not isinstance(value, dict):
        return _placed(value, numbers)
    inner = "function" if isinstance(value.get("function"), dict) else "arguments"
    placed: dict[str, Any] = {}
    for key, item in value.items():
        if key != inner:
            placed[key] = _placed(item, numbers)
        elif inner == "function":
            placed[key] = _placed_calls(item, numbers)
        else:
            found = decoded(item)
            sealed = isinstance(found, dict) and found
            placed[key] = Sealed({_place(next(numbers)): 0}) if sealed else _placed(found, numbers)
    return placed


def _place(number: int) -> str:
    return f"\ue000{number}\ue001"  # private-use characters, which no template writes


# Many conversations at once. A column holds what each of them has at one place. Where it has different kinds of values,
# the rows are divided, until all rows of a group have one shape. Then every value that fills a slot is a column, too.
#
#     {"name": "find", "arguments": {"key": 1}}  ->  ["find", "find", "add"] and [{"key": 1}, {"key": 2}, {"a": 0}]
#     {"name": "find", "arguments": {"key": 2}}
#     {"name": "add", "arguments": {"a": 0}}


class _Walk(enum.Enum):
    """The function of this module that walks the same value of one row."""

    CONTENT = enum.auto()
    EXTRA = enum.auto()
    VALUE = enum.auto()  # _key
    CALLS = enum.auto()
    ARGUMENTS = enum.auto()


class Group(NamedTuple):
    """Rows that have the same shape so far.

    Attributes:
        rows: Their numbers.
        todo: A stack of columns that are still to be walked: their message, how, and what the rows have there.
        values: The message of each value that fills a slot, apart from contents, and its column.
    """

    rows: list[int]
    todo: list[tuple[int, _Walk, Sequence[Any]]]
    values: list[tuple[int, Sequence[Any]]]

    def take(self, which: Sequence[int]) -> Group:
        """Returns some of the rows."""
        return Group(
            [self.rows[at] for at in which],
            [(message, walk, [column[at] for at in which]) for message, walk, column in self.todo],
            [(message, [column[at] for at in which]) for message, column in self.values],
        )

    def divided(self, tags: Collection[Any]) -> Iterator[Group]:
        """Yields the rows with the same tag, for each tag."""
        found: dict[Any, list[int]] = {}
        for at, tag in enumerate(tags):
            found.setdefault(tag, []).append(at)
        return map(self.take, found.values())


def groups_of(contents: Sequence[Sequence[str]], extras: Sequence[Sequence[Any]], least: int) -> Iterator[Group]:
    """Yields groups of conversations with the same shape, by their numbers.

    Conversations with other than plain values are left out, see `plain_value`.

    Args:
        contents: For each message the contents of all conversations; they have the same roles.
        extras: For each message the further keys.
        least: Groups of fewer rows are left out.
    """
    todo: list[tuple[int, _Walk, Sequence[Any]]] = []
    for message, columns in enumerate(zip(contents, extras, strict=True)):
        todo += [(message, walk, column) for walk, column in zip((_Walk.CONTENT, _Walk.EXTRA), columns, strict=True)]
    waiting = [Group(list(range(len(contents[0]))), todo[::-1], [])]
    while waiting:
        group, opened = waiting.pop(), 0
        while group.todo and opened < _MOST_COLUMNS:
            tags = _tags(*group.todo[-1][1:])
            if len(set(tags)) != 1:
                waiting += [part for part in group.divided(tags) if len(part.rows) >= least]
                break
            _open(group, *group.todo.pop())
            opened += 1
        else:
            if not group.todo:
                yield group


def _tags(walk: _Walk, column: Sequence[Any]) -> Collection[Any]:
    """Returns a tag for each value, which is the same for values of the same shape; one tag if all have the same.

    There are none for values that are not plain.
    """
    kinds = set(map(type, column))
    if len(kinds) > 1:
        return list(map(type, column))
    (kind,) = kinds
    if kind is str:
        return (None,) if all(map(str.strip, column)) else [None if text.strip() else text for text in column]
    if kind is dict:
        if walk is _Walk.CALLS:
            return [(tuple(call), type(call.get("function"))) for call in column]
        return set(map(bool, column)) if walk is _Walk.ARGUMENTS and all(column) else list(map(tuple, column))
    if kind is list:
        return list(map(len, column))
    if kind in (bool, int, float):
        return list(map(repr, column))
    return (None,) if kind is type(None) else ()


def _open(group: Group, message: int, walk: _Walk, column: Sequence[Any]) -> None:
    """Adds what the values of a column hold, or the column itself, to the group; they have the same tag."""
    first = column[0]
    if isinstance(first, str):
        if walk is not _Walk.CONTENT and first.strip():
            group.values.append((message, column))
    elif walk is _Walk.ARGUMENTS and isinstance(first, dict) and first:
        group.values.append((message, column))
    elif isinstance(first, dict):
        inner = "function" if isinstance(first.get("function"), dict) else "arguments"
        for key in reversed(first):
            found, how = [value[key] for value in column], _Walk.VALUE
            if (walk is _Walk.EXTRA and key in CALL_KEYS) or (walk is _Walk.CALLS and key == inner == "function"):
                how = _Walk.CALLS
            elif walk is _Walk.CALLS and key == inner:
                found, how = list(map(decoded, found)), _Walk.ARGUMENTS
            group.todo.append((message, how, found))
    elif isinstance(first, list):
        how = _Walk.CALLS if walk is _Walk.CALLS else _Walk.VALUE
        group.todo.extend((message, how, [value[at] for value in column]) for at in reversed(range(len(first))))
