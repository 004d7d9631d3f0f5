"""Records to token ids: many records at a time, every distinct piece of text once, with an exact response border.

One record goes this way:

1. `ChatTemplate` (`template.py`) or `PlainTemplate` gives the layout of each of its conversations. A chat template is
   rendered by `jinja.py` with contents as `tracked_text.Tracked`, and `dissect.py` takes the text apart.
2. `layout.py` has grouped the layout into steps: ids that are known, and units of text to encode.
3. `ConversationEncoder._draft` adds the text of each open step to the batch (`Texts`), and the tokenizer's backend
   encodes the whole batch at once. Records whose layouts are known take steps 1 to 3 together, by column
   (`columns.py`).
4. `Encodings.block` joins the ids of all conversations and finds the tokens under the loss: for those of the usual
   layout with a dozen array operations, for any other with `ConversationEncoder._assemble`, one by one.

`Dissector._response_begin` computes the response border in characters, once for a sequence of roles;
`ConversationEncoder._response_border` computes it in tokens, for each row. Truncation follows in `truncate.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.encode.backends.base import Place, TextEncoder
from ms_prefstream.encode.backends.unicode import check_size, check_unicode
from ms_prefstream.encode.columns import ENOUGH, Alike, Window
from ms_prefstream.encode.control_tokens import ControlTokens
from ms_prefstream.encode.encodings import Draft, Drafts, Encoded, Encodings, Texts, Ticketed
from ms_prefstream.encode.layout import LaidOut, Layout, Unit, merged
from ms_prefstream.encode.learned import PROOFS
from ms_prefstream.encode.template import ChatTemplate, Template
from ms_prefstream.errors import DroppedRowError, Reason, RowError, TemplateError
from ms_prefstream.formats.record import Completion, Messages, Pair
from ms_prefstream.sample import Ids, Note, Span

_SPACES = " \n\t\u3000"  # white space that a normaliser may trim
SYSTEM_CACHE = 4096  # distinct system prompts whose ids are cached


class ConversationEncoder:
    """Encodes the conversations of records.

    Args:
        encoder: The tokenizer's text encoder.
        template: Lays conversations out as units.
        boundary: ``joint`` encodes the text as the model will see it and finds the response in it;
            ``inference`` keeps the prompt's ids as they are at generation time and continues from there.
        refused: Control tokens that no content may hold (all of them, or a reward token), or None.
        content_lost: What happens to a record whose response loses words to the template: ``report``, ``drop`` or
            ``error``.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        template: Template,
        boundary: str = "joint",
        refused: ControlTokens | None = None,
        content_lost: str = "report",
    ) -> None:
        self._keeps_lost = content_lost == "report"
        self._lost_error = DroppedRowError if content_lost == "drop" else RowError
        self._encoder = encoder
        self._template = template
        self._inference = boundary == "inference"
        self._refused = refused
        self._systems: dict[tuple[str, Place], Ids] = {}
        self.keeps_ends = keeps_ends(encoder)
        self._starts = functools.lru_cache(maxsize=8)(encoder.starts)  # both sides of a pair ask for the prompt's
        self.decode = encoder.decode

    def encode(self, records: Sequence[Pair | Completion]) -> Encodings:
        """Encodes records: (chosen, rejected) for a pair; (prompt alone[, prompt + response]) for a completion.

        A record that cannot be encoded gives a `RowError` instead.

        Raises:
            TemplateError: The template is no good; its `row` is the place of the record that shows it.
        """
        texts, drafts = Texts(), dict[int, Drafts | RowError]()
        columns = self._columns(records, texts, drafts)
        is_open = np.ones(len(records), np.bool_)
        is_open[list(drafts)] = False
        for alike, _ in columns:
            is_open[alike.columns.records] = False
        drafts |= {row: self._drafted(records[row], texts, row) for row in np.flatnonzero(is_open).tolist()}
        try:
            return self._encodings(drafts, texts, columns)
        except RowError as error:  # a text that no tokenizer accepts: find its record
            if len(records) == 1:
                return self._encodings({0: _blame(records[0], error).at(records[0].origin)}, Texts())
        texts, drafts = Texts(), {}
        for row, record in enumerate(records):
            try:
                found = self.encode([record])[0]
            except TemplateError as error:
                error.row = row
                raise
            drafts[row] = found if isinstance(found, RowError) else self._drafted(record, texts, row)
        return self._encodings(drafts, texts)

    def _encodings(
        self, drafts: Mapping[int, Drafts | RowError], texts: Texts, columns: Sequence[Ticketed] = ()
    ) -> Encodings:
        records = len(drafts) + sum(int((alike.columns.sides == 0).sum()) for alike, _ in columns)
        return Encodings(records, drafts, columns, texts.encode(self._encoder), self.assemble, self.is_usual)

    def _columns(
        self, records: Sequence[Pair | Completion], texts: Texts, drafts: dict[int, Drafts | RowError]
    ) -> list[Ticketed]:
        """Adds the texts of the records that can be laid out by column; returns these with their tickets.

        A layout that is not known is learned from the first of its records, which are added to `drafts`.
        """
        template = self._template
        if not isinstance(template, ChatTemplate) or len(records) < ENOUGH:
            return []  # in a plain template no control token stands at the border: conversations are joined one by one
        window = Window(records, template.shapes)
        window.odd[template.odd(window.contents)] = True
        if self._refused is not None:
            window.odd[self._refused.holders(window.contents)] = True
        found: list[Alike] = []
        for columns in window.columns():
            if self._refused is not None and columns.values:
                columns = columns.take(np.flatnonzero(~columns.holding(self._refused.find_in)))
            alike = list(template.lay_out_alike(columns))
            if not alike:
                first = np.unique(columns.records)[: PROOFS + 1].tolist()  # a shape is learned from its second row
                drafts |= {row: self._drafted(records[row], texts, row) for row in first if row not in drafts}
                alike = list(template.lay_out_alike(columns))
            found += [one for one in alike if self.is_usual(one.layout)]
        missing = window.sides - sum(np.bincount(one.columns.records, minlength=len(records)) for one in found)
        missing[list(drafts)] = 1
        whole = [one.take(np.flatnonzero(missing[one.columns.records] == 0)) for one in found]
        return [(alike, self._tickets(alike, texts)) for alike in whole if len(alike.rewritten)]

    def _tickets(self, alike: Alike, texts: Texts) -> NDArray[np.int64]:
        """Adds the texts of conversations to the batch; returns their tickets, (conversations, texts)."""
        tickets = np.empty((len(alike.rewritten), len(alike.layout.texts)), np.int64)
        for at, (unit, stretch) in enumerate(alike.layout.texts):
            place = unit.place if stretch is None else stretch.place
            add = functools.partial(self._system if unit.system else texts.add, place=place)
            if unit.system:
                add = functools.partial(add, texts=texts)
            if stretch is None:
                tickets[:, at] = [add(unit.text(one)) for one in alike.columns.conversations()]
            else:
                tickets[:, at] = texts.add_column(stretch, alike.columns.contents, add if unit.system else None)
        return tickets

    def _drafted(self, record: Pair | Completion, texts: Texts, row: int) -> Drafts | RowError:
        try:
            return self._draft_record(record, texts)
        except RowError as error:
            return error.at(record.origin)
        except TemplateError as error:
            error.row = row
            raise
        except RecursionError:
            return _nested_too_deep().at(record.origin)

    def _draft_record(self, record: Pair | Completion, texts: Texts) -> Drafts:
        """Lays out the conversations of a record and adds their texts to the batch."""
        template, prompt = self._template, record.prompt
        if self._refused is not None:
            self._refuse(record)
        if isinstance(record, Pair):
            _check_side(record.chosen, "chosen")
            _check_side(record.rejected, "rejected")
            if record.chosen == record.rejected:
                raise RowError(Reason.IDENTICAL, "chosen and rejected are the same text")
            sides = template.lay_out(prompt, (record.chosen, record.rejected), record.tools, record.variables)
            chosen = self._draft(next(sides), texts)
            return chosen, self._draft(next(sides), texts, chosen)
        sides = template.lay_out(prompt, ((), record.response), record.tools, record.variables)
        asked = self._draft(next(sides), texts)
        if not record.response:
            return (asked,)
        _check_side(record.response, "response")
        return asked, self._draft(next(sides), texts)

    def _refuse(self, record: Pair | Completion) -> None:
        """Refuses control tokens where they are not allowed."""
        assert self._refused is not None
        values = [("the tool schemas hold", record.tools)] + [
            (f"the {message.role} turn holds", (message.content, message.extra))
            for messages in _sides(record).values()
            for message in messages
        ]
        for where, value in values:
            found = self._refused.find_in(value)
            if found is not None:
                raise RowError(
                    Reason.SPECIAL_TOKEN,
                    f"{where} the control token {found!r}; expected text without it",
                    "Remove it from the row; a control token that is not the reward token can also be taken as plain "
                    'text with special_tokens_in_content="escape"',
                )

    def _draft(self, laid: LaidOut, texts: Texts, other: Draft | None = None) -> Draft:
        """Adds the texts of a conversation to the batch; the other side of the pair shares its prompt with it."""
        layout, contents = laid.layout, laid.contents
        if not self._keeps_lost and laid.notes & Note.CONTENT_LOST:
            raise self._lost_error(
                Reason.CONTENT_LOST,
                "the chat template leaves out words of the response, so that they would not be trained",
                'Pass content_lost="report" to keep and count such rows, or a template that writes all of a response',
            )
        open_ = layout.open
        draft = Draft(laid, [])
        if other is not None and other.laid.layout is layout:
            draft.tickets = other.tickets[: layout.shared_texts]
            open_ = open_[layout.shared_open :]
        for index, unit in open_:
            for text, place in unit.to_encode(contents):
                draft.tickets.append(self._system(text, place, texts) if unit.system else texts.add(text, place))
            if (self._inference or unit.head is None) and unit.trained and unit.border:
                if unit.head is None:
                    draft.heads = {**draft.heads, index: texts.add(unit.text(contents, 0, unit.border), unit.place)}
                if self._inference:
                    place = Place.CONTINUATION if unit.text(contents, 0, unit.border) else unit.place
                    rest = texts.add(unit.text(contents, unit.border), place)
                    draft.rests = {**draft.rests, index: rest}
        return draft

    def _system(self, text: str, place: Place, texts: Texts) -> int:
        """Returns the ticket of a text that ends with a system message: it is encoded at once, and its ids are kept."""
        key = (text, place)
        if key not in self._systems:
            if len(self._systems) >= SYSTEM_CACHE:
                self._systems.clear()
            self._systems[key] = self._encoder.encode([text], place)[0]
        return texts.add_known(self._systems[key])

    def is_usual(self, layout: Layout) -> bool:
        """Returns whether conversations of a layout are assembled by `Encodings` together.

        They have one answer, at the end, after a head whose ids are known, or nothing under the loss.
        """
        if layout.answer is None:
            return not any(unit.trained for unit in layout.units)
        return self.keeps_ends and not (self._inference and layout.open[-1][1].border)

    def assemble(self, draft: Draft, results: Sequence[Ids]) -> Encoded:
        """Joins the steps of a conversation and finds its tokens under the loss."""
        layout = draft.laid.layout
        arrays = list(layout.known)
        encoded_texts = map(results.__getitem__, draft.tickets)
        for index, unit in layout.open:
            arrays[index] = unit.joined(encoded_texts)
        encoded = Encoded(draft.laid, arrays, 0, 0, (), layout.differs)  # type: ignore[arg-type]  # all are filled
        found: list[Span] = []
        position = 0
        for index, step in enumerate(layout.steps):
            ranges = step.spans
            if step.ids is None and layout.units[step.first].trained:
                ranges = self._trained(encoded, draft, index, results)
            found += [(position + begin, position + end) for begin, end in ranges]
            position += len(encoded.arrays[index])
        encoded.length = position
        encoded.spans = merged(found)
        encoded.prompt = encoded.spans[0][0] if encoded.spans else found[0][0] if found else position
        return encoded

    def _trained(self, encoded: Encoded, draft: Draft, index: int, results: Sequence[Ids]) -> tuple[Span, ...]:
        """Returns the token ranges under the loss in a step that was encoded."""
        layout, contents = encoded.laid.layout, encoded.laid.contents
        unit = layout.units[layout.steps[index].first]
        border = self._response_border(encoded, draft, index, results) if unit.border else 0
        if len(unit.trained) == len(unit.pieces) - unit.border:
            return ((border, len(encoded.arrays[index])),)
        starts, ends = self.starts(unit, contents), self.ends(unit, contents)
        ranges = []
        for piece in unit.trained:
            first = border
            if piece != unit.border:
                first = tokens_before(ends, len(unit.text(contents, 0, piece)))
            ranges.append((first, tokens_until(starts, len(unit.text(contents, 0, piece + 1)))))
        return tuple(ranges)

    def _response_border(self, encoded: Encoded, draft: Draft, index: int, results: Sequence[Ids]) -> int:
        """Returns the response border of a step: how many of its tokens come before the response.

        The text before the response, the head, is encoded alone as well. If the step's ids begin with the head's ids,
        the border is at their end. Otherwise the character offsets of the tokens decide, and a token that straddles
        the border belongs to the response. With the inference boundary, the head's ids replace those of the step.
        """
        unit = encoded.laid.layout.units[encoded.laid.layout.steps[index].first]
        head = unit.head
        if head is None:
            head = tuple(results[draft.heads[index]].tolist())
        border = len(head)
        ids = tuple(encoded.arrays[index][:border].tolist())
        if ids != head or not self.keeps_ends:
            alike = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(ids, head))))  # noqa: B905
            starts = self.ends(unit, encoded.laid.contents, joint=True)
            border = tokens_before(starts, len(unit.text(encoded.laid.contents, 0, unit.border)), alike)
            encoded.differs = encoded.differs or ids != head or border != len(head)
        if index in draft.rests:
            border = len(head)
            encoded.arrays[index] = np.concatenate([np.array(head, np.int32), results[draft.rests[index]]])
        return border

    def ids(self, text: str, place: Place) -> Ids:
        """Returns the ids of one text."""
        return self._encoder.encode([text], place)[0]

    def ends(self, unit: Unit, contents: Sequence[str], joint: bool = False) -> NDArray[np.int64]:
        """Returns `starts` for `tokens_before`: a token ends before white space that the tokenizer drops."""
        return self.starts(unit, contents, joint, dropped_after=not self.keeps_ends)

    def starts(
        self, unit: Unit, contents: Sequence[str], joint: bool = False, dropped_after: bool = False
    ) -> NDArray[np.int64]:
        """Returns where the tokens of a unit of text begin, (n + 1,) character offsets (see `TextEncoder.starts`).

        `joint` takes the unit as one text even with the inference boundary.
        """
        arguments = (True,) if dropped_after else ()
        if joint or not (self._inference and unit.trained and unit.border):
            return self._starts(unit.text(contents), unit.place, *arguments)
        head, rest = unit.text(contents, 0, unit.border), unit.text(contents, unit.border)
        after = self._starts(rest, Place.CONTINUATION if head else unit.place, *arguments)
        before = self._starts(head, unit.place, *arguments)[:-1]
        return np.concatenate([before, np.where(after < 0, -1, after + len(head))])


