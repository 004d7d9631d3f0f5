"""A recipe on its way to the workers: callables by value, large arrays in shared memory."""

from __future__ import annotations

import functools
import io
import mmap
import os
import pickle
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


class PackedRecipe(NamedTuple):
    """A recipe, ready to be sent.

    Attributes:
        data: The pickle, together with the sizes of the large arrays.
        shared: The large arrays, in shared memory; None if there are none.
        parent_rows: Reads the rows of sources that workers cannot read.
    """

    data: bytes
    shared: BinaryIO | None
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
    data = pickle.dumps((text, [buffer.nbytes for buffer in buffers]))
    return PackedRecipe(data, _share(buffers) if buffers else None, parent_rows)


def unpack_recipe(data: bytes | bytearray, shared: int) -> tuple[Recipe, dict[int, SentRows]]:
    """Returns the recipe in a worker, and the sources that get their rows from the parent, by number.

    Args:
        data: See `PackedRecipe`.
        shared: Descriptor of the shared memory, if there are large arrays.
    """
    text, sizes = pickle.loads(data)
    buffers = []
    if sizes:
        mapped = memoryview(mmap.mmap(shared, 0, access=mmap.ACCESS_READ))
        begin = 0
        for size in sizes:
            buffers.append(mapped[begin : begin + size])
            begin += size + -size % _ALIGN
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
    if raw.nbytes < _SHARE_FROM or not hasattr(os, "memfd_create"):  # Linux has it
        return True
    buffers.append(raw)
    return False


def _share(buffers: Sequence[memoryview]) -> BinaryIO:
    """Returns an anonymous file in memory with these arrays, for workers to map."""
    file = open(os.memfd_create("ms_prefstream"), "wb")  # noqa: SIM115 - the pool closes it
    for raw in buffers:
        file.write(raw)
        file.write(bytes(-raw.nbytes % _ALIGN))
    file.flush()
    return file


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
