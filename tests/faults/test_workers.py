"""Workers that die, programs that die, Ctrl-C: one clear sentence within seconds, and nothing is left behind."""

from __future__ import annotations

import gc
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream import PrefStreamError
from ms_prefstream.load.workers.pool import LoaderPool
from ms_prefstream.load.workers.task_queue import Task
from tests.pools import SECONDS, gone, kill, pairs, plain, recipe, until, wait_ready

ROOT = pathlib.Path(__file__).parents[2]
SHM = pathlib.Path("/dev/shm")


def slow(row: Any) -> Any:
    if row["prompt"].startswith("prompt 9 "):
        time.sleep(60)
    return row


def pool_of(workers: int, format: Callable[[Any], Any] = slow) -> LoaderPool:
    pool = LoaderPool(recipe(pairs(100, bad=False), format=format), workers)
    wait_ready(pool)
    until(lambda: all(worker.ready for worker in pool._processes))  # all are ready, not only the first
    return pool


def files_in_memory() -> set[pathlib.Path]:
    """The named segments of shared memory; folders there are temporary files of tests."""
    return {entry for entry in SHM.iterdir() if not entry.is_dir()} if SHM.is_dir() else set()


def pids(pool: LoaderPool) -> list[int]:
    return [worker.process.pid for worker in pool._processes]


def failure(pool: LoaderPool, tasks: list[Task] | None = None) -> str:
    begin = time.monotonic()
    with pytest.raises(PrefStreamError) as caught:
        pool.load(range(5)) if tasks is None else pool.collect(tasks)
    assert time.monotonic() - begin < SECONDS
    return str(caught.value)


def test_a_busy_worker_is_killed() -> None:
    with pool_of(2) as pool:
        before = files_in_memory()
        tasks = pool.spread(range(8, 20))
        assert until(lambda: any(worker._in_flight for worker in pool._processes))
        busy = next(worker for worker in pool._processes if worker._in_flight)
        kill(busy.process.pid)
        message = failure(pool, tasks)
        assert "worker process " in message
        assert f"of 2 (pid {busy.process.pid}) was killed by SIGKILL while it loaded 12 rows (8, 9, 10, ...)" in message
        assert "memory" in message
        assert failure(pool) == message  # and again for whoever asks later
        children = pids(pool)
    assert gone(children)
    assert until(lambda: files_in_memory() <= before)  # other programs come and go there as well


def test_an_idle_worker_is_killed() -> None:
    with pool_of(2) as pool:
        assert len(pool.load(range(8))) == 8
        victim = pids(pool)[1]
        kill(victim)
        assert until(lambda: pool._processes[1].process.poll() is not None)
        assert f"worker process 2 of 2 (pid {victim}) was killed by SIGKILL while it was idle" in failure(pool)


def leave(row: Any) -> Any:
    if row["prompt"].startswith("prompt 3 "):
        os._exit(0)
    if row["prompt"].startswith("prompt 4 "):
        import threading

        threading.Timer(0.3, os._exit, (0,)).start()  # once the task is done
    return row


def test_a_worker_leaves_with_exit_code_0_while_busy_and_while_idle() -> None:
    with pool_of(1, leave) as pool:
        tasks = pool.spread([3])
        assert "ended with exit code 0 while it loaded 1 rows (3)" in failure(pool, tasks)
    with pool_of(1, leave) as pool:
        assert len(pool.load([4])) == 1
        assert until(lambda: pool._processes[0].process.poll() is not None)
        assert "ended with exit code 0 while it was idle" in failure(pool)


