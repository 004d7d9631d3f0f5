"""Some rows of a source, looked at before the run: what shapes and the number of packs are chosen from."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.errors import NoUsableRowsError, OptionError
from ms_prefstream.plan import KeyedPermutation
from ms_prefstream.runtime.loader import Loaded
from ms_prefstream.runtime.mixed import MixedRecords
from ms_prefstream.runtime.packed import sample_tokens
from ms_prefstream.runtime.rows import Rows

ROWS_PROBED = 2048


def key_lengths(rows: Rows, seed: int) -> NDArray[np.integer[Any]]:
    """Key lengths from which shapes are chosen: all of the index, else of some rows, the same on every rank.

    Raises:
        OptionError: If the source can be read only once, so that nothing can be looked at beforehand.
        NoUsableRowsError: If none of these rows can be used.
    """
    if rows.index is not None:
        return rows.index.keys[rows.index.good()]
    return np.array([one.sample.length for one in probe(rows, seed) if one.sample is not None], np.int64)


def packed_sizes(rows: Rows, seed: int) -> NDArray[np.int64]:
    """Tokens that some rows take of a packed row, 0 where one is unusable; errors as for `key_lengths`."""
    return np.array([0 if one.sample is None else sample_tokens(one.sample) for one in probe(rows, seed)], np.int64)


def probe(rows: Rows, seed: int) -> list[Loaded]:
    """Some rows, the same ones on every rank; one of them is good."""
    records = rows.records
    if records is not None:
        if isinstance(records, MixedRecords):
            some = records.probe(ROWS_PROBED, seed)
        else:
            order = KeyedPermutation(len(records), np.random.SeedSequence([seed]))
            some = order.row_of(np.arange(min(ROWS_PROBED, len(records))))
        loaded = rows.local.load(np.sort(some).tolist())
    else:
        if rows.front.once or rows.front.continues:
            raise OptionError(
                f"{rows.source.name} can be read only once, so its lengths cannot be looked at to choose shapes. "
                "Give boundaries or multiple_of."
            )
        found = itertools.islice(rows.front.start(0), ROWS_PROBED)
        loaded = rows.local.samples([record for _, _, record in found])
    if not any(one.sample is not None for one in loaded):
        problem = next((str(one.error) for one in loaded if one.error is not None), "there are no rows")
        raise NoUsableRowsError(f"none of the first {len(loaded)} rows of {rows.source.name} can be used: {problem}")
    return loaded
