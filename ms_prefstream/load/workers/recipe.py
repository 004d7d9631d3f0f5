"""A recipe on its way to workers: callables by value, large arrays once for all, rows in memory left behind."""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import pickle
import sys
import sysconfig
import tempfile
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import cloudpickle

from ms_prefstream.errors import OptionError
from ms_prefstream.load.loader import Recipe
from ms_prefstream.sources.base import RandomAccess, RawRow
from ms_prefstream.sources.huggingface import HuggingFaceRows
from ms_prefstream.sources.memory import MemoryRows, OwnRows

Constants: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Module -> name -> value."""

_INSTALLED = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))
_STANDARD = tuple(sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib"))
_PLAIN = (str, bytes, int, float, complex, bool, type(None))
_MOST_ITEMS = 2000


def users_modules() -> list[types.ModuleType]:
    """The imported modules that are the user's own; `__main__`, which always goes by value, is none of them."""
    return [module for name, module in list(sys.modules.items()) if _is_users(name, module)]


def constants() -> Constants:
    """The constants of the user's modules, as they are now."""
    found = {
        module.__name__: {name: value for name, value in vars(module).items() if name.isupper() and _is_plain(value)}
        for module in users_modules()
    }
    return {name: values for name, values in found.items() if values}


def set_constants(found: Constants) -> None:
    """Give the modules that were imported here the constants of another process, where they differ."""
    for name, values in found.items():
        module = sys.modules.get(name)
        for key, value in values.items() if module is not None else ():
            here = vars(module).get(key, ...)
            if type(here) is not type(value) or not _is_plain(here) or here != value:
                setattr(module, key, value)


def not_found(names: Iterable[str]) -> list[types.ModuleType]:
    """The user's modules, among those of these names and beside them, that another process would not find."""
    tops = {name.partition(".")[0] for name in names}
    own = [module for module in users_modules() if module.__name__.partition(".")[0] in tops]
    lost = {top for top in {module.__name__.partition(".")[0] for module in own} if not _is_found(top)}
    return [module for module in own if module.__name__.partition(".")[0] in lost]


@contextlib.contextmanager
def by_value(pickler: Any, modules: Iterable[types.ModuleType]) -> Iterator[None]:
    """Let a module like `cloudpickle` send what these modules define by value."""
    known = pickler.list_registry_pickle_by_value()
    with contextlib.ExitStack() as stack:
        for module in modules:
            if module.__name__ not in known:
                pickler.register_pickle_by_value(module)
                stack.callback(pickler.unregister_pickle_by_value, module)
        yield


def _is_users(name: str, module: Any) -> bool:
    if not isinstance(module, types.ModuleType) or module.__name__ != name:
        return False
    if name in ("__main__", "__mp_main__") or name.partition(".")[0] == __name__.partition(".")[0]:
        return False
    file = getattr(module, "__file__", None)
    if not isinstance(file, str):  # of the interpreter, or made by a program
        return getattr(module, "__spec__", None) is None
    return not any(part in file for part in _INSTALLED) and not file.startswith(_STANDARD)


def _is_found(name: str) -> bool:
    """Whether an import would find a module that is imported already; editable installs have finders of their own."""
    for finder in sys.meta_path:
        with contextlib.suppress(Exception):
            if finder.find_spec(name, None) is not None:
                return True
    return False


def _is_plain(value: Any) -> bool:
    """Whether a value consists of plain values alone, and of few."""
    if type(value) in _PLAIN:
        return True
    if type(value) is dict:
        return 2 * len(value) <= _MOST_ITEMS and _is_plain([*value, *value.values()])
    return type(value) in (tuple, list, set, frozenset) and len(value) <= _MOST_ITEMS and all(map(_is_plain, value))


_SHARE_FROM = 1 << 16  # bytes; smaller arrays travel with the recipe
_ALIGN = 64

Ask = Callable[[int, Sequence[int]], tuple[list[RawRow], list[str]]]
"""(number of a source, row ids) -> (rows, origins), answered by the parent process."""


class PackedRecipe(NamedTuple):
    """A recipe as bytes.

    Attributes:
        text: The pickle.
        sizes: Bytes of each large array, which stand in the shared file.
        shared: A file without a name that holds them, or None.
        asked: The sources whose rows the workers ask for.
    """

    text: bytes
    sizes: tuple[int, ...]
    shared: io.FileIO | None
    asked: tuple[RandomAccess, ...]


class AskedRows:
    """A source that stays in the parent process, as the worker sees it.

    Args:
        ask: Asks the parent.
        number: Which source.
        name: Its name.
        count: Its rows.
    """

    def __init__(self, ask: Ask, number: int, name: str, count: int) -> None:
        self.name = name
        self._ask, self._number, self._count = ask, number, count
        self._origins: dict[int, str] = {}

    def __len__(self) -> int:
        return self._count

    def read(self, rows: Sequence[int]) -> list[RawRow]:
        """The raw rows with these ids."""
        found, origins = self._ask(self._number, rows)
        self._origins = dict(zip(rows, origins, strict=True))
        return found

    def origin(self, row: int) -> str:
        """Where a row of the last `read` comes from."""
        return self._origins[row]


