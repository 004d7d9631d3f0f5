"""Engines: what calls a function for many arguments, in this process, in worker processes, or on a Ray cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from ms_prefstream.errors import OptionError
from ms_prefstream.lengths.index import Measure, Measured, measure_rows, measuring
from ms_prefstream.load.loader import Recipe, SampleLoader
from ms_prefstream.load.workers.pool import LoaderPool
from ms_prefstream.load.workers.ray import RayEngine
from ms_prefstream.sample import Block

_Argument = TypeVar("_Argument")
_Answer = TypeVar("_Answer")

ENGINES = ("local", "ray")


class Engine(Protocol):
    """Calls functions with a loader. The results are the same for every engine, and in the order of the arguments."""

    def load(self, rows: Sequence[int]) -> Block:
        """Returns the samples of these rows, in this order."""

    def measured(self, chunks: Iterable[range], how: Measure = measure_rows) -> Iterator[Measured]:
        """Measures each chunk of rows, in order."""

    def calls(
        self,
        function: Callable[[SampleLoader, _Argument], _Answer],
        arguments: Iterable[_Argument],
        rows_of: Callable[[_Argument], Sequence[int]],
    ) -> Iterator[_Answer]:
        """Yields ``function(loader, argument)`` for each argument, in order.

        A call may take minutes, and loads the rows `rows_of(argument)`. The text of an argument names it in errors.
        """


class Here:
    """The engine of this process."""

    def __init__(self, loader: SampleLoader) -> None:
        self._loader = loader

    def load(self, rows: Sequence[int]) -> Block:
        """See `Engine`."""
        return self._loader.load(rows)

    def measured(self, chunks: Iterable[range], how: Measure = measure_rows) -> Iterator[Measured]:
        """See `Engine`."""
        return measuring(self._loader, how)(chunks)

    def calls(
        self,
        function: Callable[[SampleLoader, _Argument], _Answer],
        arguments: Iterable[_Argument],
        rows_of: Callable[[_Argument], Sequence[int]],
    ) -> Iterator[_Answer]:
        """See `Engine`."""
        return (function(self._loader, argument) for argument in arguments)


def check_engine(name: str, address: str | None) -> None:
    """Checks the options `engine` and `ray_address`.

    Raises:
        OptionError: Names what is allowed.
    """
    if name not in ENGINES:
        raise OptionError(f"engine is {name!r}; expected one of {', '.join(map(repr, ENGINES))}.")
    if address is not None and name != "ray":
        raise OptionError(f"ray_address is {address!r}, but engine is {name!r}. Pass engine='ray', or leave it out.")


@contextlib.contextmanager
def open_engine(
    name: str, address: str | None, recipe: Recipe, workers: int, local: SampleLoader | None = None
) -> Iterator[Engine]:
    """Gives an engine that ends with the `with` block.

    Args:
        name: ``local``: this process without workers, else worker processes. ``ray``: a Ray cluster.
        address: Of a running Ray cluster; None starts one on this machine with `workers` processes.
        recipe: What the loaders are made with.
        workers: How many processes.
        local: A loader of this process that follows the recipe; None makes one where it is needed.

    Raises:
        OptionError: Ray is not installed or there is no cluster at the address; or see `LoaderPool`.
    """
    made: Any
    if name == "ray":
        made = RayEngine(recipe, workers, address)
    elif workers:
        made = LoaderPool(recipe, workers, local)
    else:
        made = contextlib.nullcontext(Here(recipe.loader() if local is None else local))
    with made as engine:
        yield engine
