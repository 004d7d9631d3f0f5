"""Runs hostile cases of a target: draws them from a seed, judges each, and counts what they reached.

    python -m tests.fuzz all                         the long mode, about an hour on one core
    python -m tests.fuzz states --cases 500          a part of one target
    python -m tests.fuzz states --only 4711          one case, with its traceback

A case may end in the right result or in one `PrefStreamError` that names the place. Anything else is a fault: another
exception, a wrong result, a case that takes long or much memory, the death of the process. Cases run in forked
processes, so that a fault ends no more than one of them.

Cases are drawn from valid objects by mutation (`mutations.py`): fields, types, sizes and bytes, with fitting checksums
in most of them. Coverage-guided fuzzing would have to run in an instrumented interpreter of its own, and spends most
cases on syntax that the standard parsers refuse; operators that know the structure get past these at once.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import pathlib
import random
import re
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ms_prefstream.errors import PrefStreamError

SECONDS = 20  # of the processor for one case; nearly all take milliseconds
PATIENCE = 6  # times as long by the clock, on a busy machine
ROOM = 300 << 20  # bytes beyond the input that a case may take
BLOCK = 1000  # cases of a process
_ADDRESSES = 4 << 30  # bytes of address space, so that no case can take the machine's memory
_SHARED = struct.Struct("qqq")
_MUTATIONS = (1, 1, 1, 2, 2, 3, 5)
_LONGEST_ERROR = 6000  # characters


class Target(Protocol):
    """A door through which hostile data come; made in each process with a folder of its own."""

    place: str
    """What the text of an error must hold, as a regular expression."""

    def start(self, draw: random.Random) -> Any:
        """Returns a valid input."""

    def mutate(self, value: Any, draw: random.Random) -> Any:
        """Returns the input with one change; the given one stays as it is."""

    def run(self, value: Any) -> bool:
        """Puts an input through the library, and asserts that what it delivers is right.

        Returns:
            Whether the input got past the parser.
        """

    def is_parsed(self, value: Any) -> bool:
        """Returns whether an input that was refused is beyond the parser: its syntax and checksums are right."""


@dataclass
class Outcome:
    """What some cases came to.

    Attributes:
        cases, past, refused: How many there were, got past the parser, and ended in an error of this library.
        faults: What went wrong: where it was raised -> a text about the first such case.
        seconds: The time of the processor that they took.
    """

    cases: int = 0
    past: int = 0
    refused: int = 0
    faults: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def __str__(self) -> str:
        share = 100 * self.past / max(1, self.cases)
        return (
            f"{self.cases:,} cases, {self.past:,} past the parser ({share:.0f} %), {self.refused:,} refused, "
            f"{len(self.faults)} faults, {self.seconds:.0f} s"
        )


class _SlowError(BaseException):
    """A case takes too long. Not an `Exception`, so that nobody takes it for another one."""


def run_target(name: str, make: Callable[[pathlib.Path], Target], seed: int, cases: range) -> Outcome:
    """Runs the cases of a target with these numbers; prints faults when they are found."""
    outcome, begin, known = Outcome(), cases.start, set[str]()
    with tempfile.TemporaryDirectory(prefix=f"ms_prefstream-{os.getpid()}-fuzz-", dir=_memory()) as folder:
        while begin < cases.stop and len(outcome.faults) < 20 and "target" not in outcome.faults:
            begin = _run_block(name, make, seed, range(begin, min(begin + BLOCK, cases.stop)), folder, outcome)
            new = [text for where, text in outcome.faults.items() if where not in known]
            known |= outcome.faults.keys()
            print("".join(f"\n{text}\n" for text in new), end="", flush=True)
            print(f"{name}: {outcome}", file=sys.stderr, flush=True)
    return outcome


def run_one(name: str, make: Callable[[pathlib.Path], Target], seed: int, number: int) -> None:
    """Runs one case in this process and prints its input; a fault is raised with its traceback."""
    with tempfile.TemporaryDirectory(prefix=f"ms_prefstream-{os.getpid()}-fuzz-", dir=_memory()) as folder:
        target = make(pathlib.Path(folder))
        value = _value(target, name, seed, number, _seeds(name, seed, number))
        print(f"{value!r}")
        is_past, is_refused = _judged(target, value)
        print("past the parser" * is_past or "not parsed", "refused" * is_refused or "accepted", sep=", ")


def _memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _run_block(
    name: str, make: Callable[[pathlib.Path], Target], seed: int, cases: range, folder: str, outcome: Outcome
) -> int:
    """Runs cases in a forked process until one ends it. Returns the number of the first case that is left."""
    shared = mmap.mmap(-1, _SHARED.size)
    shared[:] = _SHARED.pack(cases.start, 0, 0)
    reader, writer = os.pipe()
    place = tempfile.mkdtemp(dir=folder)
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        os.close(reader)
        _work(name, make, seed, cases, pathlib.Path(place), shared, writer)
    os.close(writer)
    said, end, seconds = _watched(pid, reader, shared)
    shutil.rmtree(place, ignore_errors=True)
    number, past, refused = _SHARED.unpack(shared[:])
    outcome.seconds += seconds
    outcome.past += past
    outcome.refused += refused
    outcome.faults = said | outcome.faults
    if end:
        outcome.faults[f"{end} {number}"] = f"case {number}: {end}\n{_again(name, seed, number)}"
        number += 1
    outcome.cases += number - cases.start
    return number


def _watched(pid: int, reader: int, shared: mmap.mmap) -> tuple[dict[str, str], str, float]:
    """Waits for a process. Returns the faults that it wrote, how it ended if it did not finish, and its time."""
    text, before, since, slow = b"", shared[:], time.monotonic(), False
    with contextlib.closing(os.fdopen(reader, "rb", 0)) as pipe:
        while True:
            if select.select([pipe], [], [], 1)[0]:
                if not (read := pipe.read(1 << 16)):
                    break
                text += read
            if shared[:] != before:
                before, since = shared[:], time.monotonic()
            elif time.monotonic() - since > PATIENCE * SECONDS:  # it waits, or not even the alarm ended it
                slow = True
                os.kill(pid, signal.SIGKILL)
    _, code, used = os.wait4(pid, 0)
    status = os.waitstatus_to_exitcode(code)
    end = "it hangs" if slow else f"the process ended with {status}" if status else ""
    return dict(json.loads(line) for line in reversed(text.splitlines())), end, used.ru_utime + used.ru_stime


def _work(
    name: str,
    make: Callable[[pathlib.Path], Target],
    seed: int,
    cases: range,
    folder: pathlib.Path,
    shared: mmap.mmap,
    writer: int,
) -> None:
    """Runs cases and ends the process."""
    status = 70
    try:
        signal.signal(signal.SIGPROF, _late)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(nowhere, number)
        warnings.simplefilter("ignore")
        os.chdir(folder)
        target = make(folder)
        past = refused = 0
        for number in cases:
            shared[:] = _SHARED.pack(number, past, refused)
            seeds = _seeds(name, seed, number)
            try:
                is_past, is_refused = _judged(target, _value(target, name, seed, number, seeds))
                past, refused = past + is_past, refused + is_refused
            except BaseException as fault:
                said = _described(target, name, seed, number, seeds, fault)
                os.write(writer, json.dumps(said).encode() + b"\n")
        shared[:] = _SHARED.pack(cases.stop, past, refused)
        status = 0
    except BaseException:
        os.write(writer, json.dumps(["target", traceback.format_exc()]).encode() + b"\n")
    finally:
        os._exit(status)


def _seeds(name: str, seed: int, number: int) -> list[str]:
    """Returns the seeds of the mutations of a case."""
    draw = random.Random(f"{name} {seed} {number}")
    return [f"{name} {seed} {number} {at}" for at in range(draw.choice(_MUTATIONS))]


def _value(target: Target, name: str, seed: int, number: int, seeds: Sequence[str]) -> Any:
    value = target.start(random.Random(f"{name} {seed} {number} start"))
    for one in seeds:
        value = target.mutate(value, random.Random(one))
    return value


def _judged(target: Target, value: Any) -> tuple[bool, bool]:
    """Returns whether a case got past the parser, and whether it was refused; raises what is a fault."""
    try:
        with bounded():
            return target.run(value), False
    except PrefStreamError as error:
        said = str(error)
        assert len(said) < _LONGEST_ERROR, f"an error of {len(said):,} characters: {said[:200]}"
        assert "\x1b" not in said, "an escape sequence in an error"
        assert re.search(target.place, said), f"no place in the error: {said}"
        return target.is_parsed(value), True


def _described(
    target: Target, name: str, seed: int, number: int, seeds: Sequence[str], fault: BaseException
) -> list[str]:
    """Returns where a fault was raised, and a text about it with the least mutations that lead to it."""
    kept = list(seeds)
    for one in seeds:
        fewer = [other for other in kept if other != one]
        with contextlib.suppress(Exception):
            try:
                _judged(target, _value(target, name, seed, number, fewer))
            except BaseException as same:
                if type(same) is type(fault):
                    kept = fewer
    frames = traceback.extract_tb(fault.__traceback__)
    where = f"{type(fault).__name__} at {frames[-1].filename}:{frames[-1].lineno}"
    trace = "".join(traceback.format_list(frames[-5:]))
    value = repr(_value(target, name, seed, number, kept))
    return [
        where,
        f"case {number}: {type(fault).__name__}: {str(fault)[:1000]}\n{trace}  input: {value[:1500]}\n"
        f"{_again(name, seed, number)}",
    ]


def _again(name: str, seed: int, number: int) -> str:
    return f"  python -m tests.fuzz {name} --seed {seed} --only {number}"


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Fails if the body takes long, or more memory than `ROOM`."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # begins the peak again
    pages = pathlib.Path("/proc/self/statm").read_text().split()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (int(pages[0]) * resource.getpagesize() + _ADDRESSES, limits[1]))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
    found = re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())
    grown = int(found[1]) * 1024 - int(pages[1]) * resource.getpagesize() if found else 0
    assert grown < ROOM, f"it took {grown >> 20} MB"


def _late(*_: Any) -> None:
    raise _SlowError(f"it took more than {SECONDS} s")
