"""What writes the parts of a cache: this process, worker processes, or a Ray cluster. The bytes are the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from ms_prefstream.cache.part import PartDone, PartTask, write_part
from ms_prefstream.cache.ray_engine import RayEngine
from ms_prefstream.errors import OptionError
from ms_prefstream.runtime.material import Material
from ms_prefstream.runtime.pool import LoaderPool

ENGINES = ("local", "ray")


class Engine(Protocol):
    """Writes parts."""

    def run(self, tasks: Iterable[PartTask]) -> Iterator[PartDone]:
        """The parts, in order."""

    def close(self) -> None:
        """End the processes."""


class LocalEngine:
    """Parts written one after the other in this process, or by worker processes.

    Args:
        material: The source and what its rows become.
        workers: Processes; 0 for none.
    """

    def __init__(self, material: Material, workers: int) -> None:
        self._loader = material.loader
        self._pool = LoaderPool(material.recipe, workers, material.loader) if workers != 0 else None

    def run(self, tasks: Iterable[PartTask]) -> Iterator[PartDone]:
        """See `Engine`."""
        if self._pool is None:
            return (write_part(self._loader, task) for task in tasks)
        return self._pool.calls(write_part, tasks)

    def close(self) -> None:
        """See `Engine`."""
        if self._pool is not None:
            self._pool.close()


def check_engine(name: str, address: str | None) -> None:
    """Refuse an unknown engine, or an address without its engine.

    Raises:
        OptionError: Names what is allowed.
    """
    if name not in ENGINES:
        raise OptionError(f"engine is {name!r}; expected one of {', '.join(map(repr, ENGINES))}.")
    if address is not None and name != "ray":
        raise OptionError(f"ray_address is {address!r}, but engine is {name!r}. Pass engine='ray', or leave it out.")


def open_engine(name: str, address: str | None, material: Material, workers: int) -> Engine:
    """The engine with that name."""
    return RayEngine(material, workers, address) if name == "ray" else LocalEngine(material, workers)
