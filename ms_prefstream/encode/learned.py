"""Layouts that are learned: from one rendering of a template to all conversations that are rendered alike."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.encode.columns import Alike, Columns
from ms_prefstream.encode.control_tokens import ControlTokens
from ms_prefstream.encode.layout import LaidOut, Layout
from ms_prefstream.encode.shape import Slot
from ms_prefstream.encode.tracked_text import Edits, Question, edited, edited_all
from ms_prefstream.sample import Note

PROOFS = 3  # rows of each role sequence that are also rendered in full, to check the learned layout
OUTCOMES = 32  # combinations of answers whose layouts are cached for one role sequence


@dataclass(slots=True)
class Learned:
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
        written: The last value of each slot, by its identity, and what stood in its place.
    """

    layout: Layout | None = None
    edits: tuple[tuple[int, Edits], ...] = ()
    proofs: int = PROOFS
    notes: Note = Note.NONE
    eats: bool = False
    slots: tuple[Slot, ...] = ()
    rewritten: bool = False
    unread: tuple[str, ...] = ()
    written: dict[int, tuple[Any, str]] = field(default_factory=dict)

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
            contents = [*laid.contents, *[self._text(slot, given) for slot in self.slots]]
        except (TypeError, ValueError):
            return None  # a value that JSON has no form for
        return laid._replace(contents=contents, rewritten=laid.rewritten or self.rewritten, unread=self.unread)

    def _text(self, slot: Slot, given: Sequence[Any]) -> str:
        """Returns what stands in a slot; schemas of all rows, and calls of both sides of a pair, are written once."""
        value = given[slot.value]
        known = self.written.get(id(slot))
        if known is None or known[0] is not value:
            known = self.written[id(slot)] = value, slot.text(given)
        return known[1]

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

    def fill_alike(self, columns: Columns, control: ControlTokens) -> Iterator[Alike]:
        """Yields the layout with the contents of many conversations, if it is proven.

        Not for those that lose words, or that have a further value with a control token, or one that JSON has no form
        for.
        """
        if self.layout is None or self.proofs:
            return
        written, changed = list(columns.contents), np.zeros(len(columns.records), np.bool_)
        for owner, edits in self.edits:
            written[owner] = edited_all(columns.contents[owner], edits)
            changed |= np.fromiter(map(operator.ne, columns.contents[owner], written[owner]), np.bool_, len(changed))
        usual = ~changed if self.eats else np.ones(len(changed), np.bool_)
        written += self._slot_columns(columns, control, usual)
        changed |= self.rewritten
        alike = Alike(self.layout, columns._replace(contents=written), changed, self.notes, self.unread)
        yield alike if usual.all() else alike.take(np.flatnonzero(usual))

    def _slot_columns(
        self, columns: Columns, control: ControlTokens, usual: NDArray[np.bool_]
    ) -> Iterator[Sequence[Any]]:
        """Yields what stands in each slot; marks the conversations that are not `usual`."""
        unseen = dict(enumerate(columns.values, len(columns.contents)))
        for slot in self.slots:
            is_content = slot.value < len(columns.contents)
            column = columns.contents[slot.value] if is_content else columns.values[slot.value - len(columns.contents)]
            texts = slot.texts(column)
            usual &= np.array([text is not None for text in texts], np.bool_)
            if self.eats and slot.edits:
                usual &= np.fromiter(map(operator.eq, column, texts), np.bool_, len(texts))
            if slot.value in unseen and slot.shows(control):
                usual[control.holders([text or "" for text in texts])] = False
                del unseen[slot.value]
            yield texts
        if unseen:
            usual &= ~columns._replace(values=list(unseen.values())).holding(control.find_in)


@dataclass(slots=True)
class Fork:
    """A question of a template, and what is known for each answer: a further question, or a layout.

    Attributes:
        question: The question.
        after: What follows each answer that a row has given so far.
        room: How many more layouts may be learned; counted at the first question.
    """

    question: Question
    after: dict[bool, Fork | Learned] = field(default_factory=dict)
    room: int = OUTCOMES

    def leaf(self, contents: Sequence[str]) -> Learned | None:
        """Returns what is known for the answers that these contents give."""
        node: Fork | Learned | None = self
        while isinstance(node, Fork):
            node = node.after.get(node.question.answer(contents))
        return node

    def fill_alike(self, columns: Columns, control: ControlTokens) -> Iterator[Alike]:
        """Yields what is known for the answers of many conversations, see `Learned.fill_alike`."""
        answers = np.array(self.question.answers(columns.contents[self.question.owner]), np.bool_)
        for answer, node in self.after.items():
            which = np.flatnonzero(answers == answer)
            if len(which):
                yield from node.fill_alike(columns.take(which), control)


def _squeezed(text: str) -> str:
    return "".join(text.split())


def as_units(laid: LaidOut) -> list[Any]:
    """Returns everything that a layout says, whatever its slots are."""
    found: list[Any] = [laid.rewritten, laid.notes, laid.unread, laid.layout.differs]
    for unit in laid.layout.units:
        pieces = [unit.written(laid.contents, at, at + 1) for at in unit.trained]
        found.append((unit.control, unit.written(laid.contents), "".join(pieces)))
        found.append(unit.written(laid.contents, 0, unit.border) if pieces else "")
    return found
