"""Templates: from the messages of a conversation to its layout.

A chat template is rendered once for a sequence of roles, and the layout learned from that serves all conversations with
these roles. A template may ask questions about contents, such as whether a word is in one: then a layout is learned for
each combination of answers. Where the text depends on more than that, each conversation is rendered in full.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import json
import math
import operator
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

from ms_prefstream.encode.backends.added import BLANKS
from ms_prefstream.encode.calls import CALL_KEYS, FORMS, PROBE, CallForm, schema_list
from ms_prefstream.encode.content_ledger import Shown
from ms_prefstream.encode.dissect import Anatomy, Dissector
from ms_prefstream.encode.jinja import TemplateRefusal, names_in, renderer
from ms_prefstream.encode.layout import Kind, Layout, Piece, build_layout
from ms_prefstream.encode.pieces import ControlTokens
from ms_prefstream.encode.shape import Shape, Shapes, Slot, holds_place, slot_of
from ms_prefstream.encode.tokenizer import Tokenizer
from ms_prefstream.encode.tracked_text import ContentReads, Edits, Question, Run, Tracked, edited, plain
from ms_prefstream.errors import OptionError, Reason, RowError, TemplateError
from ms_prefstream.formats.record import Message, Messages
from ms_prefstream.sample import Note

PROOFS = 3  # rows of each role sequence that are also rendered in full, to check the learned layout
LAYOUTS = 1024  # role sequences whose layouts are cached
OUTCOMES = 32  # combinations of answers whose layouts are cached for one role sequence
VARIANTS = 64  # distinct template variables of rows whose templates are cached
MARKERS = {  # of conversations that are rendered already, by their first characters
    "<": (
        *("<|im_start|>", "<|start_header_id|>", "<|begin_of_text|>", "<start_of_turn>", "<|user|>", "<|assistant|>"),
        *("<|User|>", "<｜User｜>"),
    ),
    "[": ("[INST]",),
    "\n\n": ("\n\nHuman:", "\n\nAssistant:"),
    "#": ("### Instruction:",),
}
_BEGINNINGS = (*MARKERS["<"], *MARKERS["["], "<s>[INST]", "<s> [INST]", "<bos><start_of_turn>")
# First characters of the texts that `begins_rendered` may recognise: other texts need no look.
_DOUBTFUL = frozenset([text[0] for text in _BEGINNINGS] + list(BLANKS + "\x1c\x1d\x1e\x1f"))
_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>", "<end_of_turn>", "</s>", "<eos>", "<|end|>")
_RESERVED = ("messages", "tools", "add_generation_prompt")


class LaidOut(NamedTuple):
    """A conversation ready to be encoded.

    Attributes:
        layout: Its units.
        contents: The text of each message's slot.
        rewritten: Whether the template changed a content (stripped it, removed a part).
        notes: What else a report counts about it.
        unread: Names of the fields with text that the template does not write.
    """

    layout: Layout
    contents: Sequence[str]
    rewritten: bool
    notes: Note = Note.NONE
    unread: tuple[str, ...] = ()


class Template(Protocol):
    """Turns messages into units of control tokens and text."""

    def lay_out(
        self,
        prompt: Messages,
        responses: Sequence[Messages],
        tools: Any = None,
        variables: Mapping[str, Any] | None = None,
    ) -> list[LaidOut]:
        """Returns the layout of the conversation with each response; with an empty one, of the prompt at generation.

        `variables` are the template variables of the row.

        Raises:
            RowError: If the template refuses this conversation.
        """


@dataclass(slots=True)
class _Learned:
    """The layout of all conversations with certain roles and answers, learned from one rendering with placeholders.

    Attributes:
        layout: The layout; None if it depends on more than that.
        edits: (message, strips) of contents that the template strips.
        proofs: How many more rows are rendered in full and compared.
        notes: What a report counts about such conversations.
        eats: Whether the strips remove more than white space.
        slots: Places of other values than contents.
        rewritten: Whether the template writes some content in a form of its own.
        unread: See `LaidOut`.
    """

    layout: Layout | None = None
    edits: tuple[tuple[int, Edits], ...] = ()
    proofs: int = PROOFS
    notes: Note = Note.NONE
    eats: bool = False
    slots: tuple[Slot, ...] = ()
    rewritten: bool = False
    unread: tuple[str, ...] = ()

    def fill_shape(self, given: Sequence[Any]) -> LaidOut | None:
        """Returns the layout with these values of a `Shape`; None if there is none."""
        if self.layout is None:
            return None
        stripped = [(given[value], edits) for value, edits, _ in self.slots if edits] if self.eats else ()
        if any(_squeezed(text) != _squeezed(edited(text, edits)) for text, edits in stripped):
            return None
        laid = self.fill(given[: len(self.layout.roles)])
        if laid is None:
            return None
        try:
            contents = [*laid.contents, *[slot.text(given) for slot in self.slots]]
        except (TypeError, ValueError):
            return None  # a value that JSON has no form for
        return laid._replace(contents=contents, rewritten=laid.rewritten or self.rewritten, unread=self.unread)

    def fill(self, given: Sequence[str]) -> LaidOut | None:
        """Returns the layout with these contents; None if there is none."""
        if self.layout is None:
            return None
        if not self.edits:
            return LaidOut(self.layout, given, False, self.notes)
        contents = list(given)
        for owner, edits in self.edits:
            contents[owner] = edited(contents[owner], edits)
        rewritten = any(map(operator.ne, contents, given))
        if self.eats and rewritten and any(_squeezed(a) != _squeezed(b) for a, b in zip(contents, given, strict=True)):
            return None  # words are missing, and its own rendering shows whose
        return LaidOut(self.layout, contents, rewritten, self.notes)


@dataclass(slots=True)
class _Fork:
    """A question of a template, and what is known for each answer: a further question, or a layout.

    Attributes:
        question: The question.
        ask: Answers it for the contents of a conversation.
        after: What follows each answer that a row has given so far.
        room: How many more layouts may be learned; counted at the first question.
    """

    question: Question
    ask: Callable[[Sequence[str]], bool] = field(init=False)
    after: dict[bool, _Fork | _Learned] = field(default_factory=dict)
    room: int = OUTCOMES

    def __post_init__(self) -> None:
        self.ask = self.question.asker()


_Key: TypeAlias = tuple[tuple[Any, ...], int]
"""The roles or the shape of a conversation, and how many of its messages are the prompt."""


def _squeezed(text: str) -> str:
    return "".join(text.split())


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
    """

    allow_special: bool = False
    inference: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)
    date: datetime.date | None = None
    join: bool = False
    train_empty_think: bool = False


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
        self._render = renderer(text, {**known, **options.variables}, date)
        self._text, self._tokenizer, self._options = text, tokenizer, options
        self._encoder = tokenizer.encoder
        self._control = ControlTokens(tokenizer.special, tokenizer.flagged)
        self._allow = options.allow_special
        self._inference = options.inference
        self._learned: dict[_Key, _Fork | _Learned] = {}
        self._shapes = Shapes(self._control.find_in)
        self._once: set[_Key] = set()
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
    ) -> list[LaidOut]:
        """See `Template`."""
        if variables:
            return self._lay_out_with(variables, prompt, responses, tools)
        length, found = len(prompt), []
        marked = not self._allow and _begin_rendered(prompt)
        for response in responses:
            laid = self._laid_out(prompt + response, length, tools)
            if marked or (not self._allow and _begin_rendered(response)):
                laid = laid._replace(notes=laid.notes | Note.MARKERS)
            found.append(laid)
        return found

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
            if not isinstance(learned, _Learned):
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
    ) -> list[LaidOut]:
        """Returns the layouts with template variables of the row, which go before the stream's."""
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
        sides = self._variants[key].lay_out(prompt, responses, tools)
        unread = tuple(f"chat_template_kwargs {name!r}" for name in unread_variables(self._text, variables))
        return [laid._replace(unread=laid.unread + unread) for laid in sides] if unread else sides

    def separates(self) -> bool:
        """Returns whether a control token stands between the last message of a prompt and the response."""
        for roles in (("user", "assistant"), ("system", "user", "assistant")):
            *prompt, response = (Message(role, "a") for role in roles)
            try:
                units = self.lay_out(tuple(prompt), ((response,),))[0].layout.units
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

        None if it must be rendered in full. A shape is learned when it comes the second time.
        """
        shape = self._shapes.of(messages, tools)
        if shape is None:
            return None
        key = shape.key, prompt_messages
        learned = self._learned.get(key)
        if learned is None and key not in self._once:
            if len(self._once) >= LAYOUTS:
                self._once.clear()
            self._once.add(key)
            return None
        if not isinstance(learned, _Learned):
            learned = self._learned_for(
                key, shape.values, False, lambda: self._learn_shape(shape, roles, prompt_messages)
            )
        laid = learned.fill_shape(shape.values)
        if laid is None or not learned.proofs:
            return laid
        with contextlib.suppress(TemplateRefusal, RowError):
            if _as_units(laid) == _as_units(self._in_full(messages, prompt_messages, schema_list(tools))):
                learned.proofs -= 1
                return laid
        learned.layout = None
        return None

    def _learned_for(
        self,
        key: _Key,
        contents: Sequence[Any],
        hidden: bool,
        learn: Callable[[], tuple[_Learned, Mapping[Question, bool]]],
    ) -> _Learned:
        """Returns what is known for the answers that these contents give; a new combination of answers is learned.

        A template gets contents with control tokens, which are `hidden`, with other characters. So the answers are not
        known.
        """
        node = root = self._learned.get(key)
        while isinstance(node, _Fork) and not hidden:
            node = node.after.get(node.ask(contents))
        if isinstance(node, _Learned):
            return node
        if isinstance(root, _Fork):
            if hidden or not root.room:
                return _Learned()
            root.room -= 1
        elif len(self._learned) >= LAYOUTS:
            self._learned.clear()
        learned, asked = learn()
        if not asked:
            self._learned[key] = learned
            return learned
        questions = list(asked)
        fork = self._learned.setdefault(key, _Fork(questions[0]))
        for question, then in zip(questions, [*questions[1:], None], strict=True):
            if not isinstance(fork, _Fork) or fork.question != question:
                return _Learned()  # it asks other questions than for an earlier row
            fork = fork.after.setdefault(asked[question], learned if then is None else _Fork(then))
        return _Learned() if hidden else learned

    def _learn(
        self, roles: tuple[str, ...], prompt_messages: int, contents: Sequence[str]
    ) -> tuple[_Learned, Mapping[Question, bool]]:
        """Learn the layout of all conversations with these roles and the answers of these contents.

        Returns:
            The layout, from a rendering with placeholders, and the answers.
        """
        reads = ContentReads(answering=contents)
        if self._continues(roles, prompt_messages):
            return _Learned(), {}
        try:
            found = self._dissect(_placeholders(roles, reads), prompt_messages)
            again = self._render(_placeholders(roles, reads), None, prompt_messages == len(roles))
        except TemplateRefusal:
            return _Learned(), reads.asked
        written = sorted(run.owner for run in found.text.runs if run.whole)
        if reads.looked or len(found.text.runs) != len(roles) or written != list(range(len(roles))):
            return _Learned(), reads.asked
        if not found.differs and plain(again) != plain(found.text):
            return _Learned(), reads.asked  # it is refused when a row is rendered
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
        return _Learned(layout, edits, PROOFS, notes, eats), reads.asked

    def _learn_shape(
        self, shape: Shape, roles: tuple[str, ...], prompt_messages: int
    ) -> tuple[_Learned, Mapping[Question, bool]]:
        """Learn the layout of all conversations of a shape and with these answers, like `_learn`."""
        if self._continues(roles, prompt_messages) or self._control.find_in(shape.key):
            return _Learned(), {}
        messages, schemas = shape.placed()
        asks = prompt_messages == len(messages)
        shown = Shown(messages, schemas, self._forms_for(messages)[0], lambda value: value)
        shown.reads.answering = shape.values
        try:
            written = self._render(shown.dicts, shown.tools, asks)
            found = self._dissect(shown.dicts, prompt_messages, shown.tools, written)
            again = self._render(shown.dicts, shown.tools, asks)
        except TemplateRefusal:
            return _Learned(), shown.reads.asked
        ledger, turns = shown.ledger(found.text), range(len(messages))
        if (
            shown.reads.looked
            or plain(again) != plain(written)
            or shown.ledger(written).refusal() is not None
            or any(ledger.lacks_turn(turn) or ledger.loses_words(turn) for turn in turns)
        ):
            return _Learned(), shown.reads.asked
        unread = [name for turn in turns for name in ledger.unread(turn)] + [*ledger.unread_of_tools()]
        learned = _Learned(unread=tuple(dict.fromkeys(unread)))
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
        self, found: Anatomy, given: Mapping[int, Any], learned: _Learned, turns: int
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
        """Cut the parts at slots and control tokens; None if a slot is not inside of one part."""
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
        """Render messages and take the text apart."""
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
        """Cut the parts at control tokens; contents become slots, or stay as they are in this conversation."""
        whole = plain(found.text)
        for owner, kind, begin, end, run in found.parts:
            if slots and run is not None:
                yield Piece(owner, kind, None, run.owner), -1
                continue
            for cut in self._control.cut(whole, begin, end):
                text = whole[cut.begin : cut.end]
                yield Piece(owner, kind, text if cut.id >= 0 or self._allow else self._control.reveal(text)), cut.id

    def _prove(self, learned: _Learned, laid: LaidOut, messages: Messages) -> bool:
        """Compare a learned layout with a rendering of this row; drop the layout if they differ."""
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
        ledger = shown.ledger(found.text)
        for turn, message in enumerate(messages):
            if ledger.lacks_turn(turn):
                raise TemplateRefusal(f"it leaves out the {message.role} message, turn {turn + 1}")
            if ledger.loses_words(turn):
                rewritten = True
                if turn >= prompt_messages and message.role == "assistant":
                    notes |= Note.CONTENT_LOST
            unread += ledger.unread(turn)
        unread += ledger.unread_of_tools()
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
        problem = shown.ledger(written).refusal() if calls_or_schemas else None
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


def _as_units(laid: LaidOut) -> list[Any]:
    """Returns everything that a layout says, whatever its slots are."""
    found: list[Any] = [laid.rewritten, laid.notes, laid.unread, laid.layout.differs]
    for unit in laid.layout.units:
        pieces = [unit.written(laid.contents, at, at + 1) for at in unit.trained]
        found.append((unit.control, unit.written(laid.contents), "".join(pieces)))
        found.append(unit.written(laid.contents, 0, unit.border) if pieces else "")
    return found


def _answers(piece: Piece, turn: int) -> bool:
    """Returns whether a piece is of an answer, or comes after it."""
    return piece.owner == turn and piece.kind in (Kind.BODY, Kind.TAIL)


class PlainTemplate:
    """Prompt and response as text: BOS if the tokenizer has one, prompt, response, EOS.

    Args:
        tokenizer: Gives BOS and EOS.
        control: Special tokens that act in contents; None takes every content as ordinary text.
        append_eos: Whether EOS follows the response.
    """

    def __init__(self, tokenizer: Tokenizer, control: ControlTokens | None = None, append_eos: bool = True) -> None:
        self._control = control
        self._bos = (
            [] if tokenizer.bos_id is None else [(Piece(0, Kind.PREAMBLE, tokenizer.bos_token), tokenizer.bos_id)]
        )
        eos = tokenizer.eos_id if append_eos else None
        self._eos = [] if eos is None else [(Piece(1, Kind.TAIL, tokenizer.eos_token), eos)]
        self._ends = {tokenizer.eos_id, *(tokenizer.special[name] for name in _ENDS if name in tokenizer.special)}
        self._encoder = tokenizer.encoder
        slots = [(Piece(0, Kind.BODY, None), -1)], [(Piece(1, Kind.BODY, None, 1), -1)]
        self._full = self._build([*self._bos, *slots[0], *slots[1], *self._eos], 2)
        self._prompt = self._build([*self._bos, *slots[0]], 1)

    def _build(self, pieces: list[tuple[Piece, int]], messages: int) -> Layout:
        roles, strips = ("user", "assistant")[:messages], {} if self._control is None else self._control.strips
        begins = bool(self._bos) and pieces[0] == self._bos[0]
        return build_layout(pieces, 1, roles, self._encoder, bos_begins=begins, strips=strips)

    def lay_out(
        self,
        prompt: Messages,
        responses: Sequence[Messages],
        tools: Any = None,
        variables: Mapping[str, Any] | None = None,
    ) -> list[LaidOut]:
        """See `Template`."""
        return [self._laid_out(prompt, response, tools, variables) for response in responses]

    def _laid_out(
        self, prompt: Messages, response: Messages, tools: Any, variables: Mapping[str, Any] | None
    ) -> LaidOut:
        if len(prompt) != 1 or len(response) > 1 or tools is not None or any(m.extra for m in (*prompt, *response)):
            shape = " + ".join(message.role for message in (*prompt, *response)) + (" with tools" if tools else "")
            raise RowError(
                Reason.TEMPLATE_REFUSED,
                f"the row has the turns {shape}; expected one prompt and one response without tools, all that can be "
                "joined as text without a chat template",
                'Use a tokenizer with a chat template, or pass template="<Jinja text>"',
            )
        contents = [message.content for message in (*prompt, *response)]
        unread = () if not variables else ("chat_template_kwargs",)
        if self._control is not None and any(map(self._control.find, contents)):
            return LaidOut(self._with_control(self._control, contents), contents, False, unread=unread)
        marked = looks_rendered(contents[0]) or any(map(begins_rendered, contents))
        notes = Note.MARKERS if marked else Note.NONE
        return LaidOut(self._full if response else self._prompt, contents, False, notes, unread)

    def _with_control(self, control: ControlTokens, contents: Sequence[str]) -> Layout:
        """Returns the layout of contents with control tokens: a BOS or an end that they state is not added again.

        Blanks around them change nothing: those after a stated end, ChatML's newline for instance, are not trained.
        """
        pieces: list[tuple[Piece, int]] = [
            (Piece(owner, Kind.BODY, text[cut.begin : cut.end]), cut.id)
            for owner, text in enumerate(contents)
            for cut in control.cut(text)
        ]
        filled = [at for at, (piece, id_) in enumerate(pieces) if id_ >= 0 or (piece.text or "").strip()]
        stated = [pieces[at][1] for at in filled if not pieces[at][0].owner][:1] == [id_ for _, id_ in self._bos]
        before = [] if stated else self._bos
        answers = len(contents) > 1
        last = filled[-1] if filled else -1
        ended = answers and last >= 0 and pieces[last][0].owner == 1 and pieces[last][1] in self._ends
        if ended:
            pieces[last + 1 :] = [(piece._replace(kind=Kind.TAIL), id_) for piece, id_ in pieces[last + 1 :]]
        return self._build([*before, *pieces, *(self._eos if answers and not ended else [])], len(contents))


def looks_rendered(text: str) -> bool:
    """Returns whether a text has markers of turns, as a conversation that a template has rendered already."""
    return any([sign in text and any([name in text for name in names]) for sign, names in MARKERS.items()])


def _begin_rendered(messages: Messages) -> bool:
    """Returns whether a message begins as a conversation that a chat template has rendered already."""
    for _, content, _ in messages:  # noqa: SIM110 - every row is asked, and a generator costs more than the answer
        if content[:1] in _DOUBTFUL and begins_rendered(content):
            return True
    return False


def begins_rendered(text: str) -> bool:
    """Returns whether a text begins as a conversation that a chat template has rendered already."""
    return text.lstrip().startswith(_BEGINNINGS)


def _placeholders(roles: Sequence[str], reads: ContentReads) -> list[dict[str, Any]]:
    """Returns messages with these roles, and contents that stand for any text."""
    dicts = []
    for owner, role in enumerate(roles):
        text = f"\ue000{owner}\ue001"  # private-use characters, which no template writes
        dicts.append({"role": role, "content": Tracked(text, (Run(0, len(text), owner),), reads)})
    return dicts


def template_text(template: str | None, tokenizer: Tokenizer) -> str | None:
    """Returns the Jinja source that an option stands for; None joins prompt and response as text.

    Args:
        template: ``auto`` (the tokenizer's own if it has one), ``chat`` (the tokenizer's own, which it must have),
            Jinja source, the path of a ``.jinja`` file, or None.
        tokenizer: May have a chat template.
    """
    if template == "auto":
        return tokenizer.chat_template
    if template == "chat":
        if tokenizer.chat_template is None:
            raise TemplateError(
                f'template="chat" needs a tokenizer with a chat template, and {tokenizer.name} has none. '
                "Pass the Jinja text as template=, or template=None to join prompt and response as text."
            )
        return tokenizer.chat_template
    return given_text(template)


def given_text(template: str | None) -> str | None:
    """Returns the Jinja source of an option that is Jinja source itself, the path of a ``.jinja`` file, or None."""
    if template is None:
        return None
    if isinstance(template, str) and ("{{" in template or "{%" in template):
        return template
    if isinstance(template, str) and template.endswith(".jinja"):
        path = pathlib.Path(template)
        if not path.is_file():
            raise TemplateError(f"template file {template} does not exist. Give the path of a Jinja file.")
        return path.read_text("utf-8")
    raise OptionError(
        f"template is {template!r}; expected 'auto', 'chat', None, Jinja text (with {{{{ }}}} or {{% %}}), or the path "
        "of a .jinja file."
    )


def template_hash(text: str | None) -> str | None:
    """Returns a short hash of a template's text; None for None."""
    return None if text is None else hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()


