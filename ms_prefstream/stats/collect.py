"""What a pass has counted so far, chunk by chunk, and the `Stats` that it gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import RowError
from ms_prefstream.formats.identity import equal_groups
from ms_prefstream.formats.presets.cvalues import ALIASES
from ms_prefstream.formats.record import Completion, Stepwise, TokenCompletion, TokenPair
from ms_prefstream.sample import Ready
from ms_prefstream.stats.measure import Measured, at_length
from ms_prefstream.stats.near import near_groups
from ms_prefstream.stats.parts import Cut, Padding, Prompts, Repeats, Sequences, Shared, Suggested, TypeStats
from ms_prefstream.stats.result import Stats
from ms_prefstream.stats.rules import good_length, rules_for
from ms_prefstream.stats.tally import SideTallies, Tally
from ms_prefstream.tasks import Task

_FIRST = 5  # origins, groups and rows that are named
_MOST_NAMES = 256  # different types, and different unread fields, that are counted
_NAMES = {f"{better}>{worse}": name for name, (better, worse) in ALIASES.items()}


class Described(NamedTuple):
    """What the process that reads rows keeps of them while they are measured.

    Attributes:
        origins: Where each record comes from.
        kinds: What each record holds, see `Stats`; empty for a row that cannot be read.
        types: The type of each record, such as a difficulty; empty where a row has none.
    """

    origins: Sequence[str]
    kinds: Sequence[str]
    types: Sequence[str]


def kind_of(record: Any) -> str:
    """Returns what a record holds, as `Stats.kinds` names it."""
    if isinstance(record, RowError):
        return ""
    if isinstance(record, Ready):
        return "cached"
    has_ids = isinstance(record, (TokenPair, TokenCompletion))
    what = "pairs"
    if isinstance(record, (Completion, TokenCompletion)):
        response = record.response if isinstance(record, Completion) else record.response_ids
        what = "responses" if response else "prompts"
        what = "responses in steps" if isinstance(record, Stepwise) else what
    return f"tokenized {what}" if has_ids else what


def type_of(row: Any) -> str:
    """Returns the type of a raw row: ``pos_type>neg_type`` of CValues; empty where it names none."""
    try:
        better, worse = row["pos_type"], row["neg_type"]
    except (KeyError, TypeError, IndexError):
        return ""
    return f"{better}>{worse}" if isinstance(better, str) and isinstance(worse, str) and (better or worse) else ""


class _Texts:
    """The lengths of the texts of some rows."""

    def __init__(self) -> None:
        self.rows = 0
        self.characters, self.tokens = SideTallies(), SideTallies()

    def add(self, measured: Measured, rows: NDArray[np.bool_] | slice) -> None:
        """Counts some rows of a chunk."""
        self.characters.add(measured.characters[rows])
        self.tokens.add(measured.tokens[rows])


class Collected:
    """The counts of the rows so far.

    Args:
        limits: Tokens at which rows are cut.
    """

    def __init__(self, limits: Sequence[int]) -> None:
        self._limits = limits
        self.rows = 0
        self._kinds: Counter[str] = Counter()
        self._all = _Texts()
        self._types: dict[str, _Texts] = {}
        self._gaps = Tally(), Tally()  # in characters, in tokens
        self._cut = np.zeros((len(limits), 3), np.int64)
        self._dropped: Counter[str] = Counter()
        self._unread: Counter[str] = Counter()
        self._origins: dict[str, list[str]] = {}
        self._sequences: list[NDArray[np.int32]] = []
        self._prompts: list[NDArray[np.uint64]] = []
        self._signatures: list[NDArray[np.uint16]] = []

    def add(self, measured: Measured, described: Described) -> None:
        """Counts the next rows."""
        self.rows += len(described.origins)
        self._kinds.update(filter(None, described.kinds))
        self._all.add(measured, slice(None))
        for name in dict.fromkeys(filter(None, described.types)):
            if name in self._types or len(self._types) < _MOST_NAMES:
                mine = np.array([one == name for one in described.types])
                texts = self._types.setdefault(name, _Texts())
                texts.rows += int(mine.sum())
                texts.add(measured, mine)
        for gap, lengths in zip(self._gaps, (measured.characters, measured.tokens), strict=True):
            _, chosen, rejected = lengths[(lengths[:, 1] >= 0) & (lengths[:, 2] >= 0)].T
            gap.add(chosen - rejected)
        self._cut += measured.cut
        for place, reason in measured.dropped:
            self._note(self._dropped, str(reason), str(reason), described.origins[place])
        for place, names in measured.unread:
            for name in names:
                if name in self._unread or len(self._unread) < _MOST_NAMES:
                    self._note(self._unread, name, f"unread {name}", described.origins[place])
        self._sequences.append(measured.sequences)
        self._prompts.append(measured.prompts)
        if measured.signatures is not None:
            self._signatures.append(measured.signatures)

    def _note(self, counts: Counter[str], name: str, key: str, origin: str) -> None:
        counts[name] += 1
        origins = self._origins.setdefault(key, [])
        if len(origins) < _FIRST:
            origins.append(origin)

    def result(
        self,
        *,
        source: str,
        formats: tuple[str, ...],
        tokenizer: str | None,
        task: Task | None,
        batch_size: int,
        against: Collected | None,
        against_name: str,
    ) -> Stats:
        """Returns all counts.

        Args:
            source: The name of the source.
            formats: The presets that read it.
            tokenizer: The name of the tokenizer, or None.
            task: The task of the user, or None.
            batch_size: Rows of a step.
            against: What other data hold, or None.
            against_name: Their name.
        """
        sequences = np.concatenate(self._sequences)
        sequences = sequences[(sequences >= 0).any(axis=1)]
        usable = self.rows - self._dropped.total()
        longer = sequences.max(axis=1).astype(np.int64)
        has_tokens = tokenizer is not None or self._kinds.total() > self._text_rows
        padding: dict[str, Padding] = {}
        fitting = None
        length = good_length(longer)
        limit = length if task is None else task.length
        kept = sequences[longer <= limit] if getattr(task, "truncation", "") == "drop" else sequences
        if len(kept):
            padding, shapes, pack = rules_for(kept, task, limit, batch_size)
            if limit != length:  # what is suggested goes together
                _, shapes, pack = rules_for(sequences, task and at_length(task, length), length, batch_size)
            fitting = Suggested(max_length=length, max_shapes=shapes, pack=pack)
        by_type = {
            name: TypeStats(
                texts.rows,
                _NAMES.get(name, ""),
                texts.characters.sides(),
                texts.tokens.sides() if has_tokens else None,
            )
            for name, texts in sorted(self._types.items(), key=lambda entry: -entry[1].rows)
        }
        gap_characters, gap_tokens = self._gaps
        return Stats(
            source=source,
            rows=self.rows,
            kinds=dict(self._kinds.most_common()),
            formats=formats,
            tokenizer=tokenizer,
            characters=self._all.characters.sides(),
            tokens=self._all.tokens.sides() if has_tokens else None,
            sequences=_sequences(sequences) if has_tokens else None,
            by_type=by_type,
            cut=self._cuts(usable) if has_tokens else (),
            gap=gap_tokens.gap("tokens") if has_tokens else gap_characters.gap("characters"),
            prompts=self._repeated(),
            against=None if against is None else self._shared(against, against_name),
            dropped=dict(self._dropped.most_common()),
            unread=dict(self._unread.most_common()),
            origins={name: tuple(first) for name, first in self._origins.items()},
            padding=padding,
            max_length=limit if padding else None,
            batch_size=batch_size,
            suggested=fitting,
        )

    @property
    def _text_rows(self) -> int:
        return sum(self._kinds[kind] for kind in ("pairs", "responses", "prompts"))

    def _cuts(self, usable: int) -> tuple[Cut, ...]:
        return tuple(
            Cut(limit, rows, rows / usable if usable else 0.0, lost, dropped)
            for limit, (rows, lost, dropped) in zip(self._limits, self._cut.tolist(), strict=True)
        )

    def _hashes(self) -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.uint16] | None]:
        """Returns the numbers, hashes and signatures of the rows that have a prompt."""
        hashes = np.concatenate(self._prompts)
        rows = np.flatnonzero(hashes.any(axis=1))
        signatures = np.concatenate(self._signatures)[rows] if self._signatures else None
        return rows, hashes[rows], signatures

    def _repeated(self) -> Prompts:
        rows, hashes, signatures = self._hashes()
        groups = equal_groups(hashes)
        near = None if signatures is None else _repeats(near_groups(groups, signatures), rows)
        return Prompts(distinct=int(groups.max(initial=-1)) + 1, repeated=_repeats(groups, rows), near=near)

    def _shared(self, other: Collected, name: str) -> Shared:
        (rows, ours, our_signatures), (_, theirs, their_signatures) = self._hashes(), other._hashes()
        groups = equal_groups(np.concatenate([ours, theirs]))
        is_shared = _is_in(groups, len(ours))
        near = None
        if our_signatures is not None and their_signatures is not None:
            alike = near_groups(groups, np.concatenate([our_signatures, their_signatures]))
            near = int(_is_in(alike, len(ours)).sum())
        return Shared(
            source=name,
            rows=other.rows,
            shared=int(is_shared.sum()),
            shared_prompts=len(np.unique(groups[: len(ours)][is_shared])),
            near=near,
            first=tuple(rows[is_shared][:_FIRST].tolist()),
        )


def _is_in(groups: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """Returns which of the first rows are in a group of one of the others, (count,)."""
    found: NDArray[np.bool_] = np.isin(groups[:count], groups[count:])
    return found


def _repeats(groups: NDArray[np.int64], rows: NDArray[np.int64]) -> Repeats:
    """Returns what is in groups of two rows or more, given the group and the number of each row, (n,)."""
    _, begins, members, counts = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    large = np.lexsort((begins, -counts))[:_FIRST]  # the largest, of equal ones the first
    first = [rows[np.flatnonzero(members == group)[:2]].tolist() for group in large.tolist() if counts[group] > 1]
    return Repeats(
        rows=int(counts[counts > 1].sum()),
        groups=int((counts > 1).sum()),
        first=tuple((one, other) for one, other in first),
    )


def _sequences(lengths: NDArray[np.int32]) -> Sequences:
    """Returns what (n, 2) lengths of sequences are."""
    tallies = Tally(), Tally(), Tally()
    for tally, values in zip(tallies, (*lengths.T, lengths.max(axis=1)), strict=True):
        tally.add(values[values >= 0])
    return Sequences(*(tally.lengths() for tally in tallies))