def test_a_worker_is_killed_and_a_process_that_it_started_lives_on(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "pid"

    def with_child(row: Any) -> Any:
        child = os.fork()
        if child == 0:  # holds the worker's end of the pipe open
            time.sleep(60)
            os._exit(0)
        file.write_text(str(child))
        os.kill(os.getpid(), signal.SIGKILL)
        return row

    with pool_of(1, with_child) as pool:
        tasks = pool.spread([0])
        assert "was killed by SIGKILL while it loaded 1 rows (0)" in failure(pool, tasks)
        kill(int(file.read_text()))


class OnlyHere:
    """Can be sent, but not received."""

    def __call__(self, row: Any) -> Any:
        return row

    def __reduce__(self) -> Any:
        return int, ("no number",)


def test_a_worker_that_cannot_start_says_why() -> None:
    expected = (
        r"worker process 1 of 1 \(pid \d+\) could not start: .*invalid literal for int\(\) with base 10: 'no number'"
    )
    with (
        LoaderPool(recipe(pairs(5), format=OnlyHere()), 1) as pool,
        pytest.raises(PrefStreamError, match=expected),
    ):
        wait_ready(pool)


def leave_at_once(row: Any) -> Any:
    sys.exit("enough")


def test_a_format_function_cannot_end_the_program_here_or_in_a_worker() -> None:
    """Which of the two loads a row depends on how soon the worker is ready."""
    with LoaderPool(recipe(pairs(5), format=leave_at_once), 1) as pool:
        assert "failed with SystemExit: enough" in failure(pool)  # no worker is ready
    with pool_of(1, leave_at_once) as pool:
        assert "failed with SystemExit: enough" in failure(pool, pool.spread([0]))


def test_workers_that_the_system_refuses_to_start_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with LoaderPool(recipe(pairs(5)), 2) as pool:
        for _ in range(2):
            assert "workers=2 cannot be started: [Errno 11]" in failure(pool)


def test_workers_end_with_the_pool_and_a_busy_one_at_once() -> None:
    pool = pool_of(1)
    children, workers = pids(pool), pool._processes
    pool.spread(range(8, 20))
    assert until(lambda: bool(workers[0]._in_flight))
    begin = time.monotonic()
    pool.close()
    assert time.monotonic() - begin < SECONDS
    assert gone(children)
    dropped = pool_of(1)
    children = pids(dropped)
    del dropped
    gc.collect()
    assert gone(children)


def test_a_fork_of_this_process_neither_uses_nor_ends_the_workers() -> None:
    with pool_of(1) as pool:
        child = os.fork()
        if child == 0:
            try:
                pool.load([0])
            except PrefStreamError as error:
                pool.close()
                os._exit(17 if "forked" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17
        assert plain(pool.load([0, 1])) == plain(recipe(pairs(100, bad=False)).loader().load([0, 1]))


PROGRAM = """
import re, sys, time
from ms_prefstream.load.workers.pool import LoaderPool
from ms_prefstream.load.workers.task_queue import Task
from tests.pools import pairs, recipe, wait_ready
def slow(row):
    WORK
    return row
pool = LoaderPool(recipe(pairs(100), format=slow), 2)
wait_ready(pool)
print(*[worker.process.pid for worker in pool._processes], flush=True)
pool.load(range(100))
"""


def started(work: str = "time.sleep(0.2)") -> tuple[subprocess.Popen[str], list[int]]:
    return started_as(PROGRAM.replace("WORK", work))


def started_as(code: str) -> tuple[subprocess.Popen[str], list[int]]:
    program = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert program.stdout is not None
    children = [int(pid) for pid in program.stdout.readline().split()]
    assert len(children) == 2
    time.sleep(0.3)
    return program, children


def test_ctrl_c_ends_the_program_with_one_traceback_and_its_workers() -> None:
    program, children = started()
    os.killpg(program.pid, signal.SIGINT)
    _, errors = program.communicate(timeout=SECONDS)
    assert program.returncode in (1, -signal.SIGINT)
    assert errors.count("Traceback") == 1
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert gone(children)


LONG = pytest.mark.long
QUICK = ("loads", "holds the interpreter's lock", "blocks all signals")
WORKS = {
    "loads": "time.sleep(0.2)",
    "holds the interpreter's lock": "re.match('(a|a)*$', 'a' * 60 + 'b')",  # for longer than anybody waits
    "blocks all signals": "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()); time.sleep(60)",
    "waits in a system call": "os.read(os.pipe()[0], 1)",
    "has let go of its pipes": "os.closerange(0, 100); time.sleep(60)",
}


@pytest.mark.parametrize(
    "work",
    [pytest.param(work, id=name, marks=[] if name in QUICK else pytest.mark.long) for name, work in WORKS.items()],
)
def test_workers_end_when_their_program_is_killed(work: str) -> None:
    program, children = started(f"import os, signal; {work}")
    time.sleep(0.7)  # they are at it
    kill(program.pid)
    program.communicate(timeout=SECONDS)
    assert gone(children)


def test_workers_outlive_the_thread_that_made_the_pool_and_end_with_the_program() -> None:
    made = PROGRAM.replace("WORK", "time.sleep(0.01)").replace(
        "pool = LoaderPool(recipe(pairs(100), format=slow), 2)\nwait_ready(pool)\n",
        "import threading\n"
        "found = []\n"
        "def make():\n"
        "    found.append(LoaderPool(recipe(pairs(100), format=slow), 2))\n"
        "    wait_ready(found[0])\n"
        "maker = threading.Thread(target=make)\n"
        "maker.start()\n"
        "maker.join()\n"
        "time.sleep(0.5)\n"
        "pool = found[0]\n",
    )
    assert "maker" in made
    program, children = started_as(made + "print(len(pool.load(range(100))), flush=True)\ntime.sleep(60)\n")
    assert program.stdout is not None
    assert program.stdout.readline() == "100\n"
    kill(program.pid)
    program.communicate(timeout=SECONDS)
    assert gone(children)


def test_workers_get_the_flags_of_the_interpreter(tmp_path: pathlib.Path) -> None:
    code = (
        f"import os, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from ms_prefstream.load.workers.pool import LoaderPool\n"
        "from tests.pools import pairs, recipe, wait_ready\n"
        "def told(row):\n"
        "    print('flags', sys.flags.isolated, sys.flags.dont_write_bytecode, os.getpid(), file=sys.stderr)\n"
        "    return row\n"
        "pool = LoaderPool(recipe(pairs(100, bad=False), format=told), 2)\n"
        "wait_ready(pool)\n"
        "print(os.getpid(), len(pool.load(range(100))))\n"
    )
    done = subprocess.run([sys.executable, "-I", "-B", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.endswith(" 100\n"), done.stderr
    told = {tuple(line.split()[1:]) for line in done.stderr.splitlines() if line.startswith("flags")}
    assert {flags[:2] for flags in told} == {("1", "1")}
    assert {pid for *_, pid in told} - {done.stdout.split()[0]}  # also in a worker


def test_workers_end_with_their_stream() -> None:
    """No collector has to come by: nothing that a stream makes refers back to it."""
    rows = [{"prompt": f"p {n}", "chosen": "good", "rejected": "bad"} for n in range(64)]
    gc.collect()
    gc.disable()
    try:
        stream = mps.stream(rows, task=mps.DPO(64), tokenizer="bytes", batching=mps.Bucket(2), window=2, workers=1)
        batches = stream.batches()
        next(batches)
        pool = stream.data.pool
        assert pool is not None
        found = pids(pool)
        assert found
        del stream, batches, pool
        assert gone(found)
    finally:
        gc.enable()