def checked_variables(variables: Any) -> dict[str, Any]:
    """Returns the option ``template_variables`` as JSON would hold it.

    Raises:
        OptionError: It cannot be used.
    """
    if variables is None:
        return {}
    problem = variables_problem(variables)
    if problem is not None:
        raise OptionError(f"template_variables {problem}.")
    found: dict[str, Any] = json.loads(json.dumps(dict(variables)))
    return found


def variables_problem(variables: Any) -> str | None:
    """Returns what is wrong with template variables, as the end of a sentence; None if they can be used."""
    if not isinstance(variables, Mapping) or not all(isinstance(name, str) for name in variables):
        return f"are {variables!r}; expected a mapping from names to plain values"
    for name, value in variables.items():
        if name in _RESERVED:
            return f"state {name!r}, which is the row's own; expected another name"
        if not _is_plain(value):
            return f"state {name!r} as {value!r}; expected a value that JSON can hold"
    return None


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or type(value) in (str, int, bool) or (type(value) is float and math.isfinite(value))


def unread_variables(template: str, variables: Mapping[str, Any]) -> list[str]:
    """Returns the names of variables that a template does not read."""
    names = names_in(template)
    return [name for name in variables if name not in names and not (name == "date_string" and "strftime_now" in names)]


def first_day(template: str | None, variables: Mapping[str, Any]) -> str | None:
    """Returns today, as an ISO date, if a template asks for the date and the variables do not state it.

    Raises:
        OptionError: They state it in a form that the template cannot use.
    """
    names = frozenset() if template is None else names_in(template)
    if "strftime_now" not in names:
        return None
    if "date_string" not in variables:
        return datetime.date.today().isoformat()
    if "date_string" not in names and stated_day(variables["date_string"]) is None:
        raise OptionError(
            f"date_string in template_variables is {variables['date_string']!r}; expected a date such as '2024-07-26', "
            "since the template writes it in a form of its own."
        )
    return None


def stated_day(text: Any) -> datetime.date | None:
    """Returns the day that a ``date_string`` states, in one of the usual forms; None if it is in another form."""
    for form in ("%Y-%m-%d", "%d %b %Y", "%d %B %Y", "%B %d, %Y"):
        with contextlib.suppress(TypeError, ValueError):
            return datetime.datetime.strptime(text, form).date()
    return None


def is_day(value: Any) -> bool:
    """Returns whether a value of a saved file is a day in ISO form."""
    with contextlib.suppress(TypeError, ValueError):
        return bool(datetime.date.fromisoformat(value).isoformat() == value)
    return False
