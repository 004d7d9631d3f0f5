"""The rows of a source in fixed ranges, one a part, whether they can be read in any order or only from the front."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ms_prefstream.cache.job import Job
from ms_prefstream.cache.part import PartDone, PartTask
from ms_prefstream.errors import SourceError
from ms_prefstream.runtime.material import Material
from ms_prefstream.runtime.mixed import MixedRecords
from ms_prefstream.sources.mix import Mix
from ms_prefstream.sources.whole import whole_hash

Found = tuple[str, Any, Any]
"""Origin, raw row and record of a row that was read from the front."""


@dataclass(frozen=True)
class Range:
    """The rows of one part.

    Attributes:
        number: Which part.
        first: Its first row id.
        count: Its rows.
        found: The rows themselves where they are read from the front.
    """

    number: int
    first: int
    count: int
    found: list[Found] | None = None

    def task(self, job: Job, folder: str) -> PartTask:
        """What a worker is told."""
        records = None if self.found is None else [record for _, _, record in self.found]
        return PartTask(job, self.number, self.first, self.count, folder, records)


def check_material(material: Material) -> None:
    """Refuse sources that have no fixed rows.

    Raises:
        SourceError: A mix, or a source whose rows go on.
    """
    if isinstance(material.source, Mix) or isinstance(material.records, MixedRecords):
        raise SourceError(
            "a mix has other rows in each epoch, so it cannot be written to a cache. Write each part to a cache of its "
            "own and mix these: mps.mix([(cache_a, 2), (cache_b, 1)])."
        )
    if material.front is not None and material.front.continues:
        raise SourceError(
            f"{material.front.name} is still being written, so a cache of it would never be whole. Write the cache "
            "when the file is finished."
        )


def can_go_on(material: Material) -> bool:
    """Whether the finished parts of an interrupted run hold the same rows, by what fingerprint and `contents` prove."""
    return material.records is not None or bool(getattr(material.source, "paths", ()))


def contents(material: Material) -> str | None:
    """A hash of all rows, where the fingerprint looks at samples: parts of one cache come from one state of them.

    None if the fingerprint says as much, or if every run begins at the front.
    """
    return whole_hash(material.source) if can_go_on(material) else None


def ranges(material: Material, rows_per_part: int, done: Callable[[int], PartDone | None]) -> Iterator[Range]:
    """The parts that must be written, in order; of those that are finished nothing is read if that is possible.

    Args:
        material: The source.
        rows_per_part: Rows of a part; the last one has the rest.
        done: What is known of a part that is finished.
    """
    if material.records is not None:
        total = len(material.records)
        for number, first in enumerate(range(0, total, rows_per_part)):
            if done(number) is None:
                yield Range(number, first, min(rows_per_part, total - first))
        return
    assert material.front is not None  # one of the two
    number = 0
    while (known := done(number)) is not None:
        if len(known.verdict) < rows_per_part:
            return  # a short part is the last one
        number += 1
    rows = material.front.start(number * rows_per_part)
    while found := list(itertools.islice(rows, rows_per_part)):
        known = done(number)
        if known is None or len(known.verdict) != len(found):
            yield Range(number, number * rows_per_part, len(found), found)
        number += 1
