"""MindFormers' trainer for PyNative mode, which makes a new iterator for each epoch.

Every new iterator begins at the dataset's first epoch again, or where a run was resumed, so each epoch would have the
rows of the first one. A dataset of ours gives this trainer one iterator over all epochs instead.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from typing import Any

from ms_prefstream.adapters.readable import Readable
from ms_prefstream.adapters.when_imported import when_imported

_PYNATIVE = "mindformers.pynative.trainer.trainer"


def _in_order(rows: Any, epochs: int) -> Iterator[Any]:
    """The rows of one epoch after the other; an epoch that a resumed run leaves out is empty."""
    for _ in range(epochs):
        yield from rows


def _watch_pynative() -> None:
    trainer = getattr(sys.modules[_PYNATIVE], "Trainer", None)
    create = getattr(trainer, "_create_dataset_iterator", None)
    if create is None:
        return

    @functools.wraps(create)
    def iterator(self: Any, dataset: Any) -> Any:
        if isinstance(dataset, Readable) and dataset.stream is not None:
            epochs = self.train_num_epochs + 1  # the trainer rounds down
            return _in_order(dataset.create_dict_iterator(output_numpy=False, num_epochs=epochs), epochs)
        return create(self, dataset)

    trainer._create_dataset_iterator = iterator  # type: ignore[union-attr]


when_imported(_PYNATIVE, _watch_pynative)
