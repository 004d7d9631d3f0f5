"""The end of a write: what is known of each part becomes the tables and the manifest of the whole."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from ms_prefstream.cache.folder import Workplace
from ms_prefstream.cache.parts import NOTES, Job, PartDone
from ms_prefstream.errors import NoUsableRowsError
from ms_prefstream.lengths.index import GOOD, REASONS, Measured
from ms_prefstream.lengths.index_file import write_contents
from ms_prefstream.mindrecord.files import FileNote, note_of, unwritable, write_whole
from ms_prefstream.mindrecord.manifest import LENGTHS, PLACES, Manifest
from ms_prefstream.mindrecord.reader import PLACE
from ms_prefstream.mindrecord.schema import described
from ms_prefstream.report.report import ORIGINS_KEPT
from ms_prefstream.steps.data import Material
from ms_prefstream.version import VERSION


def merged(material: Material, job: Job, about: dict[str, Any], place: Workplace, parts: int) -> Manifest:
    """Write the tables of all parts.

    Args:
        material: What was written.
        job: How.
        about: What decides about the bytes.
        place: Where the parts are.
        parts: How many there are.

    Returns:
        The manifest, not written yet.

    Raises:
        NoUsableRowsError: No part has a row.
    """
    rows, good = 0, 0
    files: dict[str, FileNote] = {}
    dropped: Counter[str] = Counter()
    origins: dict[str, list[str]] = {}
    notes = np.zeros(len(NOTES), np.int64)
    for one in _parts(place, parts):
        rows += len(one.verdict)
        good += int(np.count_nonzero(one.verdict == GOOD))
        files.update(one.files)
        notes += one.notes
        for code, reason in REASONS.items():
            if count := int(np.count_nonzero(one.verdict == code)):
                dropped[str(reason)] += count
        for name, found in one.origins.items():
            origins[name] = (origins.get(name, []) + found)[:ORIGINS_KEPT]
    if not good:
        what = "; ".join(f"{name} {count:,}, first at {origins[name][0]}" for name, count in dropped.most_common())
        raise NoUsableRowsError(f"no row of {material.source.name} can be used ({what or 'it has none'}).")
    measured = (Measured(one.lengths, one.keys, one.verdict, []) for one in _parts(place, parts))
    write_contents(place.path(LENGTHS), measured, material.fingerprint)
    _write_places(place, parts, rows)
    try:
        files |= {name: note_of(place.path(name), 0) for name in (LENGTHS, PLACES)}
    except OSError as error:
        raise unwritable(place.folder, error) from error
    return Manifest(
        about=about,
        columns=described(job.columns),
        rows=good,
        source_rows=rows,
        dropped={name: {"rows": count, "first": origins[name]} for name, count in dropped.most_common()},
        notes={str(note.name).lower(): int(count) for note, count in zip(NOTES, notes, strict=True)},
        files=files,
        library=VERSION,
    )


def _parts(place: Workplace, parts: int) -> Iterator[PartDone]:
    for number in range(parts):
        found = place.done(number)
        assert found is not None  # it was written a moment ago
        yield found


def _write_places(place: Workplace, parts: int, rows: int) -> None:
    file = io.BytesIO()
    header = {"descr": PLACE.descr, "fortran_order": False, "shape": (rows,)}
    np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]
    for one in _parts(place, parts):
        file.write(one.places.tobytes())
    write_whole(place.path(PLACES), file.getvalue())