def tokens_before(starts: NDArray[np.int64], border: int, at_least: int = 0) -> int:
    """Returns how many tokens end at or before a character offset.

    Args:
        starts: (n + 1,) where tokens begin, -1 inside a character; see `ConversationEncoder.ends`.
        border: The offset.
        at_least: A number of tokens that certainly end before it. It decides where the border falls into characters
            that are split over several tokens, for which there are no offsets.
    """
    if starts[-1] < border:  # white space that the tokenizer drops
        return len(starts) - 1
    until = tokens_until(starts, border)
    if starts[until] == border:
        return until
    first = int(np.flatnonzero((starts >= 0) & (starts < border))[-1])  # the last token that certainly begins before it
    return max(first, min(at_least, until - 1))


def tokens_until(starts: NDArray[np.int64], border: int) -> int:
    """Returns how many tokens begin before a character offset."""
    return int(np.flatnonzero(starts >= border)[0])


def _sides(record: Pair | Completion) -> dict[str, Messages]:
    """Returns the messages of a record by side."""
    if isinstance(record, Pair):
        return {"prompt": record.prompt, "chosen": record.chosen, "rejected": record.rejected}
    return {"prompt": record.prompt, "response": record.response}


def _blame(record: Pair | Completion, error: RowError) -> RowError:
    """Returns the error of the message whose text no tokenizer accepts; `error` if none is found."""
    for side, messages in _sides(record).items():
        for message in messages:
            try:
                check_size((message.content,))
                check_unicode((message.content,))
            except RowError as found:
                where = f"the {message.role} turn" + ("" if side == "prompt" else f" of the {side} side")
                return RowError(found.reason, f"{where}: {found.problem}", found.remedy)
    return error


