"""Engine `ray`: tasks of a Ray cluster, on one machine or on many that share the file system."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from ms_prefstream.errors import OptionError, PrefStreamError, printable
from ms_prefstream.lengths.index import Measure, Measured, measure_rows
from ms_prefstream.load.loader import Recipe, SampleLoader
from ms_prefstream.load.workers.pool import load_block
from ms_prefstream.load.workers.process import ENVIRONMENT, portable
from ms_prefstream.load.workers.user_modules import constants, set_constants
from ms_prefstream.packages import needs
from ms_prefstream.sample import Block

_JOIN_SECONDS = 30.0  # Ray itself tries for minutes, and has no option for it
_RETRIES = 5  # of a task whose worker was lost
_LOST = ("WorkerCrashedError", "NodeDiedError", "OutOfMemoryError", "ObjectLostError")
_MOST_SAID = 400  # characters of an error of Ray's; some are whole pages
# If a format function imports MindSpore, its generated code needs this implementation of protobuf, and Ray, which is
# imported first in its workers, would choose another.
_PROTOBUF = {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"}
_loaders: dict[bytes, SampleLoader] = {}  # in a Ray worker: the loader of the recipe it works on
_log = logging.getLogger("ms_prefstream")


class RayEngine(contextlib.AbstractContextManager["RayEngine"]):
    """Calls functions in tasks of a Ray cluster; two a core run or wait at any time. See `engines.Engine`.

    Without an address a local cluster starts, and ends with the engine. Of a running cluster all workers are used. A
    task whose worker is lost runs again; a warning names it.

    Args:
        recipe: What the loaders are made with.
        workers: Processes of a local cluster.
        address: Of a running cluster, or None.

    Raises:
        OptionError: Ray is not installed, there is no cluster at the address, or the recipe cannot be sent.
    """

    def __init__(self, recipe: Recipe, workers: int, address: str | None) -> None:
        for name, value in _PROTOBUF.items():
            os.environ.setdefault(name, value)
        with needs("ray", 'engine="ray"', OptionError):
            import ray
        self._ray: Any = ray
        self._started = not ray.is_initialized()
        if self._started:
            _connect(ray, workers, address)
        try:
            given = {name: os.environ.get(name, value) for name, value in {**ENVIRONMENT, **_PROTOBUF}.items()}
            self._run = ray.remote(max_retries=0, num_cpus=1, runtime_env={"env_vars": given})(_run)
            try:
                self._recipe = ray.put((recipe, constants()))
            except Exception as error:  # of any object of the user's
                raise OptionError(
                    f'engine is "ray", which sends the source, the format and the tokenizer to other processes, and '
                    f"that failed: {_said(error)}. Leave out of them what cannot be sent (locks, open files, "
                    'connections), or use engine="local".'
                ) from error
            with self._sentences("it does not say what its machines are"):
                self._cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
                machines = sum(bool(node.get("Alive")) for node in ray.nodes())
            _log.info("Ray: cores %d, machines %d", self._cores, machines)
        except BaseException:
            self.close()
            raise

    def load(self, rows: Sequence[int]) -> Block:
        """Returns the samples of these rows, in this order."""
        (block,) = self.calls(load_block, [rows], lambda rows: rows)
        return block  # type: ignore[no-any-return]  # of a function that is known

    def measured(self, chunks: Iterable[range], how: Measure = measure_rows) -> Iterator[Measured]:
        """Measures each chunk of rows, in order."""
        return self.calls(how, chunks, lambda chunk: chunk)

    def calls(
        self, function: Callable[..., Any], arguments: Iterable[Any], rows_of: Callable[[Any], Sequence[int]]
    ) -> Iterator[Any]:
        """Yields ``function(loader, argument)`` for each argument, in order; see `engines.Engine`.

        Raises:
            PrefStreamError: A task failed, or its workers were lost again and again.
        """
        running: deque[tuple[Any, Any]] = deque()
        try:
            for argument in arguments:
                running.append((argument, self._begun(function, argument)))
                if len(running) >= 2 * self._cores:
                    yield self._result(function, *running.popleft())
            while running:
                yield self._result(function, *running.popleft())
        finally:
            for _, task in running:
                with contextlib.suppress(Exception):  # Ray may be lost by now
                    self._ray.cancel(task, force=True)

    def close(self) -> None:
        """Ends the cluster if this engine has started it, or leaves the one that it has joined."""
        if self._started:
            self._ray.shutdown()

    def __exit__(self, *details: object) -> None:
        self.close()

    def _begun(self, function: Callable[..., Any], argument: Any) -> Any:
        with self._sentences(f"{_named(argument)} cannot be sent to a worker"):
            return self._run.remote([self._recipe], function, argument)

    def _result(self, function: Callable[..., Any], argument: Any, task: Any) -> Any:
        """Waits for the result of a task, and runs it again if its worker is lost."""
        lost: tuple[type[Exception], ...] = tuple(
            getattr(self._ray.exceptions, name) for name in _LOST if hasattr(self._ray.exceptions, name)
        )
        for attempt in range(1, _RETRIES + 2):
            try:
                with self._sentences(f"{_named(argument)} failed", passed=lost):
                    answer = self._ray.get(task)
                result, error = pickle.loads(answer)
                if error is not None:
                    raise error
                return result
            except lost as error:
                why = type(error).__name__
                if attempt <= _RETRIES:
                    _log.warning(
                        "%s: its Ray worker was lost (%s: %s). It runs again (%d of %d).",
                        *(_named(argument), why, _said(error), attempt, _RETRIES),
                    )
                    task = self._begun(function, argument)
        smaller = "" if isinstance(argument, range) else ", or write smaller parts (rows_per_part)"
        raise PrefStreamError(
            f"{_named(argument)}: its Ray worker was lost {_RETRIES + 1} times ({why}). It may have run out of memory: "
            f"give the cluster fewer workers a machine{smaller}."
        )

    @contextlib.contextmanager
    def _sentences(self, problem: str, passed: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """Turns errors of Ray into sentences, but those that are `passed`."""
        try:
            yield
        except Exception as error:  # Ray raises many kinds, plain Exception among them
            if isinstance(error, (PrefStreamError, *passed)):
                raise
            raise PrefStreamError(
                f'engine is "ray": {problem} ({type(error).__name__}: {_said(error)}). See the log of the cluster, '
                'or use engine="local".'
            ) from error


def _connect(ray: Any, workers: int, address: str | None) -> None:
    """Starts a local cluster, or joins the one at an address within a deadline.

    Raises:
        OptionError: It cannot.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None or address == "local":
        paths = os.pathsep.join(filter(None, sys.path))  # to import the same modules
        options |= {"num_cpus": max(1, workers), "include_dashboard": False}
        options |= {"runtime_env": {"env_vars": {"PYTHONPATH": paths}}}
        try:
            ray.init(address="local", **options)  # without an address it would join any running cluster
        except Exception as error:  # a node that does not come up is a plain Exception
            with contextlib.suppress(Exception):  # what has started of it
                ray.shutdown()
            raise OptionError(
                f'engine is "ray", and Ray cannot be started on this machine: {_said(error)}. See its log below '
                '/tmp/ray/session_latest/logs, or use engine="local".'
            ) from error
        return
    outcome: Future[None] = Future()

    def join() -> None:
        try:
            outcome.set_result(ray.init(address=address, **options))
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=join, daemon=True).start()
    try:
        outcome.result(_JOIN_SECONDS)
    except Exception as error:
        why = _said(error) if str(error) else f"no cluster answers within {_JOIN_SECONDS:.0f} seconds"
        raise OptionError(
            f"ray_address is {address!r}, and Ray cannot join a cluster there: {why}. Start one with `ray start "
            "--head` and name the address that it prints (host:port), or leave ray_address out for a cluster on "
            "this machine. A cluster that asks for a token needs RAY_AUTH_MODE=token in the environment."
        ) from error


def _named(argument: Any) -> str:
    """Returns the name of a task for people."""
    if isinstance(argument, range):
        return f"rows {argument.start:,} to {argument.stop - 1:,}"
    return str(argument)


def _said(error: BaseException) -> str:
    """Returns the text of an error of Ray's, shortened, as part of a sentence."""
    return printable(" ".join(str(error).split()), _MOST_SAID).rstrip(".")


def _run(recipes: list[Any], function: Callable[..., Any], argument: Any) -> bytes:
    """Calls a function in a Ray task; returns a pickle of (result, None) or (None, error), as worker processes do.

    A pickle and not the result: arrays that Ray returns lie in its object store for as long as they are used.
    """
    import ray

    try:
        key = recipes[0].binary()
        if key not in _loaders:
            _loaders.clear()
            recipe, values = ray.get(recipes[0])
            set_constants(values)
            _loaders[key] = recipe.loader()
        return pickle.dumps((function(_loaders[key], argument), None), protocol=5)
    except BaseException as error:
        return pickle.dumps((None, portable(error, 'Use engine="local"')), protocol=5)
