"""What a rendered text lacks: which words, calls, schemas and further keys of a row it does not hold.

Everything is found by position: the runs of the rendered text say which characters of which value stand where. A value
that the template wrote as a whole is held, one that it wrote item by item is held if each of its items is.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ms_prefstream.encode.calls import CALL_KEYS, CallForm, in_form, plain_value
from ms_prefstream.encode.tracked_text import ContentReads, Run, Tracked, plain
from ms_prefstream.encode.tracked_values import NO_CONTENT, JsonText, NoContent, Node, Sealed, Values, has_text
from ms_prefstream.formats.record import Message

REASONING = ("reasoning_content", "reasoning", "thinking", "thinking_content")
"""Keys of a turn with what the model thought before its answer: words of the turn, like its content."""

HARMLESS = frozenset({"id", "tool_call_id", "type", "weight", "loss", "train", "index", "timestamp", "message_id"})
"""Further keys of a turn that a text may lack without losing anything."""

_STRUCTURE = frozenset({"type", "strict", "required", "additionalProperties", "$schema"})
_TAGS = re.compile(r"(</?[\w:|]+>|\[/?[A-Z_]+\])+")  # <think>, </think>, [THINK]


class Shown:
    """A conversation as a template reads it, all values tracked.

    Args:
        messages: The turns.
        tools: Tool schemas as plain values, or None.
        form: The form of tool calls.
        hide: Makes plain text of control tokens.

    Attributes:
        dicts: The turns for the template.
        tools: The schemas for the template.
        reads: How the template reads them.
    """

    def __init__(self, messages: Sequence[Message], tools: Any, form: CallForm, hide: Any) -> None:
        self.reads = reads = ContentReads()
        values = Values(reads)
        self.messages = messages
        self.dicts: list[dict[str, Any]] = []
        self._contents: list[str] = []
        self._extras: list[dict[str, Node]] = []
        self._schemas = None if tools is None else values.node(hide(tools))
        self.tools = None if self._schemas is None else self._schemas.shown
        for owner, (role, text, extra) in enumerate(messages):
            hidden = hide(text)
            nodes = {}
            for key, value in (extra or {}).items():
                calls, value = key in CALL_KEYS, plain_value(value)
                if calls and key == "tool_calls" and isinstance(value, dict):
                    value = [value]
                nodes[key] = values.node(in_form(value, form, hide) if calls else hide(value), as_json=calls)
            content: Any = Tracked(hidden, (Run(0, len(hidden), owner),), reads)
            if form.none and not text and "tool_calls" in nodes:
                content = NoContent(reads)
            self.dicts.append({"role": role, "content": content, **{key: node.shown for key, node in nodes.items()}})
            self._contents.append(hidden)
            self._extras.append(nodes)

    def untracked(self) -> tuple[list[dict[str, Any]], Any]:
        """Returns the turns and schemas as they are without tracking."""
        turns = [
            {
                "role": message.role,
                "content": None if isinstance(shown["content"], NoContent) else content,
                **{key: node.given for key, node in nodes.items()},
            }
            for message, shown, content, nodes in zip(
                self.messages, self.dicts, self._contents, self._extras, strict=True
            )
        ]
        return turns, None if self._schemas is None else self._schemas.given

    def given(self) -> dict[int, Any]:
        """Returns the values of a rendering by their owners: contents, and what the template read of the others."""
        found: dict[int, Any] = dict(enumerate(self._contents))
        nodes = [node for extra in self._extras for node in extra.values()]
        nodes += [] if self._schemas is None else [self._schemas]
        while nodes:
            node = nodes.pop()
            found[node.owner] = node.given
            nodes += [*node.items.values(), *node.keys.values()]
        return found

    def rendering(self, text: str) -> Rendering:
        """Returns what a text that a template rendered of this conversation holds of it."""
        return Rendering(text, self._contents, self._extras, self._schemas)


class Rendering:
    """What one rendered text holds of a conversation.

    Args:
        text: The text.
        contents: The content of each turn.
        extras: The further values of each turn, by key.
        schemas: The list of tool schemas, or None.
    """

    def __init__(
        self, text: str, contents: Sequence[str], extras: Sequence[Mapping[str, Node]], schemas: Node | None
    ) -> None:
        self._text, self._contents, self._extras, self._schemas = plain(text), contents, extras, schemas
        self._all = text.runs if isinstance(text, Tracked) else ()
        self._runs: dict[int, list[Run]] = defaultdict(list)
        for run in self._all:
            self._runs[run.owner].append(run)

    def refusal(self) -> str | None:
        """Returns what the text lacks that no row may lose: a call or the schemas; None if it has all."""
        if NO_CONTENT in self._runs:
            return "it writes the word None for a turn without content"
        for nodes in self._extras:
            for key in CALL_KEYS:
                if key in nodes and not self._has_calls(nodes[key]):
                    return "it leaves out the tool calls of an assistant turn"
        if self._schemas is not None and not self._holds(self._schemas):
            items = self._schemas.items
            if not all(self._has_schema(items.get(at), schema) for at, schema in enumerate(self._schemas.given)):
                return "it leaves out the tool schemas"
        return None

    def lacks_turn(self, turn: int) -> bool:
        """Returns whether the text has nothing of a turn that says something."""
        nodes = self._extras[turn]
        said = [key for key in REASONING if key in nodes and has_text(nodes[key].given)]
        if not self._contents[turn].strip() and not said:
            return False
        if any(nodes[key].given for key in CALL_KEYS if key in nodes):
            return False  # `refusal` checks its calls
        shown = [run for owner in (turn, *(nodes[key].owner for key in said)) for run in self._runs.get(owner, ())]
        return not any(self._text[run.begin : run.end].strip() for run in shown)

    def loses_words(self, turn: int) -> bool:
        """Returns whether the text lacks words of a turn: of its content, or of its reasoning."""
        if self._lost(self._contents[turn], turn):
            return True
        nodes = [self._extras[turn][key] for key in REASONING if key in self._extras[turn]]
        held = {node.given for node in nodes if isinstance(node.given, str) and self._holds(node)}
        return not all(node.given in held if isinstance(node.given, str) else self._holds(node) for node in nodes)

    def unread(self, turn: int) -> Iterator[str]:
        """Yields the further keys of a turn with text that the rendering does not hold."""
        for key, node in self._extras[turn].items():
            known = key in CALL_KEYS or key in REASONING or key in HARMLESS
            if not known and has_text(node.given) and not self._holds(node):
                yield f"turn field {key!r}"

    def unread_of_tools(self) -> Iterator[str]:
        """Yields the keys of tool schemas with text that the rendering does not hold."""
        if self._schemas is not None and not self._holds(self._schemas):
            for at in range(len(self._schemas.given)):
                yield from self._schema_unread(self._schemas.items.get(at))

    def _holds(self, node: Node) -> bool:
        """Returns whether the text holds a value: as a whole, or each item of it."""
        given = node.given
        if isinstance(given, str):
            return not self._lost(given, node.owner, isinstance(given, JsonText))
        if self._written(node):
            return True
        if isinstance(given, dict):
            return all(self._holds_member(node, key) for key in given)
        if isinstance(given, list):
            return all(self._holds_item(node, at) for at in range(len(given)))
        return given is None or isinstance(given, bool)  # the template read it: its word has no place of its own

    def _holds_item(self, node: Node, key: Any) -> bool:
        """Returns whether the text holds an item of a list or mapping; one that was not read must have no text."""
        item = node.items.get(key)
        return self._holds(item) if item is not None else node.given[key] in ("", [], {})

    def _holds_member(self, node: Node, key: Any) -> bool:
        name = node.keys.get(key)
        return name is not None and self._holds(name) and self._holds_item(node, key)

    def _written(self, node: Node) -> bool:
        """Returns whether the text holds a list or mapping as a whole."""
        return any(run.held > 0 for run in self._runs.get(node.owner, ()))

    def _has_calls(self, calls: Node) -> bool:
        """Returns whether the text holds the name and the arguments of each call."""
        if self._written(calls):
            return True
        if isinstance(calls.given, list):
            return all(at in calls.items and self._has_calls(calls.items[at]) for at in range(len(calls.given)))
        if not isinstance(calls.given, dict):
            return not has_text(calls.given) or self._holds(calls)
        if isinstance(calls.given.get("function"), dict):
            function, id_ = calls.items.get("function"), calls.items.get("id")
            if function is not None and id_ is not None and self._states(id_, function.given.get("name")):
                return (
                    self._written(function)
                    or "arguments" not in function.given
                    or self._holds_item(function, "arguments")
                )
            return function is not None and self._has_calls(function)
        return all(self._holds_item(calls, key) for key in ("name", "arguments") if key in calls.given)

    def _states(self, id_: Node, name: Any) -> bool:
        """Returns whether the text holds the id of a call, and that has the function's name: ``functions.add:0``."""
        inside = isinstance(id_.given, str) and isinstance(name, str) and name in re.split(r"[^\w-]", id_.given)
        return inside and self._holds(id_)

    def _has_schema(self, schema: Node | None, given: Any) -> bool:
        """Returns whether the text holds a schema: its names, descriptions, properties and allowed values."""
        if schema is not None and self._written(schema):
            return True
        if isinstance(given, Sealed):
            return False
        if not isinstance(given, dict):
            return not has_text(given) or (schema is not None and self._holds(schema))
        return all(self._has_part(schema, key, value) for key, value in given.items())

    def _has_part(self, schema: Node | None, key: Any, value: Any) -> bool:
        item = None if schema is None else schema.items.get(key)
        if key in ("function", "parameters", "items"):
            return self._has_schema(item, value)
        if key == "properties" and isinstance(value, dict):
            if item is not None and self._written(item):
                return True
            keys, items = ({}, {}) if item is None else (item.keys, item.items)
            return all(
                name in keys and self._holds(keys[name]) and self._has_schema(items.get(name), value[name])
                for name in value
            )
        needed = key in ("name", "description", "enum") and has_text(value)
        return not needed or (item is not None and self._holds(item))

    def _schema_unread(self, schema: Node | None) -> Iterator[str]:
        if schema is None or self._written(schema) or not isinstance(schema.given, dict):
            return
        for key, value in schema.given.items():
            item = schema.items.get(key)
            if isinstance(value, dict):
                yield from self._schema_unread(item)
            elif key not in _STRUCTURE and has_text(value) and (item is None or not self._holds(item)):
                yield f"tool field {key!r}"

    def _lost(self, given: str, owner: int, as_it_is: bool = False) -> bool:
        """Returns whether words of a text are missing; tags that the template writes again in their place are not."""
        runs = [run for run in self._runs.get(owner, ()) if run.held and not (as_it_is and run.held > 0)]
        if len(runs) == 1 and runs[0].source == (0, len(given)):
            return False
        reached, before = 0, None
        for run in sorted(runs, key=lambda run: run.source):
            at, end = run.source
            if at > reached and self._is_lost(given[reached:at], before, run):
                return True
            if end > reached:
                reached, before = end, run
        return self._is_lost(given[reached:], before, None)

    def _is_lost(self, words: str, before: Run | None, after: Run | None) -> bool:
        """Returns whether the words between two runs of their text are missing between them."""
        squeezed = "".join(words.split())
        if not squeezed:
            return False
        if (before is None and after is None) or not _TAGS.fullmatch(squeezed):
            return True
        if before is not None:
            begin = before.end
        else:
            assert after is not None
            begin = max((run.end for run in self._all if run.end <= after.begin and run is not after), default=0)
        if after is not None:
            end = after.begin
        else:
            end = min(
                (run.begin for run in self._all if run.begin >= begin and run is not before), default=len(self._text)
            )
        return squeezed not in "".join(self._text[begin:end].split())
