"""Objects and folders of the Hugging Face package `datasets`; local only, nothing is ever downloaded."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from ms_prefstream.errors import SourceError
from ms_prefstream.packages import needs
from ms_prefstream.sources.base import RawRow, Source, as_row_ids, no_rows
from ms_prefstream.sources.content_hash import sampled_files_hash, sampled_rows_hash
from ms_prefstream.sources.iterable import StatefulRows
from ms_prefstream.sources.memory import lock_of

_SAVED = "state.json"
_SAVED_SPLITS = "dataset_dict.json"


class HuggingFaceRows:
    """Rows of a `datasets.Dataset`, as plain Python values.

    A transform that was set with `set_transform` is applied; other output formats (torch, numpy, ...) are not.

    Args:
        dataset: The data set.
        name: What messages call it, e.g. the folder that it was loaded from.
        paths: The files it was loaded from, if any; they determine the fingerprint.
    """

    fills_nulls = True  # see `base.fills_nulls`

    def __init__(self, dataset: Any, name: str = "", paths: Sequence[str] = ()) -> None:
        self.name = str(name) or (f"Dataset({dataset.split})" if dataset.split else "Dataset")
        output = dataset.format
        if output["type"] not in (None, "custom"):  # Python values instead of tensors, of the same columns
            dataset = dataset.with_format(None, columns=output["columns"])
        self._dataset = dataset
        self._paths = tuple(paths)
        if len(dataset) == 0:
            raise no_rows(self.name)

    def __len__(self) -> int:
        return len(self._dataset)

    def read(self, rows: Sequence[int]) -> list[RawRow]:
        """Returns the rows with these ids, in this order, as dicts."""
        ids = as_row_ids(rows, len(self), self.name).tolist()
        with lock_of(self._dataset):  # a transform of the user may not be thread-safe
            columns = self._dataset[ids] if ids else {}
        found = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        if len(found) != len(ids):
            raise SourceError(
                f"{self.name}: requested {len(ids)} rows, got {len(found)}. The transform of the data set "
                "must give one row for each row; use datasets' map for anything else."
            )
        return found

    def origin(self, row: int) -> str:
        """Returns where a row comes from: ``"row 17 of Dataset(train)"``, the data set's own index, counted from 0."""
        return f"row {row} of {self.name}"

    def fingerprint(self) -> str:
        """Returns a hash of the files' contents, or of up to 64 evenly spread rows of a data set in memory.

        The package's own fingerprint is not used, because after some operations it differs between processes.
        """
        return sampled_files_hash(self._paths) if self._paths else sampled_rows_hash(type(self._dataset), self)


class _Restartable:
    """`IterableDataset` whose passes begin at its front, except the first one after `load_state_dict`.

    An `IterableDataset` alone returns to a loaded state on every later pass of the same epoch. Each pass therefore uses
    a new object, in the epoch that was last set on the user's one, and with plain Python values.
    """

    fills_nulls = True  # see `base.fills_nulls`

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._live = dataset
        self._loaded: Any = None

    def __iter__(self) -> Iterator[RawRow]:
        self._live = self._dataset.with_format(None)
        self._live.set_epoch(self._dataset.epoch)
        if self._loaded is not None:
            self._live.load_state_dict(self._loaded)
            self._loaded = None
        return iter(self._live)

    def state_dict(self) -> Any:
        return self._live.state_dict() if self._loaded is None else self._loaded

    def load_state_dict(self, state: Any) -> None:
        self._loaded = state


def open_huggingface(dataset: Any) -> Source | None:
    """Returns the source for an object of `datasets`, None for any other object; does not import that package.

    ModelScope's `MsDataset` is read as the data set that it wraps.
    """
    if type(dataset).__name__ == "MsDataset":
        wrapped = getattr(dataset, "_hf_ds", None)
        dataset = dataset.to_hf_dataset() if wrapped is None and hasattr(dataset, "to_hf_dataset") else wrapped
    kinds = {kind.__name__ for kind in type(dataset).__mro__ if kind.__module__.partition(".")[0] == "datasets"}
    if kinds & {"DatasetDict", "IterableDatasetDict"}:
        raise _several_splits(type(dataset).__name__, list(dataset), 'dataset["{}"]')
    if "IterableDataset" in kinds:
        return StatefulRows(_Restartable(dataset), name=type(dataset).__name__)
    return HuggingFaceRows(dataset) if "Dataset" in kinds else None


def is_saved(folder: str) -> bool:
    """Returns whether a folder was written by `save_to_disk`."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in (_SAVED, _SAVED_SPLITS))


def open_saved(folder: str) -> HuggingFaceRows:
    """Opens a folder that was written by `Dataset.save_to_disk`; one that holds several splits is an error."""
    try:
        splits = os.path.join(folder, _SAVED_SPLITS)
        if os.path.isfile(splits):
            with open(splits, encoding="utf-8") as file:
                raise _several_splits(folder, json.load(file)["splits"], os.path.join(folder, "{}"))
        with open(os.path.join(folder, _SAVED), encoding="utf-8") as file:
            files = [os.path.join(folder, entry["filename"]) for entry in json.load(file)["_data_files"]]
        dataset = _datasets(folder).load_from_disk(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{folder}: the saved data set cannot be loaded ({error}). Save it again.") from error
    return HuggingFaceRows(dataset, folder, files)


def open_arrow(path: str) -> HuggingFaceRows:
    """Opens one `.arrow` file as `datasets` writes them; it is mapped into memory, not read."""
    try:
        dataset = _datasets(path).Dataset.from_file(path)
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{path}: found something that is not an Arrow stream of the datasets package ({error}). Write it with "
            "save_to_disk, or convert it to Parquet or JSON Lines."
        ) from error
    return HuggingFaceRows(dataset, path, [path])


def _several_splits(where: str, names: Sequence[str], choice: str) -> SourceError:
    splits = ", ".join(names) or "none"
    example = choice.format(names[0]) if names else "one split"
    return SourceError(f"{where}: found several splits ({splits}), expected one. Pass one of them: {example}.")


def _datasets(where: str) -> Any:
    with needs("datasets", f"{where}: reading it", SourceError, ", or save the rows as JSON Lines"):
        import datasets
    return datasets
