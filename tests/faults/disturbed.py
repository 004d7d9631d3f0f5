"""A program under the shim that disturbs targets at their file operations, and prints what was wrong.

    python -m tests.faults.disturbed FOLDER TRIES MOMENTS TARGET...

TRIES is how many pairs of an operation and a fault are drawn for each target; 0 tries none, and -1 all. MOMENTS is how
often the process is killed at a random moment. The result is a line of JSON for each target: the operations by kind,
the tries, and the problems.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import gc
import json
import os
import pathlib
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import types
import warnings
from collections import Counter
from typing import Any, NamedTuple

from ms_prefstream import PrefStreamError
from ms_prefstream.html import page
from ms_prefstream.sources import store as stores
from tests.faults.shim import COUNT, FAIL, KILL, SHORT, STAY, Shim
from tests.faults.targets import TARGETS, Files, Target, store, stored, tree

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EMFILE)
EVERY_ERROR = ("open", "write", "fsync", "rename", "mmap", "read", "mkdir", "unlink")
"""Operations that fail with each of the errors; others fail with one of them."""
FULL_DISK = ("write", "fsync", "truncate", "mkdir")
SECONDS = 30
MOMENT = 6
"""A mode beside those of the shim: the process is killed after `Fault.error` microseconds."""
_TEMPORARY = re.compile(r"\.[0-9a-f]{12}\.new$")
_REMEDY = re.compile(
    r"\b(give|name|choose|move|make room|run|restart|build|check|delete|take|correct|copy|wait|free|close|raise|pass|"
    r"use|install|start|write|set|repair)\b",
    re.IGNORECASE,
)


class Fault(NamedTuple):
    """A way to disturb the operation of a number."""

    at: int
    mode: int
    error: int

    def __str__(self) -> str:
        if self.mode == MOMENT:
            return f"kill after {self.error} µs"
        how = {FAIL: "fails", STAY: "fails from then on", SHORT: "is cut short", KILL: "is the last"}[self.mode]
        return f"operation {self.at} {how} {errno.errorcode.get(self.error, '')}".rstrip()


class Held(NamedTuple):
    """What a process holds."""

    files: Counter[str]
    threads: frozenset[int | None]
    memory: frozenset[str]

    @classmethod
    def now(cls) -> Held:
        files: Counter[str] = Counter()
        for name in os.listdir("/proc/self/fd"):
            try:
                files[os.readlink(f"/proc/self/fd/{name}")] += 1
            except FileNotFoundError:  # that of the list itself
                continue
        memory = os.listdir("/dev/shm") if os.path.isdir("/dev/shm") else []
        ours = frozenset(name for name in memory if str(os.getpid()) in name)
        return cls(files, frozenset(thread.ident for thread in threading.enumerate()), ours)

    def more(self, before: Held) -> list[str]:
        """Returns what is held in addition."""
        files = [path for path in (self.files - before.files).elements() if not path.startswith("/proc/")]
        threads = [f"thread {ident}" for ident in self.threads - before.threads]
        return [*files, *threads, *self.memory - before.memory]


class Disturbed:
    """A target, and what it does undisturbed."""

    def __init__(self, target: Target, folder: pathlib.Path, shim: Shim) -> None:
        self.target, self.folder, self.shim = target, folder, shim
        self.problems: list[str] = []
        self.tries = self.killed = 0
        target.make(folder)
        self.template = folder.with_name("template")
        shutil.copytree(folder, self.template)
        self.former, self.former_store = tree(folder), dict(store())
        target.work(folder)  # imports, and whatever is made once in a process
        self.restore()
        begin = time.monotonic()
        self.result = target.work(folder)
        self.seconds = time.monotonic() - begin
        gc.collect()
        self.expected, self.expected_store = tree(folder), stored()
        self.restore()
        with shim.armed(COUNT):
            target.work(folder)
        gc.collect()
        self.operations = shim.operations()
        gc.freeze()  # so that a collection takes no time

    def restore(self) -> None:
        """Makes everything as it was before the call."""
        shutil.rmtree(self.folder)
        shutil.copytree(self.template, self.folder)
        memory = store()
        memory.clear()
        memory.update(self.former_store)

    def disturb(self, fault: Fault) -> None:
        """Runs the target with a fault, and again without one."""
        self.restore()
        self.tries += 1
        gc.collect()
        held = Held.now()
        outcome = self._killed(fault) if fault.mode in (KILL, MOMENT) else self._run(fault)
        gc.collect()
        if more := Held.now().more(held):
            self._note(fault, f"is left open: {', '.join(more)}")
        self._check(fault, outcome)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                again = self.target.work(self.folder)
            gc.collect()
        except BaseException as error:
            self._note(fault, f"the same call without a fault fails: {type(error).__name__}: {error}")
            return
        if again != self.result:
            self._note(fault, f"the same call without a fault gives {again!r}; expected {self.result!r}")
        self._compare(fault, "after the same call without a fault", tree(self.folder), self.expected)
        self._compare(fault, "after the same call without a fault, in the store", stored(), self.expected_store)

    def _run(self, fault: Fault) -> Any:
        """Returns the error of a run, None for a result, or "warned"."""
        signal.signal(signal.SIGALRM, _hang)
        signal.alarm(SECONDS)
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                with self.shim.armed(fault.mode, fault.at, fault.error):
                    result = self.target.work(self.folder)
            if told and self.target.may_warn:
                return "warned"
            if result != self.result:
                self._note(fault, f"gives {result!r}; expected {self.result!r}")
            return None
        except BaseException as error:
            error.__traceback__ = None if isinstance(error, PrefStreamError) else error.__traceback__
            self._check_error(fault, error)
            return error if isinstance(error, PrefStreamError) else PrefStreamError(str(error))
        finally:
            signal.alarm(0)

    def _killed(self, fault: Fault) -> str:
        pid = os.fork()
        if not pid:
            with self.shim.armed(KILL, fault.at) if fault.mode == KILL else contextlib.nullcontext():
                self.target.work(self.folder)
            os._exit(0)
        if fault.mode == MOMENT:
            time.sleep(fault.error / 1e6)
            os.kill(pid, signal.SIGKILL)
        self.killed += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        with self.shim.armed(0):
            pass
        return "killed"

    def _check_error(self, fault: Fault, error: BaseException) -> None:
        if not isinstance(error, PrefStreamError):
            where = "".join(traceback.format_exception(error)[-6:])
            self._note(fault, f"raises {type(error).__name__}: {error}\n{where}")
            return
        error.__context__ = error.__cause__ = None
        text = str(error)
        if str(self.folder) not in text and "memory://" not in text:
            self._note(fault, f"raises an error that names no path: {text}")
        if not _REMEDY.search(text.replace(str(self.folder), "")):
            self._note(fault, f"raises an error without a remedy: {text}")

    def _check(self, fault: Fault, outcome: Any) -> None:
        """Checks what is there after a run."""
        now = tree(self.folder)
        done = outcome is None
        for name, data in self.template_inputs():
            if now.get(name) != data:
                self._note(fault, f"{name} was an input and is changed")
        for unit, expected in self._units(self.expected).items():
            found, former = self._units(now).get(unit), self._units(self.former).get(unit)
            allowed = [expected] if done else [former, expected]
            no_way_back = outcome == "killed" or (fault.mode == STAY and self._operation(fault)[0] == "rename")
            if no_way_back and former is not None and found is None:
                continue  # between two renames; what was there is in the staging folder
            if found not in allowed:
                self._note(fault, f"{unit} is neither what it was nor what it must be")
        for name in self.target.grows:
            found, expected = now.get(f"out/{name}", b""), self.expected[f"out/{name}"]
            if not done and not (expected.startswith(found) or found == self.former.get(f"out/{name}")):
                self._note(fault, f"{name} holds other lines")
        if done:
            for name, data in self.expected.items():
                if now.get(name) != data:
                    self._note(fault, f"{name} is missing or has other bytes after a call that succeeded")
        if self.target.name == "publish":
            found = stored()
            if "/made/manifest.json" in found and found != self.expected_store:
                self._note(fault, "the store has a manifest and not the files of the cache")
        if outcome != "killed" and self._operation(fault)[0] != "unlink" and fault.mode != STAY:
            for name in now:
                if _TEMPORARY.search(name):
                    self._note(fault, f"{name} is left")

    def template_inputs(self) -> list[tuple[str, bytes]]:
        return [(name, data) for name, data in self.former.items() if name.startswith("in/")]

    def _units(self, files: Files) -> dict[str, Any]:
        """Returns the files and folders that are whole or not there, with what they hold."""
        found: dict[str, Any] = {}
        for name, data in files.items():
            for pattern in self.target.whole:
                first = "/".join(name.split("/")[: 2 + pattern.count("/")])
                if fnmatch.fnmatch(first, f"out/{pattern}") and not _TEMPORARY.search(first):
                    if first == name:
                        found[first] = data
                    else:
                        found.setdefault(first, {})[name] = data
        return found

    def _compare(self, fault: Fault, when: str, found: Files, expected: Files) -> None:
        for name in sorted(found.keys() | expected.keys()):
            if found.get(name) != expected.get(name):
                has = "is missing" if name not in found else "is left" if name not in expected else "has other bytes"
                kind, path = self._operation(fault)
                if has == "is left" and (kind == "unlink" or (kind == "stat" and path == str(self.folder / name))):
                    continue  # the fault itself: what cannot be looked at is not deleted
                self._note(fault, f"{name} {has} {when}")

    def _note(self, fault: Fault, problem: str) -> None:
        kind, path = self._operation(fault)
        place = path.replace(str(self.folder), "")
        self.problems.append(f"{fault} ({kind} {place}): {problem}")

    def _operation(self, fault: Fault) -> tuple[str, str]:
        return self.operations[fault.at] if 0 <= fault.at < len(self.operations) else ("", "")


def _hang(*_: object) -> None:
    raise TimeoutError(f"no end within {SECONDS} seconds")


def faults_of(operations: list[tuple[str, str]]) -> list[Fault]:
    """Returns every fault for a run with these operations."""
    found = []
    for at, (kind, _) in enumerate(operations):
        errors = ERRORS if kind in EVERY_ERROR else ERRORS[at % len(ERRORS) :][:1]
        found += [Fault(at, FAIL, error) for error in errors]
        if kind not in ("stat", "readdir", "read"):
            found.append(Fault(at, STAY, errno.ENOSPC if kind in FULL_DISK else errno.EIO))
            found.append(Fault(at, KILL, 0))
        if kind == "write":
            found.append(Fault(at, SHORT, errno.ENOSPC))
    return found


def main(folder: str, tries: int, moments: int, *names: str) -> None:
    """Disturbs the targets and prints what was wrong."""
    stores.PAUSES = (0.0,) * len(stores.PAUSES)
    page.secrets = types.SimpleNamespace(token_urlsafe=str)  # type: ignore[assignment] # reports are then equal
    for name in names:
        path = pathlib.Path(folder, name.replace(" ", "-"), "work")
        os.environ["XDG_CACHE_HOME"], os.environ["TMPDIR"] = str(path / "home"), str(path / "tmp")
        tempfile.tempdir = None
        target = Disturbed(TARGETS[name], path, Shim(path))
        faults = faults_of(target.operations)
        draw = random.Random(name)
        if 0 <= tries < len(faults):
            faults = sorted(draw.sample(faults, tries))
        for fault in faults:
            target.disturb(fault)
        target.killed = 0
        while target.killed < moments:
            before = target.killed
            target.disturb(Fault(-1, MOMENT, draw.randrange(int(1e6 * target.seconds) + 1)))
            target.seconds *= 1.0 if target.killed > before else 0.95  # it had ended before
        kinds = Counter(kind for kind, _ in target.operations)
        found = {"target": name, "operations": kinds, "tries": target.tries, "problems": target.problems}
        print(json.dumps(found), flush=True)
        shutil.rmtree(path.parent)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
