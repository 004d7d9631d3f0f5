"""Single samples instead of batches, for datasets of others that batch what a loader yields.

    batches of 2, (2, L) each:  [0 1] [2 3]   ->   samples, (L,) each:  0 1 2 3

Batched again with the same size, they are the batches of the stream.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ms_prefstream.errors import OptionError
from ms_prefstream.mindspore import BatchStream
from ms_prefstream.sample import Batch

_REFERENCE = ("chosen_ref_logps", "rejected_ref_logps")


class Samples:
    """Steps of a single sample each: those of an epoch are the rows of its batches, in order.

    Args:
        stream: A stream whose columns all have one row for each sample.
        reference_free: Whether to add `chosen_ref_logps` and `rejected_ref_logps` as zeros, each after its side, for
            models that take these columns but are trained without a reference model.

    Raises:
        OptionError: The layout has two rows a pair, or several samples share a row.
    """

    def __init__(self, stream: BatchStream, reference_free: bool = False) -> None:
        rows = stream.shapes[0][0]
        if rows != stream.batching.batch_size or "actual_seq_len" in stream.column_names:
            raise OptionError(
                f"{stream.task!r} with {stream.batching!r} cannot be taken apart into single samples: in its batches a "
                "sample is not one row. Use layout='paired' (or RLHF) with Pad or Bucket, or the dataset type "
                "PrefStreamDataset, which delivers whole batches."
            )
        self.stream, self.rows = stream, rows
        self.column_names = _with_reference(stream.column_names) if reference_free else stream.column_names
        self.steps_per_epoch = stream.steps_per_epoch * rows

    def start(self, epoch: int, step: int = 0) -> Iterator[Batch]:
        """Yields the samples of one epoch from a sample on, as arrays without the first axis."""
        first, skip = divmod(step, self.rows)
        for batch in self.stream.batches(epoch, first):
            for row in range(skip, self.rows):
                yield {
                    name: batch[name][row, ...] if name in batch else np.zeros(1, np.float32)
                    for name in self.column_names
                }
            skip = 0


def _with_reference(columns: list[str]) -> list[str]:
    """Returns the columns of the layout `paired` with a reference column after each side."""
    if "rejected_input_ids" not in columns:
        raise OptionError("reference_free adds columns to the DPO layout 'paired'; this stream has another layout.")
    if _REFERENCE[0] in columns:
        raise OptionError(
            "reference_free is set, but the data hold reference log-probabilities. Leave reference_free out to use "
            "them."
        )
    at = columns.index("rejected_input_ids")
    end = at + at  # both sides have the same columns; a margin may follow
    return [*columns[:at], _REFERENCE[0], *columns[at:end], _REFERENCE[1], *columns[end:]]
