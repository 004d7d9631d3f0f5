"""The rows of a report as JSON: columns to filter and sort by, and blocks of rows that the page reads on demand.

Every text has gone through `printable`, and no JSON holds a character that could end its script element.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson

from ms_prefstream.errors import printable
from ms_prefstream.formats.record import Completion, Messages, Pair
from ms_prefstream.inspection.encoded import CUT, EncodedRow, Kind, Part, shortened
from ms_prefstream.inspection.rows import FoundRow
from ms_prefstream.report.findings import NO_TEMPLATE
from ms_prefstream.stats.measure import OF_TEMPLATES

BLOCK = 250
"""Rows of a block."""
DROPPED, CUT_OFF, NOTED = 1, 2, 4
_KINDS = list(Kind)
_CUT, _TRAINED, _CONTROL = 8, 16, 32
_REPEATED = (Kind.FRAME, Kind.END, Kind.REWARD)
_MOST_RAW = 4000  # characters of a row that was dropped
_MOST_STRINGS = 10_000


def script_json(value: Any) -> str:
    """Returns JSON that may stand inside a script element: a text never ends the element or begins a comment."""
    text = orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY).decode()
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def safe(text: str) -> str:
    """Returns a text as a page may show it: what commands a terminal or turns the direction of text as escapes."""
    return printable(text, most=None)


class Samples:
    """Rows of a report.

    Args:
        with_tokens: Whether each token is shown with its id.
        lengths_in: ``tokens``, or ``characters`` for rows without a tokenizer: what formats read is shown. They were
            encoded as bytes to find those that are dropped.

    Attributes:
        no_template: Whether rows were joined as text, without a chat template.
    """

    def __init__(self, with_tokens: bool = False, lengths_in: str = "tokens") -> None:
        self.with_tokens, self._unit = with_tokens, lengths_in
        self.blocks: list[str] = []
        self._block: list[list[Any]] = []
        self._strings: dict[str, int] = {}
        self._reasons: dict[str, int] = {}
        self._flags: list[int] = []
        self._lengths: list[tuple[int, ...]] = []
        self.rows, self.no_template = 0, False
        self._origins: dict[str, list[str]] = {}

    def add(self, found: FoundRow) -> None:
        """Adds the records of a row."""
        for record in found.row.records():
            self.rows += 1
            usable = record.sample is not None or record.reason in OF_TEMPLATES
            if self._unit == "characters" and usable and isinstance(record.record, (Pair, Completion)):
                self._add_bare(found.origin, record, record.record)
            elif record.sample is None:
                self._add_dropped(found.origin, record)
            else:
                self._add_kept(found.origin, record)
            if len(self._block) == BLOCK:
                self._finish_block()

    def finish(self) -> None:
        """Ends the last block."""
        if self._block:
            self._finish_block()

    def meta(self) -> dict[str, Any]:
        """Returns the columns by which rows are filtered and sorted, and what blocks refer to."""
        return {
            "rows": self.rows,
            "block": BLOCK,
            "flags": self._flags,
            "length": [max(sides, default=0) for sides in self._lengths],
            "gap": [sides[0] - sides[1] if len(sides) == 2 else 0 for sides in self._lengths],
            "strings": list(self._strings),
            "tokens": self.with_tokens,
            "unit": self._unit,
        }

    def count(self, flag: int) -> int:
        """Returns how many records have a flag."""
        return sum(1 for flags in self._flags if flags & flag)

    def dropped(self) -> dict[str, int]:
        """Returns the dropped records by reason, the most frequent first."""
        return dict(sorted(self._reasons.items(), key=lambda item: -item[1]))

    def origins(self) -> dict[str, list[str]]:
        """Returns the first origins of dropped records by reason."""
        return self._origins

    def sides(self) -> np.ndarray[Any, Any]:
        """Returns the lengths of both sides, (n, 2), of the records that have two."""
        return np.array([sides for sides in self._lengths if len(sides) == 2], np.int64).reshape(-1, 2)

    def longest(self) -> np.ndarray[Any, Any]:
        """Returns the length of the longest side of each record that is kept, (n,)."""
        return np.array([max(sides) for sides in self._lengths if sides], np.int64)

    def _finish_block(self) -> None:
        self.blocks.append(script_json(self._block))
        self._block = []

    def _add_dropped(self, origin: str, row: EncodedRow) -> None:
        reason = str(row.reason or "left out by the format")
        self._reasons[reason] = self._reasons.get(reason, 0) + 1
        first = self._origins.setdefault(reason, [])
        if len(first) < 3:
            first.append(safe(origin))
        raw = safe(shortened(row.raw_text(), _MOST_RAW))
        self._block.append([safe(origin), 0, reason, safe(row.problem), raw])
        self._flags.append(DROPPED)
        self._lengths.append(())

    def _add_kept(self, origin: str, row: EncodedRow) -> None:
        assert row.sample is not None
        sections = [
            [safe(section.label), section.side, section.trained, list(map(self._part, section.parts))]
            for section in row.sections()
        ]
        named = [[side.name, side.tokens[2]] for side in row.sides]
        prompt = sum(len(part.ids) for part in row.sides[0].context if not part.cut)
        facts = _facts(row)
        self.no_template |= NO_TEMPLATE in row.notes
        noted = bool(facts.keys() - {"cut", "rollout", "carried"})
        flags = (CUT_OFF if row.truncated else 0) + (NOTED if noted else 0)
        self._add([safe(origin), 1, named, prompt, row.sample.margin, sections, facts], flags)

    def _add_bare(self, origin: str, row: EncodedRow, record: Pair | Completion) -> None:
        """Adds the texts of a record, as its format read them."""
        sections: list[list[Any]] = []
        sizes: dict[str, int] = {}
        for side, messages in _bare(record):
            kind = _KINDS.index(Kind.PROMPT if side == "prompt" else Kind.RESPONSE)
            sizes[side] = sum(len(message.content) for message in messages)
            for message in messages:
                label = message.role if side == "prompt" or message.role != "assistant" else side
                more = f"\n{message.extra}" if message.extra else ""
                sections.append([safe(label), side, None, [[kind, safe(message.content + more)]]])
        facts = {"unread": list(map(safe, record.unread))} if record.unread else {}
        prompt = sizes.pop("prompt")
        margin = getattr(record, "margin", None)
        self._add([safe(origin), 1, list(sizes.items()), prompt, margin, sections, facts], NOTED if facts else 0)

    def _add(self, shown: list[Any], flags: int) -> None:
        self._block.append(shown)
        self._flags.append(flags)
        self._lengths.append(tuple(size for _, size in shown[2]))

    def _part(self, part: Part) -> list[Any]:
        code = _KINDS.index(part.kind) + _CUT * part.cut + _TRAINED * part.trained + _CONTROL * part.control
        if self.with_tokens:
            return [code, list(map(safe, part.texts)), list(part.ids)]
        text = safe(part.text)
        repeated = part.kind in _REPEATED or part.role == "system"
        if repeated and (text in self._strings or len(self._strings) < _MOST_STRINGS):
            return [code, self._strings.setdefault(text, len(self._strings))]
        return [code, text]


def _bare(record: Pair | Completion) -> list[tuple[str, Messages]]:
    """Returns the turns of each side by name."""
    if isinstance(record, Pair):
        return [("prompt", record.prompt), ("chosen", record.chosen), ("rejected", record.rejected)]
    return [("prompt", record.prompt), *([("response", record.response)] if record.response else [])]


def _facts(row: EncodedRow) -> dict[str, Any]:
    """Returns what happened to a row, in numbers and texts that the page puts into sentences."""
    cuts = [(side.name, *side.cut_tokens()) for side in row.sides]
    shared = len({prompt for _, prompt, _ in cuts}) == 1
    cut: list[list[Any]] = []
    for name, prompt, response in cuts:
        cut += [[prompt, "prompt"]] * bool(prompt and (not shared or name == cuts[0][0]))
        cut += [[response, name]] * bool(response)
    rollout = row.rollout_cut()
    found = {
        "carried": safe(shortened(row.carried(), _MOST_RAW)),
        "cut": cut or ([["cached"]] if row.truncated and rollout is None else []),
        "changed": list(map(safe, row.changed)),
        "lost": [safe(shortened(words, 200)) for words in row.lost],
        "notes": [safe(note) for note in row.notes if note not in (CUT, NO_TEMPLATE)],
        "rollout": [] if rollout is None else [rollout[0], rollout[1], safe(rollout[2] or "")],
        "unread": list(map(safe, row.unread)),
    }
    return {name: value for name, value in found.items() if value}
