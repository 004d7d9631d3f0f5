"""Chat templates: from the messages of a conversation to its layout.

A template is rendered once for a sequence of roles, and the layout learned from that serves all conversations with
these roles. A template may ask questions about contents, such as whether a word is in one: then a layout is learned for
each combination of answers. Where the text depends on more than that, each conversation is rendered in full.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from ms_prefstream.encode.calls import CALL_KEYS, FORMS, PROBE, CallForm, schema_list
from ms_prefstream.encode.columns import Alike, Columns
from ms_prefstream.encode.content_lost import Shown
from ms_prefstream.encode.control_tokens import ControlTokens
from ms_prefstream.encode.dissect import Anatomy, Dissector
from ms_prefstream.encode.jinja import TemplateRefusal, names_in, renderer
from ms_prefstream.encode.layout import Kind, LaidOut, Piece, build_layout
from ms_prefstream.encode.learned import PROOFS, Fork, Learned, as_units
from ms_prefstream.encode.rendered import any_rendered, rendered_at
from ms_prefstream.encode.shape import Shape, Shapes, Slot, holds_place, slot_of
from ms_prefstream.encode.template_limits import SECONDS, TemplateLimitError
from ms_prefstream.encode.template_text import stated_day, unread_variables, variables_problem
from ms_prefstream.encode.tokenizer import Tokenizer
from ms_prefstream.encode.tracked_text import ContentReads, Edits, Question, Run, Tracked, edited, plain
from ms_prefstream.errors import Reason, RowError, TemplateError
from ms_prefstream.formats.record import Message, Messages
from ms_prefstream.sample import Note

LAYOUTS = 1024  # role sequences whose layouts are cached
VARIANTS = 64  # distinct template variables of rows whose templates are cached
ORDINARY = 1_000, 100_000, 100  # messages, characters and depth of conversations that every template must manage


Key: TypeAlias = tuple[tuple[Any, ...], int]
"""The roles or the shape of a conversation, and how many of its messages are the prompt."""


class Template(Protocol):
    """Turns messages into units of control tokens and text."""

    def lay_out(
        self,
        prompt: Messages,
        responses: Sequence[Messages],
        tools: Any = None,
        variables: Mapping[str, Any] | None = None,
    ) -> Iterator[LaidOut]:
        """Yields the layout of the conversation with each response; with an empty one, of the prompt at generation.

        `variables` are the template variables of the row.

        Raises:
            RowError: If the template refuses this conversation.
        """


@dataclass(frozen=True, kw_only=True)
class TemplateOptions:
    """Options that decide what a template makes of a conversation.

    Attributes:
        allow_special: Whether special tokens in contents act as such.
        inference: Whether conversations begin with exactly the prompt of a model at inference (see `Dissector`).
        variables: Further variables of the template.
        date: The day that ``strftime_now`` gives; None for today.
        join: Whether a response continues the answer that a prompt ends with; such rows are refused otherwise.
        train_empty_think: Whether an empty think block that the template inserts is under the loss.
        limit_s: Seconds that the template may take for one conversation; None for no limit of time and memory.
    """

    allow_special: bool = False
    inference: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)
    date: datetime.date | None = None
    join: bool = False
    train_empty_think: bool = False
    limit_s: float | None = SECONDS


class ChatTemplate:
    """A Jinja chat template.

    Args:
        text: The Jinja source.
        tokenizer: Gives the encoder, the special tokens and the variables that templates name.
        options: What it makes of conversations.
    """

    def __init__(self, text: str, tokenizer: Tokenizer, options: TemplateOptions) -> None:
        named = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
        known = {name: token for name, token in named.items() if token is not None}
        date = options.date
        if "date_string" in options.variables and "date_string" not in names_in(text):
            date = stated_day(options.variables["date_string"]) or date
        self._render = renderer(text, {**known, **options.variables}, date, options.limit_s)
        self._text, self._tokenizer, self._options = text, tokenizer, options
        self._encoder = tokenizer.encoder
        self._control = ControlTokens(tokenizer.special, tokenizer.flagged)
        self._allow = options.allow_special
        self._inference = options.inference
        self._learned: dict[Key, Fork | Learned] = {}
        self.shapes = Shapes(self._control.find_in)
        self._once: set[Key] = set()  # shapes that came once
        self._new: set[Key] = set()  # those of them that came first in this row
        self._headers: dict[str, str] = {}
        self._variants: dict[str, ChatTemplate] = {}
        self._forms: tuple[CallForm, ...] | None = None
        self._repeats = PROOFS

    def lay_out(
        self,
        prompt: Messages,
        responses: Sequence[Messages],
        tools: Any = None,
        variables: Mapping[str, Any] | None = None,
    ) -> Iterator[LaidOut]:
        """See `Template`."""
        if variables:
            yield from self._lay_out_with(variables, prompt, responses, tools)
            return
        length = len(prompt)
        self._new.clear()
        marked = not self._allow and any_rendered(prompt)
        for response in responses:
            laid = self._within_limits(prompt + response, length, tools)
            if marked or (not self._allow and any_rendered(response)):
                laid = laid._replace(notes=laid.notes | Note.MARKERS)
            yield laid

    def odd(self, contents: Sequence[str]) -> list[int]:
        """Returns which contents belong to conversations that must go through `lay_out`."""
        return self._control.holders(contents) + ([] if self._allow else rendered_at(contents))

    def lay_out_alike(self, columns: Columns) -> Iterator[Alike]:
        """Yields what `lay_out` gives for conversations without odd contents whose layout is learned and proven."""
        if self._control.in_words:
            return
        known = self._learned.get((columns.key, columns.prompt_messages))
        if known is not None:
            yield from known.fill_alike(columns, self._control)

    def _within_limits(self, messages: Messages, prompt_messages: int, tools: Any) -> LaidOut:
        """Returns the layout of a conversation. A template that exceeds its limits is refused, or a very long row."""
        try:
            return self._laid_out(messages, prompt_messages, tools)
        except TemplateLimitError as limit:
            count, (length, depth) = len(messages), _extent(messages, tools)
            what = f"the chat template {limit} ({count} messages with {length} characters)"
            remedy = f"raise template_limit_s (now {self._options.limit_s:g}); None lifts all limits"
            if count <= ORDINARY[0] and length <= ORDINARY[1] and depth <= ORDINARY[2]:
                raise TemplateError(f"{what}. Check it, or {remedy}.") from None
            raise RowError(Reason.TEMPLATE_REFUSED, what, f"Shorten the row, or {remedy}") from None

    def _laid_out(self, messages: Messages, prompt_messages: int, tools: Any) -> LaidOut:
        roles, contents, extras = zip(*messages, strict=True) if messages else ((), (), ())
        if self._control.in_words or (self._allow and any(map(self._control.find, contents))):
            pass
        elif tools is not None or any(extras):
            laid = self._lay_out_shape(messages, roles, prompt_messages, tools)
            if laid is not None:
                return laid
        else:
            key = roles, prompt_messages
            learned = self._learned.get(key)
            if not isinstance(learned, Learned):
                hidden = any(map(self._control.find, contents))
                learned = self._learned_for(key, contents, hidden, functools.partial(self._learn, *key, contents))
            laid = learned.fill(contents)
            if laid is not None and (not learned.proofs or self._prove(learned, laid, messages)):
                return laid
        try:
            return self._in_full(messages, prompt_messages, schema_list(tools))
        except TemplateRefusal as refusal:
            raise RowError(
                Reason.TEMPLATE_REFUSED,
                f"the chat template refuses this conversation ({' + '.join(m.role for m in messages)}): {refusal}",
                "Correct the row, or pass a template that accepts such conversations",
            ) from None

    def _lay_out_with(
        self, variables: Mapping[str, Any], prompt: Messages, responses: Sequence[Messages], tools: Any
    ) -> Iterator[LaidOut]:
        """Yields the layouts with template variables of the row, which go before the stream's."""
        problem = variables_problem(variables)
        if problem is not None:
            raise RowError(Reason.BAD_TYPE, f"the row's chat_template_kwargs {problem}", "Correct the row")
        key = json.dumps(variables, sort_keys=True)
        if key not in self._variants:
            if len(self._variants) >= VARIANTS:
                self._variants.clear()
            both = {**self._options.variables, **variables}
            options = dataclasses.replace(self._options, variables=both)
            self._variants[key] = ChatTemplate(self._text, self._tokenizer, options)
        unread = tuple(f"chat_template_kwargs {name!r}" for name in unread_variables(self._text, variables))
        for laid in self._variants[key].lay_out(prompt, responses, tools):
            yield laid._replace(unread=laid.unread + unread) if unread else laid

    def separates(self) -> bool:
        """Returns whether a control token stands between the last message of a prompt and the response."""
        for roles in (("user", "assistant"), ("system", "user", "assistant")):
            *prompt, response = (Message(role, "a") for role in roles)
            try:
                units = next(self.lay_out(tuple(prompt), ((response,),))).layout.units
            except RowError:
                continue
            owners = [{piece.owner for piece in unit.pieces if piece.kind is Kind.BODY} for unit in units]
            last = max((at for at, found in enumerate(owners) if len(prompt) - 1 in found), default=-1)
            first = next((at for at, found in enumerate(owners) if len(prompt) in found), len(units))
            return any(unit.control >= 0 for unit in units[last + 1 : first])
        return True  # a template that refuses both refuses other rows in its own way

    def _lay_out_shape(
        self, messages: Messages, roles: tuple[str, ...], prompt_messages: int, tools: Any
    ) -> LaidOut | None:
        """Returns the layout of a conversation with calls, schemas or further keys, learned for its shape.

        None if it must be rendered in full. A shape is learned when a second row has it.
        """
        shape = self.shapes.of(messages, tools)
        if shape is None:
            return None
        key = shape.key, prompt_messages
        learned = self._learned.get(key)
        if learned is None and (key not in self._once or key in self._new):
            if len(self._once) >= LAYOUTS:
                self._once.clear()
            self._once.add(key)
            self._new.add(key)
            return None
        if not isinstance(learned, Learned):
            learned = self._learned_for(
                key, shape.values, False, lambda: self._learn_shape(shape, roles, prompt_messages)
            )
        laid = learned.fill_shape(shape.values)
        if laid is None or not learned.proofs:
            return laid
        with contextlib.suppress(TemplateRefusal, RowError):
            if as_units(laid) == as_units(self._in_full(messages, prompt_messages, schema_list(tools))):
                learned.proofs -= 1
                return laid
        learned.layout = None
        return None

    def _learned_for(
        self,
        key: Key,
        contents: Sequence[Any],
        hidden: bool,
        learn: Callable[[], tuple[Learned, Mapping[Question, bool]]],
    ) -> Learned:
        """Returns what is known for the answers that these contents give; a new combination of answers is learned.

        A template gets contents with control tokens, which are `hidden`, with other characters. So the answers are not
        known.
        """
        root = self._learned.get(key)
        leaf = root.leaf(contents) if isinstance(root, Fork) and not hidden else root
        if isinstance(leaf, Learned):
            return leaf
        if isinstance(root, Fork):
            if hidden or not root.room:
                return Learned()
            root.room -= 1
        elif len(self._learned) >= LAYOUTS:
            self._learned.clear()
        learned, asked = learn()
        if not asked:
            self._learned[key] = learned
            return learned
        questions = list(asked)
        fork = self._learned.setdefault(key, Fork(questions[0]))
        for question, then in zip(questions, [*questions[1:], None], strict=True):
            if not isinstance(fork, Fork) or fork.question != question:
                return Learned()  # it asks other questions than for an earlier row
            fork = fork.after.setdefault(asked[question], learned if then is None else Fork(then))
        return Learned() if hidden else learned

    def _learn(
        self, roles: tuple[str, ...], prompt_messages: int, contents: Sequence[str]
    ) -> tuple[Learned, Mapping[Question, bool]]:
        """Learns the layout of all conversations with these roles and the answers of these contents.

        Returns:
            The layout, from a rendering with placeholders, and the answers.
        """
        reads = ContentReads(answering=contents)
        if self._continues(roles, prompt_messages):
            return Learned(), {}
        try:
            found = self._dissect(_placeholders(roles, reads), prompt_messages)
            again = self._render(_placeholders(roles, reads), None, prompt_messages == len(roles))
        except TemplateRefusal:
            return Learned(), reads.asked
        written = sorted(run.owner for run in found.text.runs if run.whole)
        if reads.looked or len(found.text.runs) != len(roles) or written != list(range(len(roles))):
            return Learned(), reads.asked
        if not found.differs and plain(again) != plain(found.text):
            return Learned(), reads.asked  # it is refused when a row is rendered
        layout = build_layout(
            self._pieces(found, slots=True),
            prompt_messages,
            roles,
            self._encoder,
            differs=found.differs,
            strips=self._control.strips,
        )
        edits = tuple((run.owner, run.edits) for run in found.text.runs if run.edits)
        eats = any(characters and characters.strip() for _, strips in edits for _, characters in strips)
        notes = Note.EMPTY_THINK if found.empty_think else Note.NONE
        return Learned(layout, edits, PROOFS, notes, eats), reads.asked

    def _learn_shape(
        self, shape: Shape, roles: tuple[str, ...], prompt_messages: int
    ) -> tuple[Learned, Mapping[Question, bool]]:
        """Learns the layout of all conversations of a shape and with these answers, like `_learn`."""
        if self._continues(roles, prompt_messages) or self._control.find_in(shape.key):
            return Learned(), {}
        messages, schemas = shape.placed()
        asks = prompt_messages == len(messages)
        shown = Shown(messages, schemas, self._forms_for(messages)[0], lambda value: value)
        shown.reads.answering = shape.values
        try:
            written = self._render(shown.dicts, shown.tools, asks)
            found = self._dissect(shown.dicts, prompt_messages, shown.tools, written)
            again = self._render(shown.dicts, shown.tools, asks)
        except TemplateRefusal:
            return Learned(), shown.reads.asked
        rendering, turns = shown.rendering(found.text), range(len(messages))
        if (
            shown.reads.looked
            or plain(again) != plain(written)
            or shown.rendering(written).refusal() is not None
            or any(rendering.lacks_turn(turn) or rendering.loses_words(turn) for turn in turns)
        ):
            return Learned(), shown.reads.asked
        unread = [name for turn in turns for name in rendering.unread(turn)] + [*rendering.unread_of_tools()]
        learned = Learned(unread=tuple(dict.fromkeys(unread)))
        places = self._places(found, shown.given(), learned, len(messages))
        pieces = None if places is None else self._pieces_around(found, places, len(messages))
        if pieces is not None:
            strips = self._control.strips
            learned.layout = build_layout(
                pieces, prompt_messages, roles, self._encoder, differs=found.differs, strips=strips
            )
            learned.notes = Note.EMPTY_THINK if found.empty_think else Note.NONE
            every = [*learned.edits, *[(slot.value, slot.edits) for slot in learned.slots]]
            learned.eats = any(characters and characters.strip() for _, edits in every for _, characters in edits)
        return learned, shown.reads.asked

    def _places(
        self, found: Anatomy, given: Mapping[int, Any], learned: Learned, turns: int
    ) -> list[tuple[int, int, int]] | None:
        """Returns (begin, end, slot) of each value in the text; None if one is not written as a whole."""
        text = plain(found.text)
        places: list[tuple[int, int, int]] = []
        edits: list[tuple[int, Edits]] = []
        slots: list[Slot] = []
        contents = [run.owner for run in found.text.runs if run.owner >= 0 and given[run.owner].strip()]
        if sorted(contents) != [owner for owner in range(turns) if given[owner].strip()]:
            return None
        for run in found.text.runs:
            slot = slot_of(given[run.owner], run)
            if slot is None:
                if holds_place(text[run.begin : run.end]):
                    return None
            elif run.owner >= 0 and slot.form is None:
                places.append((run.begin, run.end, run.owner))
                edits += [(run.owner, run.edits)] if run.edits else []
            else:
                learned.rewritten |= run.owner >= 0
                places.append((run.begin, run.end, turns + len(slots)))
                slots.append(slot)
        learned.edits, learned.slots = tuple(edits), tuple(slots)
        return places

    def _ends_at(self, text: str, at: int) -> bool:
        """Returns whether a control token begins at an offset."""
        first = self._control.first(text, at, len(text))
        return first is not None and first.begin == at

    def _pieces_around(
        self, found: Anatomy, places: Sequence[tuple[int, int, int]], turns: int
    ) -> list[tuple[Piece, int]] | None:
        """Cuts the parts at slots and control tokens; None if a slot is not inside of one part."""
        whole, left = plain(found.text), list(places)
        pieces: list[tuple[Piece, int]] = []

        def fixed(owner: int, kind: Kind, begin: int, end: int) -> None:
            for cut in self._control.cut(whole, begin, end):
                pieces.append((Piece(owner, kind, whole[cut.begin : cut.end]), cut.id))

        for owner, kind, begin, end, _ in found.parts:
            while left and left[0][0] < end:
                first, last, slot = left.pop(0)
                if not begin <= first < last <= end:
                    return None
                fixed(owner, kind, begin, first)
                pieces.append((Piece(owner, kind, None, slot), -1))
                begin = last
                if last == end and kind is Kind.BODY and slot >= turns and not self._ends_at(whole, end):
                    return None  # the response ends before white space, which the value may end with
            fixed(owner, kind, begin, end)
        whole_text = "".join(piece.text or "" for piece, _ in pieces)
        return None if left or holds_place(whole_text) else pieces

    def _continues(self, roles: Sequence[str], prompt_messages: int) -> bool:
        """Returns whether a response of these roles would continue the prompt's last turn, an answer."""
        if not prompt_messages or roles[prompt_messages - 1] != "assistant":
            return False
        return self._options.join if prompt_messages == len(roles) else roles[prompt_messages] == "assistant"

    def _dissect(
        self,
        messages: Sequence[Mapping[str, Any]],
        prompt_messages: int,
        tools: Any = None,
        written: str | None = None,
        joined_at: int | None = None,
    ) -> Anatomy:
        """Renders messages and takes the text apart."""
        return Dissector(
            self._render,
            messages,
            prompt_messages,
            tools,
            self._control,
            self.header,
            self._inference,
            written,
            joined_at,
            self._options.train_empty_think,
        ).dissect()

    def _pieces(self, found: Anatomy, slots: bool) -> Iterator[tuple[Piece, int]]:
        """Cuts the parts at control tokens; contents become slots, or stay as they are in this conversation."""
        whole = plain(found.text)
        for owner, kind, begin, end, run in found.parts:
            if slots and run is not None:
                yield Piece(owner, kind, None, run.owner), -1
                continue
            for cut in self._control.cut(whole, begin, end):
                text = whole[cut.begin : cut.end]
                yield Piece(owner, kind, text if cut.id >= 0 or self._allow else self._control.reveal(text)), cut.id

    def _prove(self, learned: Learned, laid: LaidOut, messages: Messages) -> bool:
        """Compares a learned layout with a rendering of this row; drops the layout if they differ."""
        asks = len(messages) == laid.layout.prompt_messages
        try:
            text = self._render(
                [{"role": message.role, "content": message.content} for message in messages], None, asks
            )
        except TemplateRefusal:
            text = ""
        not_rendered = self._inference and laid.layout.differs  # the text is two renderings, joined
        if not_rendered or text == "".join([unit.written(laid.contents) for unit in laid.layout.units]):
            learned.proofs -= 1
            return True
        learned.layout = None
        return False

    def header(self, role: str) -> str:
        """Returns the template text before the content of a later message of this role; "" if that is not fixed."""
        if role not in self._headers:
            roles = ("user", "assistant") if role == "assistant" else ("user", "assistant", role)
            self._headers[role] = ""
            try:
                found = self._dissect(_placeholders(roles, ContentReads()), len(roles))
            except TemplateRefusal:
                return ""
            last = len(roles) - 1
            head = [part for part in found.parts if part.owner == last and part.kind is Kind.HEAD]
            self._headers[role] = "".join(plain(found.text)[part.begin : part.end] for part in head)
        return self._headers[role]

    def _in_full(self, given: Messages, prompt_messages: int, tools: Any) -> LaidOut:
        """Returns the layout of this one conversation, from its own rendering.

        Raises:
            TemplateRefusal: The template refuses it, or leaves something out that no row may lose.
        """
        joined_at = None
        messages, alone = given, prompt_messages == len(given)
        if self._continues([message.role for message in given], prompt_messages):
            messages, joined_at = _as_one_turn(given, prompt_messages, self._options.join)
            prompt_messages -= 1
        asks = prompt_messages == len(messages)
        shown, written = self._shown(messages, tools, asks)
        at = None if joined_at is None else len(self._hide(messages[prompt_messages].content[:joined_at]))
        found = self._dissect(shown.dicts, prompt_messages, shown.tools, written, at)
        pieces = list(self._pieces(found, slots=False))
        if joined_at is not None and alone:
            ends = [number for number, (piece, _) in enumerate(pieces) if _answers(piece, prompt_messages)]
            pieces = pieces[: min(ends, default=len(pieces))]
        roles = tuple([message.role for message in messages])
        strips = self._control.strips
        layout = build_layout(pieces, prompt_messages, roles, None, differs=found.differs, strips=strips)
        written_whole = {
            run.owner
            for run in found.text.runs
            if run.owner >= 0
            and run.whole
            and edited(messages[run.owner].content, run.edits) == messages[run.owner].content
        }
        rewritten = any(owner not in written_whole for owner, message in enumerate(messages) if message.content)
        notes, unread = Note.EMPTY_THINK if found.empty_think else Note.NONE, list[str]()
        rendering = shown.rendering(found.text)
        for turn, message in enumerate(messages):
            if rendering.lacks_turn(turn):
                raise TemplateRefusal(f"it leaves out the {message.role} message, turn {turn + 1}")
            if rendering.loses_words(turn):
                rewritten = True
                if turn >= prompt_messages and message.role == "assistant":
                    notes |= Note.CONTENT_LOST
            unread += rendering.unread(turn)
        unread += rendering.unread_of_tools()
        return LaidOut(layout, (), rewritten, notes, tuple(dict.fromkeys(unread)))

    def _hide(self, value: Any) -> Any:
        """Returns a value of a row as the template gets it."""
        return value if self._allow else self._control.hide(value)

    def _shown(self, messages: Messages, tools: Any, asks: bool) -> tuple[Shown, str]:
        """Returns messages in a form in which the template writes all their calls and the schemas, and the text."""
        refusal: TemplateRefusal | None = None
        left_out: TemplateRefusal | None = None
        for form in self._forms_for(messages):
            try:
                return self._shown_in(form, messages, tools, asks)
            except _LeftOut as found:
                left_out = left_out or found
            except TemplateRefusal as found:
                refusal = refusal or found
        raise left_out or refusal or AssertionError("there is a form")

    def _shown_in(self, form: CallForm, messages: Messages, tools: Any, asks: bool) -> tuple[Shown, str]:
        shown = Shown(messages, tools, form, self._hide)
        written = self._render(shown.dicts, shown.tools, asks)
        calls_or_schemas = tools is not None or any(message.extra for message in messages)
        problem = shown.rendering(written).refusal() if calls_or_schemas else None
        if problem is not None:
            raise _LeftOut(problem)
        if self._repeats:
            if self._render(*shown.untracked(), asks) != plain(written):
                raise _LeftOut("its text changes from one rendering to the next")
            self._repeats -= 1
        return shown, written

    def _forms_for(self, messages: Messages) -> Sequence[CallForm]:
        """Returns the forms in which to show messages, in the order in which they are tried."""
        calls = any(message.extra and any(map(message.extra.get, CALL_KEYS)) for message in messages)
        return self._call_forms() if calls else FORMS[:1]

    def _call_forms(self) -> tuple[CallForm, ...]:
        """Returns the forms of tool calls, beginning with the one in which the template writes a simple call."""
        if self._forms is None:
            self._forms = FORMS
            for form in FORMS:
                try:
                    self._shown_in(
                        form, (Message("user", "q"), Message("assistant", "", {"tool_calls": [PROBE]})), None, False
                    )
                except TemplateRefusal:
                    continue
                self._forms = (form, *(other for other in FORMS if other != form))
                break
        return self._forms


