"""Mutation testing of one folder of the package: `python -m tests.mutation plan`, or `make mutation FOLDER=plan`.

A seeded sample of mutmut's mutants is run in forked children of one process that has imported the package and collected
the tests. A child exchanges the code of one function, and runs the tests that reach the mutated statement: those that
found mutants of this file before, then the quickest. The first failure kills the mutant, and so does a timeout.
"""

from __future__ import annotations

import argparse
import ast
import collections
import contextlib
import functools
import gc
import hashlib
import importlib
import itertools
import json
import os
import pathlib
import pickle
import resource
import signal
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import coverage
import hypothesis
import libcst
import pytest
from _pytest.runner import runtestprotocol
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.file_mutation import MutationVisitor, deep_replace
from mutmut.mutation.mutators import mutation_operators
from mutmut.mutation.pragma_handling import IgnoredCode

ROOT = pathlib.Path(__file__).parents[1]
SHARED_TESTS = [
    "golden",
    "plan",
    "batch",
    "tasks",
    "steps",
    "report",
    "world",
    "stream",
    "traps",
    "encode",
    "inspection",
    "resume",
]
EXTRA_MEMORY = 4 << 30
TIMEOUTS = (signal.SIGPROF, signal.SIGALRM)
IDLE = 90
"""Seconds after which a test hangs, by the clock. Otherwise seconds are those of the processor: others may be busy."""
Functions = dict[types.CodeType, list[types.FunctionType]]


@dataclass(frozen=True)
class Mutant:
    """One change of one function.

    Attributes:
        file: The changed file, from the root of the checkout.
        line: The line of the change.
        span: First and last line of the statement around it, or of its head.
        function: The changed function.
        change: Text before and after.
        source: The whole file with the change.
        key: Names the mutant, whatever changes elsewhere; the sample has the lowest.
    """

    file: str
    line: int
    span: tuple[int, int]
    function: str
    change: str
    source: str
    key: str


@functools.cache
def _code_of(file: str) -> dict[tuple[str, int], types.CodeType]:
    return _named(compile(_text(file), ROOT / file, "exec"))


@functools.cache
def _text(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


def mutants_of(path: pathlib.Path, seed: int) -> Iterator[tuple[str, Callable[[], Mutant | None]]]:
    """Yields the key of each mutant of a file, and a function that makes it; no mutant if it does not compile."""
    file = str(path.relative_to(ROOT))
    text = _text(file)
    wrapper = MetadataWrapper(libcst.parse_module(text))
    visitor = MutationVisitor(mutation_operators, IgnoredCode(set(), set(), set()))
    module = wrapper.visit(visitor)
    positions = wrapper.resolve(PositionProvider)
    heads = [_head(node) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.stmt)]
    seen: collections.Counter[str] = collections.Counter()
    for mutation in visitor.mutations:
        outer = mutation.contained_by_top_level_function
        if not isinstance(outer, libcst.FunctionDef):
            continue
        before, after = (module.code_for_node(node) for node in (mutation.original_node, mutation.mutated_node))
        name = f"{file} {outer.name.value} {before} -> {after}"
        seen[name] += 1
        key = hashlib.sha256(f"{seed} {name} {seen[name]}".encode()).hexdigest()[:12]

        def make(
            mutation: Any = mutation, outer: Any = outer, change: str = f"{before} -> {after}", key: str = key
        ) -> Any:
            place = positions.get(mutation.original_node) or positions[outer.body]
            line = place.start.line
            around = [head for head in heads if head[0] <= line <= head[1]]
            source = deep_replace(module, mutation.original_node, mutation.mutated_node).code
            try:
                compile(source, file, "exec")
            except SyntaxError:
                return None
            span = min(around, key=lambda head: head[1] - head[0], default=(line, line))
            return Mutant(file, line, span, outer.name.value, change, source, key)

        yield key, make


def _head(node: ast.stmt) -> tuple[int, int]:
    """Returns the lines of a statement; of one with a body, those before the body."""
    body = getattr(node, "body", None)
    return node.lineno, max(node.lineno, body[0].lineno - 1) if body else node.end_lineno or node.lineno


def sample(folder: str, size: int, seed: int) -> list[Mutant]:
    """Returns the mutants of a folder with the lowest keys, in the order of the files."""
    paths = sorted((ROOT / "ms_prefstream" / folder).rglob("*.py"))
    every = sorted((found for path in paths for found in mutants_of(path, seed)), key=lambda found: found[0])
    made = (mutant for _, make in every if (mutant := make()) is not None)
    chosen = list(itertools.islice(made, size))
    print(f"{folder}: {len(chosen)} of {len(every)} mutants", flush=True)
    return sorted(chosen, key=lambda mutant: (mutant.file, mutant.line, mutant.key))


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _named(code: types.CodeType) -> dict[tuple[str, int], types.CodeType]:
    """Returns all code of a module by name, and by number for equal names such as those of comprehensions."""
    seen: collections.Counter[str] = collections.Counter()
    named = {}
    for inner in _codes(code):
        seen[inner.co_qualname] += 1
        named[inner.co_qualname, seen[inner.co_qualname]] = inner
    return named


