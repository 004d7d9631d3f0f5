"""The data of an inspection: rows, their sides, and the parts of text that a side consists of."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from ms_prefstream.errors import Reason, printable
from ms_prefstream.formats.record import Record
from ms_prefstream.lines import at_most
from ms_prefstream.sample import Sample
from ms_prefstream.tasks import TASKS

CUT = "cut to fit"  # the note of a row of which something was cut off
MOST_LINES = 12  # of a printed row
_FIRST_TURNS, _LAST_TURNS = 2, 3  # of a prompt, that `print` shows


class Kind(str, enum.Enum):
    """The kind of a part of a side."""

    PROMPT = "prompt"  # context: prompts, and turns of others inside a response
    FRAME = "frame"  # what the chat template writes around contents
    RESPONSE = "response"
    END = "end"  # the end of turn of a response
    REWARD = "reward"  # the reward token


@dataclass(frozen=True)
class Part:
    """Tokens of a side that stand together and are alike.

    Attributes:
        kind: What they are.
        text: Their text.
        ids: Their ids.
        role: The role of the prompt's turn that they belong to; "" elsewhere.
        trained: Whether they are under the loss.
        cut: Whether they were cut off: such a part is not in the sample.
        texts: The text of each token, if asked for. The first token of a divided character has its text.
        control: Whether each token is a control token.
    """

    kind: Kind
    text: str
    ids: tuple[int, ...]
    role: str = ""
    trained: bool = False
    cut: bool = False
    texts: tuple[str, ...] = ()
    control: bool = False


@dataclass(frozen=True)
class EncodedSide:
    """A sequence of a sample, as text.

    Attributes:
        name: ``chosen``, ``rejected``, ``response``, or ``prompt`` for a prompt without response.
        ids: Its token ids.
        prompt: The text before the first token under the loss.
        trained: The texts under the loss, end of turn included.
        rest: The text after the last token under the loss.
        tokens: (before the loss, under the loss, in all).
        truncated: Whether something was cut off.
        parts: Its text by what it is; parts that were cut off stand where they were.
    """

    name: str
    ids: tuple[int, ...]
    prompt: str
    trained: tuple[str, ...]
    rest: str
    tokens: tuple[int, int, int]
    truncated: bool
    parts: tuple[Part, ...] = field(default=(), repr=False)

    @property
    def context(self) -> tuple[Part, ...]:
        """The parts before the response."""
        return self.parts[: self._border]

    @property
    def response(self) -> tuple[Part, ...]:
        """The parts from the response on."""
        return self.parts[self._border :]

    @property
    def _border(self) -> int:
        kinds = (Kind.RESPONSE, Kind.END, Kind.REWARD)
        return next((at for at, part in enumerate(self.parts) if part.kind in kinds), len(self.parts))

    def cut_tokens(self) -> tuple[int, int]:
        """Returns how many tokens of the prompt and of the response were cut off.

        A side that lost only template text after its end of turn counts as whole.
        """
        if not self.truncated:
            return 0, 0
        before, after = (sum(len(part.ids) for part in parts if part.cut) for parts in (self.context, self.response))
        return before, after


@dataclass(frozen=True)
class EncodedRow:
    """The sample that a row becomes, as text, or the reason why it is dropped; `print` shows it.

    Attributes:
        task: Name of the task.
        sample: Its sample, None if the row is dropped.
        sides: The sequences of the sample, as text.
        rollout: The text of the prompt that a rollout starts from; None for tasks without one.
        notes: What else happened to a row that is kept, in words.
        reason: Why the row is dropped; None if it is kept, or if the format leaves it out.
        problem: The reason as a sentence; "" if the row is kept.
        others: The further records of a row of which the format makes several.
        unread: Fields of the row that hold text, messages, tools or media and that nothing read.
        changed: The turns whose content the chat template changed.
        lost: The words of trained turns that the chat template left out.
        raw: The row itself, if it is dropped and could be read.
        record: The record that its format made; None if it made none, and for samples of a cache.
    """

    task: str
    sample: Sample | None
    sides: tuple[EncodedSide, ...] = ()
    rollout: str | None = None
    notes: tuple[str, ...] = ()
    reason: Reason | None = None
    problem: str = ""
    others: tuple[EncodedRow, ...] = ()
    unread: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    raw: Any = field(default=None, repr=False, compare=False)
    record: Record | None = field(default=None, repr=False, compare=False)

    @property
    def kept(self) -> bool:
        """Returns whether the row becomes a sample."""
        return self.sample is not None

    @property
    def truncated(self) -> bool:
        """Returns whether something was cut off on any side."""
        return any(side.truncated for side in self.sides)

    def records(self) -> Iterator[EncodedRow]:
        """Yields each record of the row: itself, then the others."""
        yield self
        yield from self.others

    def raw_text(self) -> str:
        """Returns the row as JSON; "" if there is none."""
        if self.raw is None:
            return ""
        try:
            return orjson.dumps(self.raw, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
        except (TypeError, ValueError):  # no JSON, such as lone surrogates
            return str(self.raw)

    def heading(self) -> list[tuple[str, str]]:
        """Returns (text, side) for the first line; the side is "" for words that belong to none."""
        if self.sample is None:
            return [("dropped", ""), (f" · {self.reason}" if self.reason else "", "")]
        found = [(f"kept · {TASKS[self.task].__name__ if self.task in TASKS else self.task}", "")]
        for side in self.sides:
            first = side is self.sides[0]
            found += [(" · " if first else ", ", ""), (side.name, side.name)]
            found.append((f" {side.tokens[2]:,}{' tokens' if first else ''}", ""))
        found.append((f" · prompt {sum(len(part.ids) for part in self.sides[0].context if not part.cut):,}", ""))
        return [*found, (f" · margin {self.sample.margin:g}" if self.sample.margin is not None else "", "")]

    def sections(self) -> Iterator[Section]:
        """Yields the turns of the prompt, once if both sides have the same, and the responses."""
        shared = len({tuple(part.ids for part in side.context) for side in self.sides}) == 1
        for side in self.sides[:1] if shared else self.sides:
            of = "" if shared else f" ({side.name})"
            for role, group in itertools.groupby(side.context, lambda part: part.role):
                parts = tuple(group)
                label = role or ("" if parts[0].kind is Kind.FRAME else "prompt")
                yield Section(label + of, "prompt", parts)
        for side in self.sides:
            if side.response:
                yield Section(side.name, side.name, side.response, side.tokens[1])

    def rollout_cut(self) -> tuple[int, int, str | None] | None:
        """Returns the tokens of the prompt of a rollout, how many were cut off, and its text.

        The text is None if it is the prompt of the sequence. Tasks without rollouts give None.
        """
        if self.rollout is None or self.sample is None or self.sample.prompt is None:
            return None
        own, side = self.sample.prompt.tolist(), self.sides[0]
        whole = sum(len(part.ids) for part in side.context)
        same = own == [one for part in side.context if not part.cut for one in part.ids]
        return len(own), max(0, whole - len(own)) if side.truncated else 0, None if same else self.rollout

    def carried(self) -> str:
        """Returns the further values of the sample, by column; "" for none. The heading has the margin."""
        if self.sample is None:
            return ""
        in_heading = set() if self.sample.margin is None else {"margin"}
        return " · ".join(f"{name} {value}" for name, value in self.sample.columns.items() if name not in in_heading)

    def facts(self) -> Iterator[tuple[str, str]]:
        """Yields (label, text) for everything that happened to a row that is kept."""
        cuts = {side.name: side.cut_tokens() for side in self.sides}
        shared = len({prompt for prompt, _ in cuts.values()}) == 1
        found: dict[str, None] = {}
        for name, (prompt, response) in cuts.items():
            of = "" if shared else f" ({name})"
            found |= {f"{prompt:,} tokens of the prompt{of}": None} if prompt else {}
            found |= {f"{response:,} tokens of {name}": None} if response else {}
        if found:
            yield "cut", ", ".join(found)
        elif self.truncated and self.rollout is None:
            yield "cut", "before it was cached"
        if self.sample is not None and self.sample.scores is not None:
            yield "labels", f"of the steps: {', '.join(f'{score:g}' for score in self.sample.scores)}"
        if self.changed:
            yield "changed", f"by the chat template: {', '.join(self.changed)}"
        if self.lost:
            yield "lost", f"to the chat template: {' … '.join(f'“{shortened(words, 120)}”' for words in self.lost)}"
        for note in self.notes:
            if note != CUT:
                yield "note", note
        if (rollout := self.rollout_cut()) is not None:
            tokens, left_out, text = rollout
            cut = f", {left_out:,} of the prompt cut off" if left_out else ""
            yield "rollout", f"{tokens:,} tokens{cut}: {'the prompt above' if text is None else text}"
        if self.unread:
            yield "unread", f"fields that nothing read: {', '.join(self.unread)}"

    def __str__(self) -> str:
        lines = ["".join(text for text, _ in self.heading())]
        if not self.kept:
            lines.append(f"  {self.problem}")
        sections = list(self.sections())
        turns = [section for section in sections if section.trained is None]
        left_out = turns[_FIRST_TURNS:-_LAST_TURNS] if len(turns) > _FIRST_TURNS + _LAST_TURNS else []
        for section in sections:
            if section not in left_out:
                lines.append(f"  {section.label:<10}  {section}")
            elif section is left_out[0]:
                lines.append(f"  {'':<10}  … {len(left_out)} more turns")
        lines += [f"  {'carried':<10}  {self.carried()}"] if self.carried() else []
        lines += [f"  {label:<10}  {text}" for label, text in self.facts()]
        lines = [printable(line, most=None).replace("\n", "⏎") for line in lines]
        return "\n".join(at_most([lines, [line for one in self.others for line in str(one).splitlines()]], MOST_LINES))

    __repr__ = __str__


@dataclass(frozen=True)
class Section:
    """Parts of a side under a label: a turn of the prompt, or a response.

    Attributes:
        label: The role of the turn, or the name of the side; "" for the header of the response.
        side: ``prompt`` or the name of the side.
        parts: The parts.
        trained: Tokens under the loss; None for prompts.
    """

    label: str
    side: str
    parts: tuple[Part, ...]
    trained: int | None = None

    def __str__(self) -> str:
        text = ""
        for cut, group in itertools.groupby(self.parts, lambda part: part.cut):
            words = shortened("".join(part.text for part in group), 60 if cut else 160)
            text += f"~~{words}~~" if cut else words
        return text if self.trained is None else f"{text}  ({self.trained:,} under the loss)"

    __repr__ = __str__


def shortened(text: str, most: int | None) -> str:
    """Returns a text with its middle left out if it has more than `most` characters; None keeps all."""
    if most is None or len(text) <= most:
        return text
    return f"{text[: most * 2 // 3]} … {text[-most // 3 :]} ({len(text):,} characters)"