def is_read_in_parent(source: Any) -> bool:
    """Whether a source stays in the parent process: it lives in memory, or is of a class of the user."""
    kind = type(source)
    if kind in (MemoryRows, OwnRows):
        return True
    return kind is HuggingFaceRows and not source._paths  # of files: opened again; others may hold a table in memory


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # the package has no types
    """Leaves sources that stay out of the pickle, and notes them."""

    def __init__(self, file: io.BytesIO, buffers: list[pickle.PickleBuffer]) -> None:
        super().__init__(file, protocol=5, buffer_callback=lambda buffer: _keep(buffer, buffers))
        self.asked: list[RandomAccess] = []
        self.named: set[str] = set()  # modules that go by name, or whose functions and classes do
        self._stays: dict[type, bool] = {}  # by class, except for the one class whose instances differ

    def reducer_override(self, obj: Any) -> Any:
        reduced = super().reducer_override(obj)
        if reduced is NotImplemented and isinstance(obj, (type, types.FunctionType, types.ModuleType)):
            self.named.add(str(obj.__name__ if isinstance(obj, types.ModuleType) else obj.__module__))
        return reduced

    def persistent_id(self, obj: Any) -> Any:
        kind = type(obj)
        known = self._stays.get(kind)
        if known is None or kind is HuggingFaceRows:
            known = self._stays[kind] = is_read_in_parent(obj)
        if not known:
            return None
        numbers = [number for number, source in enumerate(self.asked) if source is obj]
        if not numbers:
            numbers = [len(self.asked)]
            self.asked.append(obj)
        return numbers[0], obj.name, len(obj)


class _Unpickler(pickle.Unpickler):
    def __init__(self, text: bytes, buffers: Sequence[memoryview], ask: Ask) -> None:
        super().__init__(io.BytesIO(text), buffers=buffers)
        self._ask = ask

    def persistent_load(self, key: Any) -> AskedRows:
        return AskedRows(self._ask, *key)


def pack_recipe(recipe: Recipe, workers: int) -> PackedRecipe:
    """Make a recipe ready to be sent.

    Raises:
        OptionError: A part of it cannot be sent; names the part.
    """
    if recipe.records is not None:
        len(recipe.records)  # sources find out about their rows now, not in every worker again
    try:
        text, buffers, asked = _dumps((recipe, constants()))
    except Exception as error:
        what = _culprit(recipe)
        raise OptionError(
            f"workers={workers} sends {what} to other processes, and that failed: {type(error).__name__}: {error}. "
            "Use workers=0, or leave out of it what cannot be sent (locks, open files, connections)."
        ) from error
    sizes = tuple(buffer.raw().nbytes for buffer in buffers)
    return PackedRecipe(text, sizes, _share(buffers) if buffers else None, tuple(asked))


def unpack_recipe(text: bytes, sizes: Sequence[int], shared: int, ask: Ask) -> Recipe:
    """The recipe, in a worker.

    Args:
        text: What `pack_recipe` made.
        sizes: Likewise.
        shared: Descriptor of the shared file; unused without `sizes`.
        ask: Asks the parent for rows.
    """
    buffers = []
    if sizes:
        mapped = memoryview(mmap.mmap(shared, 0, access=mmap.ACCESS_READ))
        begin = 0
        for size in sizes:
            buffers.append(mapped[begin : begin + size])
            begin += -(-size // _ALIGN) * _ALIGN
    found: Recipe
    found, values = _Unpickler(text, buffers, ask).load()
    set_constants(values)
    return found


def _dumps(obj: Any) -> tuple[bytes, list[pickle.PickleBuffer], list[RandomAccess]]:
    text, buffers, pickler = _pickled(obj)
    if lost := not_found(pickler.named):
        try:
            with by_value(cloudpickle, lost):
                text, buffers, pickler = _pickled(obj)
        except Exception as error:
            names = ", ".join(module.__name__ for module in lost)
            raise ModuleNotFoundError(
                f"another process would not find the module {names} on sys.path, and it cannot be sent: {error}"
            ) from error
    return text, buffers, pickler.asked


def _pickled(obj: Any) -> tuple[bytes, list[pickle.PickleBuffer], _Pickler]:
    file, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
    pickler = _Pickler(file, buffers)
    pickler.dump(obj)
    return file.getvalue(), buffers, pickler


def _keep(buffer: pickle.PickleBuffer, buffers: list[pickle.PickleBuffer]) -> bool:
    """Whether a buffer stays in the pickle."""
    if os.name != "posix" or buffer.raw().nbytes < _SHARE_FROM:
        return True
    buffers.append(buffer)
    return False


def _share(buffers: Sequence[pickle.PickleBuffer]) -> io.FileIO:
    """A file that has no name, so that nothing is left over whatever happens."""
    create = getattr(os, "memfd_create", None)
    if create is not None:
        file = io.FileIO(create("ms_prefstream"), "wb")
    else:
        with tempfile.TemporaryFile(buffering=0) as nameless:
            file = io.FileIO(os.dup(nameless.fileno()), "wb")
    for buffer in buffers:
        raw = buffer.raw()
        for piece in (raw, bytes(-raw.nbytes % _ALIGN)):
            view = memoryview(piece)
            while view:
                view = view[file.write(view) :]
    return file


def _culprit(recipe: Recipe) -> str:
    """Which part of a recipe cannot be pickled, as words."""
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
