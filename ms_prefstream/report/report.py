"""What happened to the rows: read, dropped and why, repeated, cut, rewritten. `stream.report` is one of these."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ms_prefstream.errors import RowError
from ms_prefstream.sample import Sample


@dataclass
class PartReport:
    """Counts of one part, like those of the whole `Report`.

    Attributes:
        share: Its share of the rows of an epoch, 0 to 1.
        rows: Rows of its source, None when unknown.
        read: Distinct rows that were read so far.
        dropped: Distinct dropped rows by reason.
        repeats_per_epoch: Rows of an epoch that come again because the part is shorter than its share
            (``stop="all"``).
        left_out_per_epoch: Rows that an epoch does not come to because the part is longer than its share
            (``stop="first"``), None when unknown.
    """

    share: float
    rows: int | None = None
    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    repeats_per_epoch: int = 0
    left_out_per_epoch: int | None = None

    def count(self, error: RowError | None) -> None:
        """Count a row that is new to the report, and why it was dropped if it was."""
        self.read += 1
        if error is not None:
            self.dropped[str(error.reason)] += 1

    def known(self, counts: Iterable[tuple[str, int]]) -> None:
        """Take over what a length index knows: (reason, rows) of the rows it leaves out."""
        for reason, rows in counts:
            self.read += rows
            self.dropped[reason] = rows

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return {**vars(self), "dropped": dict(self.dropped)}

    def __str__(self) -> str:
        total = "" if self.rows is None else f" of {self.rows:,}"
        text = f"share {100 * self.share:.1f} %, rows read {self.read:,}{total}, dropped {sum(self.dropped.values()):,}"
        if self.dropped:
            text += f" ({', '.join(f'{reason} {count:,}' for reason, count in self.dropped.most_common())})"
        if self.repeats_per_epoch:
            text += f", repeated an epoch {self.repeats_per_epoch:,}"
        if self.left_out_per_epoch:
            text += f", left out an epoch {self.left_out_per_epoch:,}"
        return text


ORIGINS_KEPT = 5  # per reason


class Report:
    """Counts distinct rows, however often a window is read again; one bit a row is all it remembers.

    Attributes:
        rows: Rows of the source, None when unknown.
        read: Distinct rows that were read so far.
        dropped: Distinct dropped rows by reason.
        origins: The first few origins by reason.
        repeats: Slots that a stand-in filled, one for each time a bad row's slot came up.
        truncated: Rows that were cut to fit.
        question_cut: Rows of these of which no text of the last prompt message is left.
        rewritten: Rows whose content the chat template changed.
        boundary_differs: Rows whose prompt ids at generation time are not a prefix of the joint encoding.
        filtered: Rows that a format's filter left out before planning.
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
        repeats_per_epoch: Rows the plan repeats to fill the last step (``drop_remainder=False``).
        remainder_per_epoch: Rows the plan leaves out of each epoch (``drop_remainder=True``).
        parts: Of a mix, the counts of each part by its name.
    """

    def __init__(self, rows: int | None = None, tokenizer: str = "", filtered: int = 0) -> None:
        self.rows = rows
        self.tokenizer = tokenizer
        self.filtered = filtered
        self.read = 0
        self.dropped: Counter[str] = Counter()
        self.origins: dict[str, list[str]] = {}
        self.repeats = 0
        self.truncated = 0
        self.question_cut = 0
        self.rewritten = 0
        self.boundary_differs = 0
        self.repeats_per_epoch = 0
        self.remainder_per_epoch = 0
        self.parts: dict[str, PartReport] = {}
        self.packs_made = 0
        self.packs_wanted = 0
        self.packs = 0
        self.packs_closed = 0
        self.left_out = 0
        self.tokens = 0
        self.cells = 0
        self.widths: Counter[int] = Counter()
        self.chosen_widths: tuple[int, ...] = ()
        self._seen = bytearray()

    def batch(self, samples: Sequence[Sample], width: int) -> None:
        """Count a batch: what it holds and what it was padded to."""
        lengths = [len(sequence.ids) for sample in samples for sequence in sample.sequences]
        self.tokens += sum(lengths)
        self.cells += width * len(lengths)
        self.widths[width] += 1

    def packed_batch(self, packs: Sequence[Sequence[Sample]], tokens: int, most: int) -> None:
        """Count a batch of packed rows of so many tokens each, which hold `most` samples or fewer."""
        for pack in packs:
            sizes = [sum(len(sequence.ids) for sequence in sample.sequences) for sample in pack]
            self.tokens += sum(sizes)
            self.packs += 1
            self.packs_closed += len(pack) >= most and tokens - sum(sizes) >= min(sizes)
        self.cells += tokens * len(packs)
        self.widths[tokens] += 1

    @property
    def padding(self) -> float:
        """Share of the cells of all batches so far that is padding, 0 to 1."""
        return 1 - self.tokens / self.cells if self.cells else 0.0

    def first_time(self, row: int) -> bool:
        """Whether a row is new to the report; it no longer is after this call."""
        byte, bit = divmod(row, 8)
        if byte >= len(self._seen):
            self._seen.extend(bytes(max(byte + 1 - len(self._seen), len(self._seen), 1024)))
        if self._seen[byte] >> bit & 1:
            return False
        self._seen[byte] |= 1 << bit
        self.read += 1
        return True

    def drop(self, error: RowError) -> None:
        """Count a dropped row."""
        reason = str(error.reason)
        self.dropped[reason] += 1
        origins = self.origins.setdefault(reason, [])
        if len(origins) < ORIGINS_KEPT:
            origins.append(error.origin)

    def known(self, counts: Iterable[tuple[str, int, list[str]]]) -> None:
        """Take over what a length index knows: (reason, rows, origins of the first few) of the rows it leaves out."""
        for reason, rows, origins in counts:
            self.read += rows - self.dropped[reason]  # the pass that built the index has counted them already
            self.dropped[reason] = rows
            self.origins[reason] = origins[:ORIGINS_KEPT]

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return {
            "rows": self.rows,
            "read": self.read,
            "filtered": self.filtered,
            "dropped": dict(self.dropped),
            "origins": {reason: list(found) for reason, found in self.origins.items()},
            "repeats": self.repeats,
            "repeats_per_epoch": self.repeats_per_epoch,
            "remainder_per_epoch": self.remainder_per_epoch,
            "truncated": self.truncated,
            "question_cut": self.question_cut,
            "rewritten": self.rewritten,
            "boundary_differs": self.boundary_differs,
            "packs_made": self.packs_made,
            "packs_wanted": self.packs_wanted,
            "packs": self.packs,
            "packs_closed": self.packs_closed,
            "left_out": self.left_out,
            "tokens": self.tokens,
            "cells": self.cells,
            "widths": dict(self.widths),
            "chosen_widths": list(self.chosen_widths),
            "tokenizer": self.tokenizer,
            "parts": {name: part.as_dict() for name, part in self.parts.items()},
        }

    def __str__(self) -> str:
        share = 100 / max(1, self.read)
        total = "" if self.rows is None else f" of {self.rows:,}"
        dropped = sum(self.dropped.values())
        lines = [f"rows read {self.read:,}{total}, dropped {dropped:,} ({dropped * share:.2f} %)"]
        for reason, count in self.dropped.most_common():
            where = ", ".join(self.origins[reason])
            lines.append(f"  {reason}: {count:,} ({count * share:.2f} %), first at {where}")
        for label, count in (
            ("filtered out by the format", self.filtered),
            ("slots filled by a stand-in", self.repeats),
            ("rows repeated an epoch to fill the last step", self.repeats_per_epoch),
            ("rows left out an epoch, less than one step", self.remainder_per_epoch),
            ("rows left out, because the steps did not hold them", self.left_out),
            ("rows cut to fit", self.truncated),
            ("rows whose whole question was cut away", self.question_cut),
            ("rows whose text the chat template changed", self.rewritten),
            ("rows whose prompt ids differ at generation", self.boundary_differs),
        ):
            if count:
                lines.append(f"{label}: {count:,}")
        lines += [f"part {name}: {part}" for name, part in self.parts.items()]
        if self.packs_wanted and self.packs_made != self.packs_wanted:
            filled = 100 * self.packs_made / self.packs_wanted
            lines.append(f"packed rows that the rows fill: {filled:.1f} % of what the steps took")
        if self.packs_closed:
            closed = 100 * self.packs_closed / self.packs
            lines.append(
                f"warning: max_segments closed {closed:.1f} % of the packed rows although there was room for one more "
                "sample; raise it, or give fewer tokens"
            )
        if self.chosen_widths:
            lines.append(f"widths chosen for the data: {', '.join(map(str, self.chosen_widths))}")
        if self.cells:
            lines.append(f"tokens in batches: {self.tokens:,}, padding {100 * self.padding:.1f} % of the cells")
        if self.tokenizer:
            lines.append(f"tokenizer: {self.tokenizer}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)
