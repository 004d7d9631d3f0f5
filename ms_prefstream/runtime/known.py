"""What a length index knows about bad rows, told to the report and the quarantine before a run begins."""

from __future__ import annotations

import numpy as np

from ms_prefstream.lengths import LengthIndex
from ms_prefstream.report.quarantine import Quarantine
from ms_prefstream.report.report import Report
from ms_prefstream.runtime.loader import SampleLoader
from ms_prefstream.runtime.mixed import Records

_TOGETHER = 2048  # rows that are loaded again together


def tell(
    index: LengthIndex, records: Records, local: SampleLoader, report: Report, quarantine: Quarantine | None
) -> None:
    """Count the rows that an index knows to be bad, and put this rank's share of them aside.

    Args:
        index: Of all rows.
        records: Their origins and raw rows.
        local: Loads a bad row again, for its error.
        report: Where they are counted.
        quarantine: Where they are written, or None.
    """
    report.known([(str(one.reason), one.rows, [records.origin(row) for row in one.first]) for one in index.counts])
    if quarantine is None:
        return
    bad = np.flatnonzero(index.verdict)[quarantine.rank :: quarantine.world].tolist()
    for begin in range(0, len(bad), _TOGETHER):
        rows = bad[begin : begin + _TOGETHER]
        for row, one in zip(rows, local.load(rows), strict=True):
            if one.error is not None:
                quarantine.add(one.error.at(records.origin(row)), records.raw(row))
