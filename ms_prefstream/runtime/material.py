"""What a cache is made from: the rows of a stream without its order and its batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ms_prefstream.report.quarantine import Quarantine
from ms_prefstream.report.report import Report
from ms_prefstream.runtime.front import MixedFront, SingleFront
from ms_prefstream.runtime.loader import SampleLoader
from ms_prefstream.runtime.mixed import Records
from ms_prefstream.runtime.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Material:
    """Rows and what they become.

    Attributes:
        source: The opened source, or a mix.
        records: Random access to its records; None if they are read from the front.
        front: Its records from the front; None if there is random access.
        recipe: What records become; can be sent to other processes.
        loader: Follows the recipe in this process.
        fingerprint: What decides about samples, by name: data, task, format, tokenizer, template, boundary, ….
        report: The stream's.
        raise_malformed: Whether a malformed row is an error.
        quarantine: Where dropped rows are written, or None.
        workers: The stream's number of processes.
    """

    source: Any
    records: Records | None
    front: SingleFront | MixedFront | None
    recipe: Recipe
    loader: SampleLoader
    fingerprint: Mapping[str, Any]
    report: Report
    raise_malformed: bool
    quarantine: Quarantine | None
    workers: int