def _nested_too_deep() -> RowError:
    return RowError(
        Reason.BAD_TYPE,
        "a turn or a tool schema holds values inside of values too deep to be written, or a value that holds itself",
        "Drop such rows",
    )


def keeps_ends(encoder: TextEncoder) -> bool:
    """Returns whether white space at the end of a text has tokens.

    SentencePiece trims it unless it was trained not to, and so do some normalisers. A header that ends in white space
    then has fewer tokens alone than before a content, so its ids do not show where it ends there.
    """
    bare, *others = encoder.encode(["x", *(f"x{space}" for space in _SPACES)])
    return all(len(ids) > len(bare) or ids.tolist() != bare.tolist() for ids in others)


def _check_side(messages: Messages, side: str) -> None:
    """Refuses a side on which the assistant says nothing, or which has no assistant turn."""
    for message in messages:
        if message.role == "assistant":
            content = message.content
            if (content and not content.isspace()) or (message.extra and message.extra.get("tool_calls")):
                return
    roles = [message.role for message in messages]
    if "assistant" not in roles and any(message.content.strip() for message in messages):
        raise RowError(
            Reason.UNKNOWN_ROLE,
            f"the {side} side has turns of {' and '.join(roles)} only; expected one of the assistant",
        )
    raise RowError(Reason.EMPTY_RESPONSE, f"the {side} side is empty; expected a response with text")