def apply(mutant: Mutant, functions: Functions) -> None:
    """Exchanges the code and the defaults of functions that exist."""
    path = str(ROOT / mutant.file)
    before = _text(mutant.file)
    new = _named(compile(mutant.source, path, "exec"))
    changed = 0
    for name, code in _code_of(mutant.file).items():
        for function in functions.get(code, []):
            if name in new and new[name] != code:
                function.__code__ = new[name]
                changed += 1
    if not changed:  # a default, which is no part of the code
        old_defs, new_defs = (
            [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.Lambda)]
            for text in (before, mutant.source)
        )
        if len(old_defs) == len(new_defs):
            for was, now in zip(old_defs, new_defs, strict=True):
                if ast.dump(was.args) != ast.dump(now.args):
                    changed += _set_defaults(
                        now, [f for found in functions.values() for f in found if _is(f, path, was)]
                    )
    assert changed, f"no function has the code of {mutant.file}:{mutant.line} {mutant.change}"


def _is(function: types.FunctionType, path: str, node: Any) -> bool:
    return function.__code__.co_filename == path and function.__code__.co_firstlineno == node.lineno


def _set_defaults(node: Any, found: list[types.FunctionType]) -> int:
    for function in found:
        values = [eval(ast.unparse(value), function.__globals__) for value in node.args.defaults]
        function.__defaults__ = tuple(values)
        pairs = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
        keyword = {arg.arg: eval(ast.unparse(value), function.__globals__) for arg, value in pairs if value}
        function.__kwdefaults__ = keyword or None
    return len(found)


