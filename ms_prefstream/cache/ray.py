"""Engine `ray`: tasks of a Ray cluster write the parts, on one machine or on many that share the file system."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import threading
import uuid
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future
from typing import Any

from ms_prefstream.cache.parts import PartDone, PartTask, write_part
from ms_prefstream.errors import OptionError, PrefStreamError
from ms_prefstream.load.loader import SampleLoader
from ms_prefstream.load.workers.user_modules import constants, set_constants
from ms_prefstream.steps.data import StreamData

_JOIN_SECONDS = 30.0  # Ray itself tries for minutes, and has no option for it
_RETRIES = 5  # of a part whose worker was lost
# For Ray's workers. If a format function imports MindSpore, its generated code needs this implementation of protobuf,
# and Ray, which is imported first there, would choose another.
_ENVIRONMENT = {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python", "TOKENIZERS_PARALLELISM": "false"}
_loaders: dict[bytes, SampleLoader] = {}  # in a Ray worker: the loader of the recipe it works on


def write_on_ray(
    data: StreamData, workers: int, address: str | None, tasks: Iterable[PartTask]
) -> Generator[PartDone, None, None]:
    """Yields the finished parts in order; two tasks a core run or wait at any time.

    Without an address a local cluster starts, with this many workers, and ends with the parts. Of a running cluster
    all workers are used.

    Raises:
        OptionError: Ray is not installed, or there is no cluster at the address.
        PrefStreamError: A part failed, or its workers were lost again and again.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise OptionError(
            'engine is "ray", and the package ray is not installed. Install it: pip install "ms-prefstream[ray]".'
        ) from error
    started = not ray.is_initialized()
    if started:
        _connect(ray, workers, address)
    try:
        recipe = ray.put((data.recipe, constants()))
        write = ray.remote(max_retries=_RETRIES, num_cpus=1)(_write)
        most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        running: deque[tuple[PartTask, Any]] = deque()
        for task in tasks:
            running.append((task, write.remote([recipe], task)))
            if len(running) >= most:
                yield _result(ray, *running.popleft())
        while running:
            yield _result(ray, *running.popleft())
    finally:
        if started:
            ray.shutdown()


def _connect(ray: Any, workers: int, address: str | None) -> None:
    """Starts a local cluster, or joins the one at an address within a deadline.

    Raises:
        OptionError: It cannot.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None or address == "local":
        paths = os.pathsep.join(filter(None, sys.path))  # to import the same modules
        options |= {"num_cpus": max(1, workers), "include_dashboard": False}
        options |= {"runtime_env": {"env_vars": {**_ENVIRONMENT, "PYTHONPATH": paths}}}
        try:
            ray.init(address="local", **options)  # without an address it would join any running cluster
        except (ConnectionError, TimeoutError, ValueError, RuntimeError) as error:
            raise OptionError(f'engine is "ray", and Ray cannot be started on this machine: {error}') from error
        return
    outcome: Future[None] = Future()

    def join() -> None:
        try:
            outcome.set_result(ray.init(address=address, runtime_env={"env_vars": _ENVIRONMENT}, **options))
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=join, daemon=True).start()
    try:
        outcome.result(_JOIN_SECONDS)
    except Exception as error:
        why = str(error) or f"no cluster answers within {_JOIN_SECONDS:.0f} seconds"
        raise OptionError(
            f"ray_address is {address!r}, and Ray cannot join a cluster there: {why}. Start one with `ray start "
            "--head` and name the address that it prints (host:port), or leave ray_address out for a cluster on "
            "this machine. A cluster that asks for a token needs RAY_AUTH_MODE=token in the environment."
        ) from error


def _result(ray: Any, task: PartTask, reference: Any) -> PartDone:
    """Waits for a part."""
    try:
        done: PartDone = ray.get(reference)
        return done
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PrefStreamError):
            raise error.cause from None
        raise PrefStreamError(f"{task} failed in a Ray task: {error}") from error
    except ray.exceptions.RayError as error:
        raise PrefStreamError(
            f"{task}: its Ray worker was lost {_RETRIES + 1} times ({type(error).__name__}). It may have run out "
            "of memory: give the cluster fewer workers a machine, or write smaller parts (rows_per_part)."
        ) from error


def _write(recipes: list[Any], task: PartTask) -> PartDone:
    """Writes a part in a Ray task. A retry uses a new folder; what a lost worker left goes with the part's folder."""
    import ray

    key = recipes[0].binary()
    if key not in _loaders:
        _loaders.clear()
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
