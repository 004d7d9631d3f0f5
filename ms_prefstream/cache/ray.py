"""Parts written by the tasks of a Ray cluster, on one machine or many that share the file system of the folder."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import socket
import sys
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from ms_prefstream.cache.parts import PartDone, PartTask, write_part
from ms_prefstream.errors import OptionError, PrefStreamError
from ms_prefstream.load.loader import Recipe, SampleLoader
from ms_prefstream.load.workers.user_modules import Constants, constants, set_constants
from ms_prefstream.steps.data import StreamData

_SECONDS = 5.0
_CLIENT = "ray://"
# Every gRPC server answers an HTTP/2 client's first bytes, here with empty settings, with a frame of its own settings.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = 4


def check_ray_address(address: str) -> None:
    """Connect once to where an address leads, for some seconds at most.

    Args:
        address: ``host:port``, ``ray://host:port``, ``auto`` or ``local``; other forms are left to Ray.

    Raises:
        OptionError: Nothing answers, or something that is no Ray, or the address is none.
    """
    place = _found() if address == "auto" else address
    if place is None or place == "local":
        return
    host, colon, port = place.removeprefix(_CLIENT).rpartition(":")
    if not (colon and host and port.isdigit()):
        if "://" in place:
            return
        raise OptionError(f"ray_address is {address!r}; expected host:port, ray://host:port, 'auto' or 'local'.")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _SECONDS) as connection:
            known = os.environ.get("RAY_USE_TLS", "0") == "1" or _is_grpc(connection)
    except TimeoutError:
        raise _refused(address, place, f"nothing answers there within {_SECONDS:.0f} seconds") from None
    except (OSError, OverflowError) as error:
        raise _refused(address, place, f"nothing answers there ({error})") from error
    if not known:
        raise _refused(address, place, "what answers there is no Ray (is it the port of the dashboard?)")


def _is_grpc(connection: socket.socket) -> bool:
    connection.sendall(_HELLO)
    head = b""
    with contextlib.suppress(ConnectionError):
        while len(head) < 9 and (more := connection.recv(9 - len(head))):
            head += more
    return len(head) == 9 and head[3] == _SETTINGS


def _found() -> str | None:
    """Where ``auto`` leads, by Ray's own search; None if it finds nothing, which it says itself."""
    known = os.environ.get("RAY_ADDRESS")  # Ray heeds it for "auto" only
    if known and known != "auto":
        return known
    with contextlib.suppress(Exception):  # it is not public
        from ray._private.services import canonicalize_bootstrap_address

        return str(canonicalize_bootstrap_address("auto"))
    return None


def _refused(address: str, place: str, why: str) -> OptionError:
    leads = "" if place == address else f", which is {place}"
    return OptionError(
        f"ray_address is {address!r}{leads}, and {why}. Start a cluster with `ray start --head` and name the address "
        "that it prints (host:port), or leave ray_address out for a cluster on this machine."
    )


_RETRIES = 5  # of a part whose worker was lost
# Of Ray's workers. Should a format function import MindSpore: its generated code needs this implementation, and Ray,
# which comes first there, would take another.
_ENVIRONMENT = {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python", "TOKENIZERS_PARALLELISM": "false"}
_loaders: dict[bytes, SampleLoader] = {}  # in a worker of Ray: of the recipe that it works on


class RayEngine:
    """See `ms_prefstream.cache.write`.

    Args:
        data: The source and what its rows become.
        workers: Processes of a local cluster; of a running cluster all are used.
        address: Of a running cluster; None starts a local one that ends with `close`.

    Raises:
        OptionError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, data: StreamData, workers: int, address: str | None) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            import ray
        except ImportError as error:
            raise OptionError(
                'engine is "ray", and the package ray is not installed. Install it: pip install "ms-prefstream[ray]".'
            ) from error
        self._ray: Any = ray
        self._started = not ray.is_initialized()
        if self._started:
            local = address is None or address == "local"
            if address is not None:
                check_ray_address(address)
            options: dict[str, Any] = {"address": "local" if local else address}  # None would join any cluster
            env = dict(_ENVIRONMENT)
            if local:
                options["num_cpus"], options["include_dashboard"] = max(1, workers), False
                env["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # what is importable here is so there
            options["runtime_env"] = {"env_vars": env}
            try:
                ray.init(log_to_driver=False, logging_level="ERROR", **options)
            except (ConnectionError, TimeoutError, ValueError, RuntimeError) as error:
                raise OptionError(_unreachable(None if local else address, error)) from error
        self._recipe = ray.put((data.recipe, constants()))
        self._task = ray.remote(max_retries=_RETRIES, num_cpus=1)(_write)
        self._most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))

    def run(self, tasks: Iterable[PartTask]) -> Iterator[PartDone]:
        """The parts, in order; some a core are under way at any time.

        Raises:
            PrefStreamError: A part failed, or its workers were lost again and again.
        """
        flying: deque[tuple[PartTask, Any]] = deque()
        for task in tasks:
            flying.append((task, self._task.remote([self._recipe], task)))
            if len(flying) >= self._most:
                yield self._get(*flying.popleft())
        while flying:
            yield self._get(*flying.popleft())

    def close(self) -> None:
        """End a cluster that was started here."""
        if self._started:
            self._ray.shutdown()

    def _get(self, task: PartTask, ticket: Any) -> PartDone:
        try:
            done: PartDone = self._ray.get(ticket)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, PrefStreamError):
                raise error.cause from None
            raise PrefStreamError(f"{task} failed in a Ray task: {error}") from error
        except self._ray.exceptions.RayError as error:
            raise PrefStreamError(
                f"{task}: its Ray worker was lost {_RETRIES + 1} times ({type(error).__name__}). It may have run out "
                "of memory: give the cluster fewer workers a machine, or write smaller parts (rows_per_part)."
            ) from error
        return done


def _unreachable(address: str | None, error: Exception) -> str:
    if address is None:
        return f'engine is "ray", and Ray cannot be started on this machine: {error}'
    return (
        f"ray_address is {address!r}, and Ray cannot join the cluster there ({error}). Start one with `ray start "
        "--head` and name the address that it prints; one that asks for a token wants RAY_AUTH_MODE=token in the "
        "environment."
    )


def _write(recipes: list[Any], task: PartTask) -> PartDone:
    """The Ray task. A retry begins in a folder of its own; what a lost worker left goes with the part's folder."""
    import ray

    key = recipes[0].binary()
    if key not in _loaders:
        _loaders.clear()
        recipe: Recipe
        values: Constants
        recipe, values = ray.get(recipes[0])
        set_constants(values)
        _loaders[key] = recipe.loader()
    folder = os.path.join(task.folder, uuid.uuid4().hex)
    os.mkdir(folder)
    done = write_part(_loaders[key], dataclasses.replace(task, folder=folder))
    for name in done.files:
        os.replace(os.path.join(folder, name), os.path.join(task.folder, name))
    shutil.rmtree(folder, ignore_errors=True)
    return done