class _LeftOut(TemplateRefusal):
    """Refusal of a text that lacks something of the row."""


def _extent(messages: Messages, tools: Any) -> tuple[int, int]:
    """Returns how many characters a conversation has, and how deep its values are; each item of a value counts as one.

    What is deeper than ordinary conversations, or longer, is not looked at to its end.
    """
    length, depth = sum([len(message.content) for message in messages]), 0
    values = [value for value in (tools, *[message.extra for message in messages]) if value is not None]
    while values and length <= ORDINARY[1] and depth <= ORDINARY[2]:
        depth += 1
        below: list[Any] = []
        for value in values:
            if isinstance(value, str):
                length += len(value)
            elif isinstance(value, Mapping):
                below += [*value.keys(), *value.values()]
            elif isinstance(value, (list, tuple)):
                below += value
        length += len(below)
        values = below
    return length, depth


def _as_one_turn(messages: Messages, prompt_messages: int, join: bool) -> tuple[Messages, int]:
    """Returns messages in which the response continues the prompt's last turn, and where it begins in the content."""
    before, after = messages[prompt_messages - 1], messages[prompt_messages : prompt_messages + 1]
    calls = bool(before.extra and any(map(before.extra.get, CALL_KEYS)))
    if not join or calls:
        raise RowError(
            Reason.PROMPT_ENDS_WITH_ANSWER,
            "the prompt ends with an answer of the assistant, and the response begins with another"
            + (", which cannot continue tool calls" if join else "")
            + "; expected a prompt that ends with another turn",
            "Correct the row"
            + ("" if calls else ', or pass continue_final_message="join" to let the response continue that answer'),
        )
    content, extra = before.content, dict(before.extra or {})
    for message in after:
        content += message.content
        extra |= message.extra or {}
    one = Message("assistant", content, extra or None)
    return (*messages[: prompt_messages - 1], one, *messages[prompt_messages + 1 :]), len(before.content)


def _answers(piece: Piece, turn: int) -> bool:
    """Returns whether a piece is of an answer, or comes after it."""
    return piece.owner == turn and piece.kind in (Kind.BODY, Kind.TAIL)


def _placeholders(roles: Sequence[str], reads: ContentReads) -> list[dict[str, Any]]:
    """Returns messages with these roles, and contents that stand for any text."""
    dicts = []
    for owner, role in enumerate(roles):
        text = f"\ue000{owner}\ue001"  # private-use characters, which no template writes
        dicts.append({"role": role, "content": Tracked(text, (Run(0, len(text), owner),), reads)})
    return dicts
