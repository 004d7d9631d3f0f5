"""The `Report` of a stream: counts of rows that were read, dropped and why, repeated, cut or rewritten."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import RowError, printable
from ms_prefstream.lines import at_most, joined, share
from ms_prefstream.plan.bin_packing import Fitted
from ms_prefstream.sample import Block, Note

NOTE_LABELS = {
    "truncated": "rows cut to fit",
    "question_cut": "rows whose whole question was cut away",
    "rewritten": "rows whose text the chat template changed",
    "boundary_differs": "rows whose prompt ids differ at generation",
    "separator_trimmed": "rows whose last separator the chat template trims",
    "content_lost": "rows that lost words of a trained turn to the chat template",
    "empty_think": "rows with an empty think block, which is not trained",
    "markers": "rows whose text looks rendered already (template=None with "
    'special_tokens_in_content="allow" reads its control tokens)',
    "desirable": "rows whose response is a good one",
    "undesirable": "rows whose response is a bad one",
}
"""Name of a `Note`, and of its count in a `Report` -> what people read."""


@dataclass
class PartReport:
    """Counts of one part of a mix, like those of the whole `Report`.

    Attributes:
        share: Its share of the rows of an epoch, 0 to 1.
        rows: Rows of its source, None when unknown.
        read: Distinct rows that were read so far.
        dropped: Distinct dropped rows by reason.
        repeats_per_epoch: Rows of an epoch that come again because the part is shorter than its share
            (``stop="all"``).
        left_out_per_epoch: Rows that an epoch does not reach because the part is longer than its share
            (``stop="first"``), None when unknown.
    """

    share: float
    rows: int | None = None
    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    repeats_per_epoch: int = 0
    left_out_per_epoch: int | None = None

    def count(self, error: RowError | None) -> None:
        """Counts a row that is new to the report, and the reason if it was dropped."""
        self.read += 1
        if error is not None:
            self.dropped[str(error.reason)] += 1

    def known(self, counts: Iterable[tuple[str, int]]) -> None:
        """Sets the counts of a length index: (reason, rows) of the rows it leaves out."""
        for reason, rows in counts:
            self.read += rows
            self.dropped[reason] = rows

    def as_dict(self) -> dict[str, Any]:
        """Returns everything as plain values, for JSON."""
        return {**vars(self), "dropped": dict(self.dropped)}

    def __str__(self) -> str:
        total = "" if self.rows is None else f" of {self.rows:,}"
        text = f"share {100 * self.share:.1f} %, rows read {self.read:,}{total}, dropped {self.dropped.total():,}"
        if self.dropped:
            text += f" ({', '.join(f'{reason} {count:,}' for reason, count in self.dropped.most_common())})"
        if self.repeats_per_epoch:
            text += f", repeated an epoch {self.repeats_per_epoch:,}"
        if self.left_out_per_epoch:
            text += f", left out an epoch {self.left_out_per_epoch:,}"
        return text


ORIGINS_KEPT = 5  # per reason
_WITH_ORIGINS = (Note.CONTENT_LOST, Note.EMPTY_THINK, Note.MARKERS)
_WITH_SHARE = (Note.TRUNCATED, Note.QUESTION_CUT, Note.REWRITTEN, Note.BOUNDARY_DIFFERS, Note.SEPARATOR_TRIMMED)
MOST_LINES = 12  # of a printed report
_FEW = 128  # rows for which a Python loop is faster than numpy
_REASONS_SHOWN = 4  # with a share and origins; the others with their number
_WHERE_COUNTED = (
    "content_lost",
    "empty_think",
    "markers",
    "separator_trimmed",
    "desirable",
    "undesirable",
    "unread",
    "left_out_files",
)  # `as_dict` leaves out empty ones
_NOT_COUNTS = ("_seen", "_known", "_ledger", "_turns_dropped", "delivered", "warnings", "template")


@dataclass(repr=False, eq=False)
class Report:
    """Counts of distinct rows, however often a window is read again; it stores one bit a row.

    The attributes are public: they keep their names and meanings. `print` shows those that are not 0 in at most twelve
    lines, and `as_dict` returns all of them for JSON.

    Attributes:
        rows: Rows of the source, None when unknown.
        read: Distinct rows that were read so far.
        filtered: Rows that a format's filter left out before planning.
        delivered: Rows in all batches made so far, as often as they came, also those that stand in or fill a step.
        dropped: Distinct dropped rows by reason.
        origins: The first few origins by reason, by ``content_lost``, ``empty_think`` and ``markers``, and by
            ``unread NAME`` for a field.
        repeats: Slots that a stand-in filled, one for each time a bad row's slot came up.
        repeats_per_epoch: Rows the plan repeats to fill the last step (``drop_remainder=False``, or ``"mask"``).
        remainder_per_epoch: Rows the plan leaves out of each epoch (``drop_remainder=True``).
        truncated: Rows that were cut to fit.
        question_cut: Rows of these of which no text of the last prompt message is left.
        rewritten: Rows whose content the chat template changed.
        boundary_differs: Rows whose prompt ids at generation time are not a prefix of the joint encoding.
        content_lost: Rows of which the chat template left words out of a turn under the loss.
        empty_think: Rows with an empty think block that the template inserted into an answer.
        markers: Rows whose text looks like a conversation that is rendered already.
        separator_trimmed: Rows whose last step has its label on its own last token, because the chat template trims the
            separator. `as_dict` holds it where there are such rows.
        desirable: Rows of `mps.KTO` whose response is a good one, see `kto_weights`.
        undesirable: Rows of `mps.KTO` whose response is a bad one.
        unread: Kept rows by the name of a field that holds text, messages, tools or media and that nothing read.
        packs_made: Without a length index, the packed rows that the rows of all finished windows filled.
        packs_wanted: The packed rows that their steps took.
        packs: Packed rows in all batches made so far.
        packs_closed: Those that ``max_segments`` closed while there was room for one more sample.
        left_out: Rows that these steps did not hold; other ones in each epoch.
        tokens: Tokens of the samples in all batches made so far.
        cells: Columns times sequences of these batches: what a model computes on.
        widths: Batches made, by their number of columns.
        chosen_widths: The widths that ``max_shapes`` chose for the data, empty without it.
        tokenizer: Name of the tokenizer, its backend and why that backend.
        template: That prompt and response are joined as text, where there is no chat template; else "".
        parts: Of a mix, the counts of each part by its name.
        left_out_files: Files that this library wrote and that folders or globs of the source hold, with what they are.
            They are no rows. `as_dict` holds it where there are such files.
        warnings: What looks wrong, with the remedy; the logger ``ms_prefstream`` got each of them once.
    """

    rows: int | None = None
    read: int = 0
    filtered: int = 0
    delivered: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    origins: dict[str, list[str]] = field(default_factory=dict)
    repeats: int = 0
    repeats_per_epoch: int = 0
    remainder_per_epoch: int = 0
    truncated: int = 0
    question_cut: int = 0
    rewritten: int = 0
    boundary_differs: int = 0
    content_lost: int = 0
    empty_think: int = 0
    markers: int = 0
    separator_trimmed: int = 0
    desirable: int = 0
    undesirable: int = 0
    unread: Counter[str] = field(default_factory=Counter)
    packs_made: int = 0
    packs_wanted: int = 0
    packs: int = 0
    packs_closed: int = 0
    left_out: int = 0
    tokens: int = 0
    cells: int = 0
    widths: Counter[int] = field(default_factory=Counter)
    chosen_widths: tuple[int, ...] = ()
    tokenizer: str = ""
    template: str = ""
    parts: dict[str, PartReport] = field(default_factory=dict)
    left_out_files: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    _seen: bytearray = field(default_factory=bytearray, init=False)
    _known: Counter[str] = field(default_factory=Counter, init=False)  # rows that a length index leaves out
    _ledger: Counter[str] = field(default_factory=Counter, init=False)  # see `ledger`, without the dropped rows
    _turns_dropped: Counter[str] = field(default_factory=Counter, init=False)  # for each time their turn came

    def batch(self, samples: Block, width: int) -> None:
        """Counts a batch: its rows, their tokens and the width it was padded to."""
        self.delivered += len(samples)
        self.tokens += int(samples.lengths.sum())
        self.cells += width * samples.lengths.size
        self.widths[width] += 1

    def packed_batch(self, packs: Sequence[Block], tokens: int, most: int) -> None:
        """Counts a batch of packed rows of `tokens` columns, each with at most `most` samples."""
        for pack in packs:
            self.delivered += len(pack)
            total = int(pack.totals.sum())
            self.tokens += total
            self.packs += 1
            self.packs_closed += len(pack) >= most and tokens - total >= int(pack.totals.min())
        self.cells += tokens * len(packs)
        self.widths[tokens] += 1

    def stand_in(self, slots: int, dropped: Iterable[RowError]) -> None:
        """Counts slots that stand-ins fill, and the dropped rows whose turn it was: none where a slot only fills."""
        self.repeats += slots
        self._ledger["repeats"] += self._drop_turns(dropped)

    def packed_window(self, packs: Fitted, wanted: int, dropped: Iterable[RowError]) -> None:
        """Counts a packed window, of whose packs the steps take `wanted`, and its dropped rows."""
        self.packs_made += packs.made
        self.packs_wanted += wanted
        self.left_out += packs.left_out
        self.repeats += packs.repeats
        self._ledger.update(remainder=packs.left_out, repeats=packs.repeats)
        self._drop_turns(dropped)

    def epoch(self, rows: int, remainder: int, repeats: int) -> None:
        """Counts a finished epoch, for all ranks together.

        Args:
            rows: The rows of a source whose rows are not counted.
            remainder: Rows that the plan leaves out of this epoch.
            repeats: Rows that it takes again.
        """
        self._ledger.update(rows=self.rows or rows, remainder=remainder, repeats=repeats)
        self._turns_dropped.update(self._known)

    def _drop_turns(self, dropped: Iterable[RowError]) -> int:
        reasons = [str(error.reason) for error in dropped]
        self._turns_dropped.update(reasons)
        return len(reasons)

    def ledger(self, others: Iterable[Report] = ()) -> dict[str, Any]:
        """Returns where the rows of whole epochs went: rows = delivered + dropped + remainder - repeats.

        Every number counts the times that a row's turn came, so a row counts once for each epoch. ``delivered`` are
        the rows in batches, ``dropped`` those that came to nothing, and ``reasons`` the same by reason. ``remainder``
        are rows that the steps did not hold. ``repeats`` are stand-ins, rows that fill the last step, and those that
        a mix repeats. Of a source whose rows are not counted, ``rows`` are those that the plan takes. The batches of an
        epoch that has begun are delivered already; data sets of MindSpore begin the next one ahead.

        Args:
            others: The reports of the other ranks, and of the other parts of a run that was resumed. Each step must
                have been made once.
        """
        ranks = [self, *others]
        found = sum((rank._ledger for rank in ranks), Counter[str]())
        reasons = sum((rank._turns_dropped for rank in ranks), Counter[str]())
        return {
            "rows": found["rows"],
            "delivered": sum(rank.delivered for rank in ranks),
            "dropped": reasons.total(),
            "reasons": dict(reasons),
            "remainder": found["remainder"],
            "repeats": found["repeats"],
        }

    @property
    def padding(self) -> float:
        """Share of the cells of all batches so far that is padding, 0 to 1."""
        return 1 - self.tokens / self.cells if self.cells else 0.0

    @property
    def desirable_share(self) -> float | None:
        """Share of the rows of `mps.KTO` read so far whose response is a good one, 0 to 1; None without such rows."""
        total = self.desirable + self.undesirable
        return self.desirable / total if total else None

    @property
    def kto_weights(self) -> dict[str, tuple[float, float]]:
        """Bounds of each weight of the KTO loss while the other one is 1; empty unless there are rows of both kinds.

        The weight of desirable rows times their number should be 1 to 1.33 times the weight of undesirable rows times
        theirs: equation 8 of "KTO: Model Alignment as Prospect Theoretic Optimization", as TRL's KTOTrainer has it.
        """
        if not self.desirable or not self.undesirable:
            return {}
        bad, good = self.undesirable / self.desirable, self.desirable / self.undesirable  # rounded as TRL does
        return {
            "desirable_weight": (round(bad, 2), round(bad * 1.33, 2)),
            "undesirable_weight": (round(good / 1.33, 2), round(good, 2)),
        }

    def first_time(self, rows: Sequence[int]) -> list[bool]:
        """Returns which rows are new to the report, and counts these as read."""
        seen, found = self._seen, list[bool]()
        most = (max(rows, default=0) >> 3) + 1
        if most > len(seen):
            # Replaced, not extended: another thread may use it as an array.
            self._seen = seen = seen + bytes(max(most - len(seen), len(seen), 1024))
        if len(rows) > _FEW:
            found = _newly_set(np.frombuffer(seen, np.uint8), np.array(rows)).tolist()
        else:
            for row in rows:
                byte, bit = row >> 3, 1 << (row & 7)
                found.append(not seen[byte] & bit)
                seen[byte] |= bit
        self.read += sum(found)
        return found

    def drop(self, error: RowError) -> None:
        """Counts a dropped row."""
        reason = str(error.reason)
        self.dropped[reason] += 1
        self._keep_origin(reason, error.origin)

    def note(self, rows: Sequence[int], notes: NDArray[np.uint16], origin: Callable[[int], str]) -> None:
        """Counts what happened to kept rows; the first origins of lost content are kept, see `origins`.

        Args:
            rows: The rows.
            notes: The notes of each, a `Note` as a number.
            origin: Row to origin.
        """
        present = int(np.bitwise_or.reduce(notes, initial=0))
        for note in Note:
            if not note & present:
                continue
            places = np.flatnonzero(notes & note)
            name = str(note.name).lower()
            setattr(self, name, getattr(self, name) + len(places))
            if note in _WITH_ORIGINS:
                for place in places[:ORIGINS_KEPT].tolist():
                    self._keep_origin(name, origin(rows[place]))

    def note_unread(self, fields: Iterable[str], origin: str) -> None:
        """Counts the fields of a kept row that nothing read."""
        for name in fields:
            self.unread[name] += 1
            self._keep_origin(f"unread {name}", origin)

    def _keep_origin(self, name: str, origin: str) -> None:
        origins = self.origins.setdefault(name, [])
        if len(origins) < ORIGINS_KEPT:
            origins.append(origin)

    def known(self, counts: Iterable[tuple[str, int, list[str]]]) -> None:
        """Sets the counts of a length index: (reason, rows, first origins) of the rows it leaves out."""
        before = self.dropped.total()  # by the pass that built it, or another index
        for reason in self.dropped:
            self.origins.pop(reason, None)
        self.dropped.clear()
        for reason, rows, origins in counts:
            self.dropped[reason] = rows
            self.origins[reason] = origins[:ORIGINS_KEPT]
        self._known = Counter(self.dropped)
        self.read += self._known.total() - before

    def as_dict(self) -> dict[str, Any]:
        """Returns all counts as plain values, for JSON.

        Without `warnings` and `template`, which are for people, and `delivered`, see `ledger`.
        """
        values = {name: value for name, value in vars(self).items() if value or name not in _WHERE_COUNTED}
        return {name: value for name, value in values.items() if name not in _NOT_COUNTS} | {
            "dropped": dict(self.dropped),
            "origins": {reason: list(found) for reason, found in self.origins.items()},
            "widths": dict(self.widths),
            "chosen_widths": list(self.chosen_widths),
            "parts": {name: part.as_dict() for name, part in self.parts.items()},
            **({"unread": dict(self.unread)} if self.unread else {}),
        }

    def __str__(self) -> str:
        return "\n".join(at_most(self._sections(), MOST_LINES))

    def _sections(self) -> Iterator[list[str]]:
        """Yields the lines about one thing each; shares are of the rows that were read."""
        total = "" if self.rows is None else f" of {self.rows:,}"
        yield [f"rows read {self.read:,}{total}, dropped {share(self.dropped.total(), self.read)}"]
        frequent = self.dropped.most_common()
        rare = joined([f"{reason}: {count:,}" for reason, count in frequent[_REASONS_SHOWN:]])
        yield [
            *(
                f"  {reason}: {share(count, self.read)}, first at {self._first(reason)}"
                for reason, count in frequent[:_REASONS_SHOWN]
            ),
            *(f"  {line}" for line in rare),
        ]
        counts = (
            ("filtered out by the format", self.filtered),
            ("slots filled by a stand-in", self.repeats),
            ("rows repeated an epoch to fill the last step", self.repeats_per_epoch),
            ("rows left out an epoch, less than one step", self.remainder_per_epoch),
            ("rows left out, because the steps did not hold them", self.left_out),
        )

        def noted_rows(notes: Iterable[Note]) -> Iterator[tuple[str, int, str]]:
            for name in (str(note.name).lower() for note in notes):
                yield NOTE_LABELS[name], getattr(self, name), name

        yield joined(
            [
                *(f"{label}: {share(count, self.read)}" for label, count, _ in noted_rows(_WITH_SHARE) if count),
                *(f"{label}: {count:,}" for label, count in counts if count),
            ]
        )
        yield self._desirable()
        noted = [
            *noted_rows(_WITH_ORIGINS),
            *((f"field {name!r}, which nothing read", count, f"unread {name}") for name, count in self.unread.items()),
        ]
        yield [
            f"{printable(label)}: {share(count, self.read)}, first at {self._first(name)}"
            for label, count, name in noted
            if count
        ]
        yield [f"part {printable(name)}: {part}" for name, part in self.parts.items()]
        yield self._batches()
        tokenizer = " · ".join(printable(self.tokenizer, most=None).split("\n  "))
        yield [*([f"tokenizer: {tokenizer}"] if tokenizer else []), *([self.template] if self.template else [])]
        yield self._files()
        yield [f"warning: {printable(one, most=None)}" for one in self.warnings]

    def _desirable(self) -> list[str]:
        """Returns the share of desirable rows, and the weights that make up for it."""
        if self.desirable_share is None:
            return []
        weights = " or ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in self.kto_weights.items())
        total = self.desirable + self.undesirable
        return [f"desirable rows: {share(self.desirable, total)}" + (f", balanced by {weights}" if weights else "")]

    def _first(self, name: str) -> str:
        return ", ".join(map(printable, self.origins[name]))

    def _batches(self) -> list[str]:
        """Returns what the batches and packs so far held."""
        parts = []
        if self.cells:
            parts.append(f"tokens in batches: {self.tokens:,}, padding {100 * self.padding:.1f} % of the cells")
        if self.chosen_widths:
            parts.append(f"widths chosen for the data: {', '.join(map(str, self.chosen_widths))}")
        if self.packs_wanted and self.packs_made != self.packs_wanted:
            filled = 100 * self.packs_made / self.packs_wanted
            parts.append(f"packed rows that the rows fill: {filled:.1f} % of what the steps took")
        if self.packs_closed:
            closed = 100 * self.packs_closed / self.packs
            parts.append(
                f"warning: max_segments closed {closed:.1f} % of the packed rows although there was room for one more "
                "sample; raise it, or give fewer tokens"
            )
        return joined(parts)

    def _files(self) -> list[str]:
        if not self.left_out_files:
            return []
        some = [f"{printable(path)}: {kind}" for path, kind in list(self.left_out_files.items())[:ORIGINS_KEPT]]
        more = ", ..." if len(self.left_out_files) > ORIGINS_KEPT else ""
        count = len(self.left_out_files)
        return [f"files that this library wrote, left out: {count:,} ({', '.join(some)}{more})"]

    __repr__ = __str__


def _newly_set(bits: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Sets the bits of rows, (n,). Returns which were not set before, (n,); of equal rows only the first may be."""
    is_new = np.zeros(len(rows), np.bool_)
    distinct, first = np.unique(rows, return_index=True)
    places, masks = distinct >> 3, (1 << (distinct & 7)).astype(np.uint8)
    is_new[first] = bits[places] & masks == 0
    np.bitwise_or.at(bits, places, masks)
    return is_new
