"""A look at some rows of a source, before or while a stream reads them: what `report.findings` checks.

Looking is cheap and changes nothing: only sources of this library with random access are looked at beforehand, no
function of the user is called, and nothing is tokenised before the first window is. Others are judged at that window.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ms_prefstream.errors import PrefStreamError
from ms_prefstream.load.loader import Recipe
from ms_prefstream.load.one_pass import RecordWithOrigin, records_of
from ms_prefstream.load.records import RecordAccess
from ms_prefstream.report.findings import Seen, dropped, findings, unread
from ms_prefstream.sample import Loaded, Note
from ms_prefstream.sources.base import RandomAccess, sources_in
from ms_prefstream.sources.concat import begin_pass
from ms_prefstream.sources.memory import MemoryRows, OwnRows
from ms_prefstream.sources.mix import parts_of
from ms_prefstream.tasks import Task

LOOKED_AT = 64  # rows
_MEASURED = 256  # rows of which lengths are suggested
_DROPPED = 0.2  # share of dropped rows above which a warning says so
_CLEAR = 8  # rows after which a share above a half is reported at once


def first_rows(source: Any, formats: Sequence[Any], rows: int) -> Iterator[RecordWithOrigin]:
    """Yields (origin, raw row, record) of the first rows of a source, of a mix of each part's."""
    parts = parts_of(source)
    for part, fmt in zip(parts, formats, strict=True):
        yield from itertools.islice(records_of(begin_pass(part, 0)[1], fmt), max(1, rows // len(parts)))


def can_look(source: Any, formats: Sequence[Any]) -> bool:
    """Returns whether the first rows of a source can be read at no cost and without calling code of the user."""
    return all(map(_is_own, sources_in(source))) and not any(fmt.calls_user_code for fmt in formats)


def _is_own(source: Any) -> bool:
    if isinstance(source, MemoryRows):
        return isinstance(source._rows, (list, tuple))
    return isinstance(source, RandomAccess) and not isinstance(source, OwnRows)


def formats_in(formats: Sequence[Any], raws: Sequence[Any]) -> list[str]:
    """Returns the names of the formats of some rows, the most frequent first."""
    names: Counter[str] = Counter()
    for fmt in formats:
        if not raws:
            names[fmt.name] += 1
        for raw in raws:
            with contextlib.suppress(PrefStreamError):  # a row that nothing reads
                names[fmt.preset_of(raw)] += 1
    return [name for name, _ in names.most_common()]


def whole_lengths(recipe: Recipe, records: Sequence[Any], loaded: Sequence[Loaded] = ()) -> dict[str, list[int]]:
    """Returns the tokens of records before anything is cut, by the name of the option that limits them.

    Args:
        recipe: What records become.
        records: The records.
        loaded: What became of them, if that is known; only those that were cut or dropped are then encoded again.
    """
    samples = [one.sample for one in loaded if one.sample is not None and not one.notes & Note.TRUNCATED]
    if loaded:
        pairs = zip(records, loaded, strict=True)
        records = [record for record, one in pairs if one.sample is None or one.notes & Note.TRUNCATED]
    if records:
        loader = dataclasses.replace(recipe, records=None, task=_unlimited(recipe.task)).loader()
        samples += [one.sample for one in loader.samples(records) if one.sample is not None]
    found = {name: [one.length for one in samples] for name in ("max_length", "seq_length")}
    return found | {"max_prompt_length": [len(one.prompt) for one in samples if one.prompt is not None]}


def _unlimited(task: Task) -> Task:
    """Returns the task with limits that no row reaches."""
    most = {"max_length": 2**24, "seq_length": 2**24, "max_prompt_length": 2**23}
    names = [field.name for field in dataclasses.fields(task)]  # type: ignore[arg-type]  # tasks are dataclasses
    changes: dict[str, Any] = {name: most[name] for name in names if getattr(task, name) is not None and name in most}
    return dataclasses.replace(task, **changes)  # type: ignore[type-var]


class Look:
    """What is noticed about the rows of a stream: in the first ones beforehand, and in the first window.

    Args:
        source: The opened source.
        formats: The format of each part.
        recipe: What rows become.
        joined: See `Seen`.
        warn: Called with what looks wrong.
        records: Random access to the records, or None.
        ranks: Ranks that share them.

    Attributes:
        formats: The names of the formats of the first rows, as far as these can be looked at.
    """

    def __init__(
        self,
        source: Any,
        formats: Sequence[Any],
        recipe: Recipe,
        joined: bool,
        warn: Callable[[str], None],
        records: RecordAccess | None,
        ranks: int,
    ) -> None:
        self._recipe, self._warn, self._records = recipe, warn, records
        self.formats: list[str] = []
        self._window: list[Loaded] = []
        self._of_window: list[Any] = []  # records, of a one-pass source
        self._has_looked = False
        self._wanted = LOOKED_AT if records is None else max(1, min(4 * LOOKED_AT, len(records) * 3 // 4 // ranks))
        if recipe.ready:
            return
        found: list[RecordWithOrigin] = []
        with contextlib.suppress(PrefStreamError):  # whoever reads these rows raises it
            if can_look(source, formats):
                found = list(first_rows(source, formats, LOOKED_AT))
        origins, raws, first = zip(*found, strict=True) if found else ((), (), ())
        self.formats, self._has_looked = formats_in(formats, raws), bool(found)
        self._note(Seen(**self._facts, joined=joined, raws=raws, records=first, origins=origins))

    def at_window(
        self, read: Callable[[Sequence[int]], Sequence[Any]], rows: Sequence[int], loaded: Sequence[Loaded]
    ) -> None:
        """Takes loaded rows until there are enough to judge the first window; `read` returns records of such rows."""
        if not self._wanted:
            return
        enough = self._wanted - len(self._window)  # each row costs ten microseconds to look at
        self._window += loaded[:enough]
        if self._records is None:
            self._of_window += read(rows[:enough])
        lost, count = sum(bool(one.notes & Note.QUESTION_CUT) for one in self._window), len(self._window)
        is_clear = self._records is not None and count >= _CLEAR and 2 * lost > count
        if count < self._wanted and not is_clear:
            return
        window, self._window, self._wanted = self._window, [], 0
        some, self._of_window = self._of_window, []
        lengths = {}
        if not self._recipe.ready and any(one.notes & Note.TRUNCATED for one in window):
            if self._records is not None:
                some = [*self._records.read(range(0, len(self._records), 1 + len(self._records) // _MEASURED))]
            lengths = whole_lengths(self._recipe, some[:_MEASURED])
        known: list[Any] = [unread] if self._has_looked else []
        if sum(one.sample is None for one in window) <= _DROPPED * len(window):
            known.append(dropped)  # the report counts them
        self._note(Seen(**self._facts, loaded=window, lengths=lengths), without=known)
        if self._records is None:
            self._note(Seen(**self._facts, records=some), without=[unread])

    @property
    def _facts(self) -> dict[str, Any]:
        recipe = self._recipe
        return {"task": recipe.task, "tokenizer": recipe.tokenizer}

    def _note(self, seen: Seen, without: Sequence[Any] = ()) -> None:
        for one in findings(seen, without):
            self._warn(str(one))