class Mutation:
    """The pytest plugin that replaces the run of the collected tests by runs of mutants."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.kills: collections.Counter[tuple[str, str]] = collections.Counter()
        self.survivors: list[str] = []

    def pytest_collection(self) -> None:
        """Spares hypothesis the search for small examples: the first failure is enough."""
        phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
        for name in ("cheap", "costly", "quick"):
            profile = hypothesis.settings.get_profile(name)
            hypothesis.settings.register_profile(name, profile, phases=phases)
        hypothesis.settings.load_profile("quick")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        chosen = []
        for folder in self.options.folders:
            for path in (ROOT / "ms_prefstream" / folder).rglob("*.py"):
                module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                importlib.import_module(module.removesuffix(".__init__"))
            chosen += sample(folder, self.options.size, self.options.seed)
        if self.options.only:
            chosen = [mutant for mutant in chosen if mutant.key in self.options.only.split(",")]
        began = time.monotonic()
        reach, seconds = self._measure(items)
        print(f"{len(seconds)} of {len(items)} tests pass in {time.monotonic() - began:.0f} s", flush=True)
        functions: Functions = collections.defaultdict(list)
        for found in gc.get_objects():
            if isinstance(found, types.FunctionType) and found.__module__ and "ms_prefstream" in found.__module__:
                functions[found.__code__].append(found)
        gc.collect()
        gc.freeze()
        outcomes: collections.Counter[tuple[str, str]] = collections.Counter()
        for number, mutant in enumerate(chosen, 1):
            began = time.monotonic()
            lines = reach.get(mutant.file, {})
            reaching = {test for line in range(mutant.span[0], mutant.span[1] + 1) for test in lines.get(line, ())}
            order = sorted(reaching, key=lambda test: (-self.kills[mutant.file, test], seconds[test]))
            tests, total = [], 0.0
            for test in order:
                total += seconds[test]
                if tests and total > self.options.seconds:
                    break
                tests.append(test)
            outcome, killer = self._run(mutant, [items[test] for test in tests], seconds, functions)
            outcomes[mutant.file, outcome] += 1
            if killer:
                self.kills[mutant.file, killer] += 1
            record = {
                "outcome": outcome, "key": mutant.key, "place": f"{mutant.file}:{mutant.line}", "in": mutant.function,
                "change": mutant.change, "tests": len(tests), "of": len(reaching), "killer": killer,
                "seconds": round(time.monotonic() - began, 1),
            }  # fmt: skip
            if self.options.log:
                with open(self.options.log, "a", encoding="utf-8") as log:
                    log.write(json.dumps(record, ensure_ascii=False) + "\n")
            if outcome == "survived":
                self.survivors.append(f"{mutant.key} {mutant.file}:{mutant.line} {mutant.function}: {mutant.change}")
            print(f"\r{number}/{len(chosen)}", end="", file=sys.stderr, flush=True)
        self._print(outcomes)
        return True

    def _print(self, outcomes: collections.Counter[tuple[str, str]]) -> None:
        print("\n" + "\n".join(self.survivors) + "\n")
        files = sorted({file for file, _ in outcomes})
        rows = [(file, *(outcomes[file, kind] for kind in ("killed", "timeout", "survived"))) for file in files]
        rows.append(("all", *(sum(row[at] for row in rows) for at in (1, 2, 3))))
        print(f"{'file':48} {'mutants':>8} {'killed':>8} {'timeout':>8} {'survived':>8} {'%':>6}")
        for file, killed, late, survived in rows:
            every = killed + late + survived
            print(f"{file:48} {every:8} {killed:8} {late:8} {survived:8} {100 * (killed + late) / every:6.1f}")

    def _measure(self, items: dict[str, pytest.Item]) -> tuple[dict[str, dict[int, list[str]]], dict[str, float]]:
        """Runs all tests in a child; returns the tests that reach each line, and the seconds of those that pass."""
        with tempfile.NamedTemporaryFile() as result:

            def run() -> int:
                inside = [f"{ROOT}/ms_prefstream/{folder}/*" for folder in self.options.folders]
                measured = coverage.Coverage(data_file=None, include=inside, config_file=False)
                seconds = {}
                order = list(items.values())
                measured.start()
                for item, after in zip(order, [*order, None][1:], strict=True):
                    measured.switch_context(item.nodeid)
                    began = time.process_time()
                    reports = runtestprotocol(item, nextitem=after, log=False)
                    if all(report.passed for report in reports):
                        seconds[item.nodeid] = time.process_time() - began
                measured.stop()
                data = measured.get_data()
                reach = {
                    os.path.relpath(file, ROOT): {
                        line: [test for test in tests if test in seconds]
                        for line, tests in data.contexts_by_lineno(file).items()
                    }
                    for file in data.measured_files()
                }
                pathlib.Path(result.name).write_bytes(pickle.dumps((reach, seconds, [*sys.modules])))
                return 0

            _in_child(run)
            reach, seconds, modules = pickle.loads(pathlib.Path(result.name).read_bytes())
        for name in modules:  # once, not in each child
            if not name.startswith("mindspore") and name != "__mp_main__":
                with contextlib.suppress(Exception):
                    importlib.import_module(name)
        return reach, seconds

    def _run(
        self, mutant: Mutant, tests: list[pytest.Item], seconds: dict[str, float], functions: Any
    ) -> tuple[str, str]:
        """Returns how a mutant ends, and the test that failed."""
        with tempfile.NamedTemporaryFile() as result:

            def run() -> int:
                used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_MEMORY,) * 2)
                apply(mutant, functions)
                for test, after in zip(tests, [*tests, None][1:], strict=True):
                    pathlib.Path(result.name).write_text(test.nodeid)
                    signal.setitimer(signal.ITIMER_PROF, 3 * seconds[test.nodeid] + 5)
                    signal.setitimer(signal.ITIMER_REAL, IDLE)
                    if not all(report.passed for report in runtestprotocol(test, nextitem=after, log=False)):
                        return 3
                return 0

            code = _in_child(run)
            killer = pathlib.Path(result.name).read_text()
        if code not in (0, 3) and code > 0:
            return "error", killer
        return ("survived", "") if code == 0 else ("timeout" if -code in TIMEOUTS else "killed", killer)


def _in_child(run: Callable[[], int]) -> int:
    """Returns what a function returns in a forked child, or the number of the signal that ended it, negative."""
    sys.stdout.flush()
    child = os.fork()
    if not child:
        code = 4
        try:
            os.setsid()
            for late in TIMEOUTS:
                signal.signal(late, signal.SIG_DFL)
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            code = run()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # processes that the tests left
    return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", help="folders of ms_prefstream, such as plan")
    parser.add_argument("--tests", nargs="+", help="test files and folders; without any those that suit the folders")
    parser.add_argument("--size", type=int, default=300, help="mutants in the sample")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=10, help="tests for one mutant, in seconds without it")
    parser.add_argument("--only", default="", help="keys of mutants, separated by commas")
    parser.add_argument("--log", default="", help="append a JSON line for each mutant here")
    options = parser.parse_args()
    os.chdir(ROOT)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    folders = dict.fromkeys(f"tests/{name}" for name in [*options.folders, *SHARED_TESTS])
    tests = options.tests or [folder for folder in folders if pathlib.Path(folder).is_dir()]
    command = [*tests, "-m", "not long and not training and not mindspore", "-p", "no:xdist", "-s", "-q"]
    return int(pytest.main(command, plugins=[Mutation(options)]))


if __name__ == "__main__":
    sys.exit(main())
