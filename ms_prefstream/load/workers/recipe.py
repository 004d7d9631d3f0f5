"""A recipe on its way to the workers: callables by value, large arrays in a file in memory that workers share."""

from __future__ import annotations

import functools
import io
import mmap
import os
import pickle
import tempfile
import types
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, BinaryIO, NamedTuple

import cloudpickle

from ms_prefstream.errors import OptionError
from ms_prefstream.load.loader import Recipe
from ms_prefstream.load.workers.parent_rows import ParentRows, SentRows
from ms_prefstream.load.workers.user_modules import by_value, constants, not_importable, set_constants
from ms_prefstream.sources.base import RandomAccess

_SHARE_FROM = 1 << 16  # bytes; smaller arrays travel inside the pickle
_ALIGN = 64
_LINUX = hasattr(os, "memfd_create")


class PackedRecipe(NamedTuple):
    """A recipe, ready to be sent.

    Attributes:
        file: The pickle and its large arrays, in a file without a name that every worker maps.
        parent_rows: Reads the rows of sources that workers cannot read.
    """

    file: BinaryIO
    parent_rows: ParentRows


def pack_recipe(recipe: Recipe, workers: int) -> PackedRecipe:
    """Pickles a recipe, and with it the constants of the user's modules.

    Raises:
        OptionError: A part of it cannot be pickled; names the part.
    """
    if recipe.records is not None:
        len(recipe.records)  # sources count their rows now, and not in every worker again
    parent_rows = ParentRows(recipe.records)
    try:
        text, buffers = _dumps((recipe, constants()), parent_rows.sources)
    except Exception as error:
        raise OptionError(
            f"workers={workers} sends {_culprit(recipe)} to other processes, and that failed: "
            f"{type(error).__name__}: {error}. Use workers=0, or leave out of it what cannot be sent (locks, open "
            "files, connections)."
        ) from error
    file: Any  # closed by the pool
    file = open(os.memfd_create(__name__), "wb") if _LINUX else tempfile.TemporaryFile()  # noqa: SIM115
    pickle.dump((text, [buffer.nbytes for buffer in buffers]), file)
    for buffer in buffers:
        file.write(bytes(-file.tell() % _ALIGN))
        file.write(buffer)
    file.flush()
    return PackedRecipe(file, parent_rows)


def unpack_recipe(file: int) -> tuple[Recipe, dict[int, SentRows]]:
    """Returns the recipe in a worker, and the sources that get their rows from the parent, by number."""
    mapped = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
    text, sizes = pickle.load(mapped)
    buffers, end = [], mapped.tell()
    for size in sizes:
        begin = end + -end % _ALIGN
        end = begin + size
        buffers.append(memoryview(mapped)[begin:end])
    sources: dict[int, SentRows] = defaultdict(SentRows)
    unpickler = pickle.Unpickler(io.BytesIO(text), buffers=buffers)
    unpickler.persistent_load = sources.__getitem__  # type: ignore[method-assign]  # of the numbers of `_Pickler`
    recipe, values = unpickler.load()
    set_constants(values)
    return recipe, sources


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # the package has no types
    """Pickles large arrays out of band, and a number in place of each source that stays in the parent."""

    def __init__(self, sources: Sequence[RandomAccess]) -> None:
        self.file = io.BytesIO()
        self.buffers: list[memoryview] = []
        self.modules: set[str] = set()  # those that the worker imports, as the pickle names something of theirs
        self._numbers = {id(source): number for number, source in enumerate(sources)}
        super().__init__(self.file, protocol=5, buffer_callback=functools.partial(_keep_in_band, self.buffers))

    def reducer_override(self, obj: Any) -> Any:
        reduced = super().reducer_override(obj)
        if reduced is NotImplemented and isinstance(obj, (type, types.FunctionType, types.ModuleType)):
            self.modules.add(str(obj.__name__ if isinstance(obj, types.ModuleType) else obj.__module__))
        return reduced

    def persistent_id(self, obj: Any) -> Any:
        return self._numbers.get(id(obj))


def _dumps(obj: Any, sources: Sequence[RandomAccess] = ()) -> tuple[bytes, list[memoryview]]:
    """Returns a pickle and its large arrays. Modules that a worker could not import are pickled by value."""
    pickler = _Pickler(sources)
    pickler.dump(obj)
    if modules := not_importable(pickler.modules):
        pickler = _Pickler(sources)
        try:
            with by_value(modules):
                pickler.dump(obj)
        except Exception as error:
            names = ", ".join(module.__name__ for module in modules)
            raise ModuleNotFoundError(
                f"another process would not find the module {names} on sys.path, and it cannot be sent: {error}"
            ) from error
    return pickler.file.getvalue(), pickler.buffers


def _keep_in_band(buffers: list[memoryview], buffer: pickle.PickleBuffer) -> bool:
    raw = buffer.raw()
    if raw.nbytes < _SHARE_FROM:
        return True
    buffers.append(raw)
    return False


def _culprit(recipe: Recipe) -> str:
    """Returns which part of a recipe cannot be pickled, as words."""
    parts: dict[str, Any] = {"the tokenizer": recipe.tokenizer, f"the task {recipe.task!r}": recipe.task}
    for records in (recipe.records, *getattr(recipe.records, "_parts", ())):  # of a mix, each with its own format
        fmt = getattr(records, "format", None) or getattr(records, "_format", None)
        parts[f"the format {fmt!r}"] = fmt
    for name, part in parts.items():
        try:
            _dumps(part)
        except Exception:
            return name
    return "the source"
