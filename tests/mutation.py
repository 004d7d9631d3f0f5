"""Mutation testing of folders of the package: `python -m tests.mutation plan`, or `make mutation FOLDERS=plan`.

A seeded sample of mutmut's mutants is run in forked children of one process, which has imported the package and
collected the tests. A child exchanges the code of one function and runs the tests that reach the changed statement:
first those that failed for other mutants of the file, then the quickest. The first failure kills the mutant, and so
does a timeout. Whether a test also fails without a mutant is checked the first time it fails.
"""

from __future__ import annotations

import argparse
import ast
import bisect
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
import types
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import process_time
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
TESTS_OF = {
    "batch": "batch stream/test_batches.py steps/test_small_streams.py tasks/test_kto.py tasks/test_prompts.py",
    "encode": "encode inspection/test_encode.py sources/test_local_hub.py steps/test_small_streams.py "
    "stream/test_boundary.py tasks/test_records.py traps/test_traps_boundary.py traps/test_traps_truncation.py",
    "plan": "plan world/test_row_mask.py",
    "report": "report stream/test_findings.py test_doctor.py",
    "tasks": "tasks steps/test_small_streams.py",
    "steps": "steps cache/test_reference.py lengths/test_beside.py lengths/test_build_index.py "
    "lengths/test_ranges.py load/test_marks.py report/test_counts.py report/test_ledger.py "
    "resume/test_indexed.py resume/test_indexed_mix.py resume/test_own_state.py resume/test_refused.py "
    "resume/test_template_date.py stream/test_bad_rows.py stream/test_findings.py "
    "stream/test_order_by.py stream/test_user_errors.py stream/test_wrong_calls.py "
    "world/test_row_mask.py",
}
"""Quick tests of a folder where they do not all lie in the folder of its name."""
QUIET = "not long and not training and not mindspore"
TIMEOUTS = (signal.SIGPROF, signal.SIGALRM)
IDLE = 90
"""Seconds by the clock after which a test hangs. All others are of the processor: the machine may be busy."""
EXTRA_MEMORY = 4 << 30

Code = types.CodeType
Functions = dict[Code, list[types.FunctionType]]


@dataclass(frozen=True)
class Mutant:
    """One change of one function.

    Attributes:
        key: Names the mutant, whatever changes elsewhere.
        file: The changed file, from the root of the checkout.
        lines: The lines of the statement around the change, or of its head; of a changed default those of the function.
        function: The changed function.
        change: The text before and after.
        source: The whole file with the change.
    """

    key: str
    file: str
    lines: range
    function: str
    change: str
    source: str

    def __str__(self) -> str:
        return f"{self.key} {self.file}:{self.lines.start} {self.function}: {self.change}"


@functools.cache
def text_of(file: str) -> str:
    """The text of a file of the checkout as it was imported."""
    return (ROOT / file).read_text(encoding="utf-8")


def mutants_of(file: str, seed: int) -> Iterator[tuple[str, Callable[[], Mutant | None]]]:
    """Yields the key of each mutant of a file, and the function that makes it; None where it does not compile."""
    wrapper = MetadataWrapper(libcst.parse_module(text_of(file)))
    visitor = MutationVisitor(mutation_operators, IgnoredCode(set(), set(), set()))
    module, positions = wrapper.visit(visitor), wrapper.resolve(PositionProvider)
    statements = [node for node in ast.walk(ast.parse(text_of(file))) if isinstance(node, ast.stmt)]
    heads = [range(node.lineno, _last_line(node) + 1) for node in statements]
    seen: Counter[str] = Counter()

    def make(key: str, mutation: Any, function: str, change: str) -> Mutant | None:
        source = deep_replace(module, mutation.original_node, mutation.mutated_node).code  # type: ignore[union-attr]
        try:
            compile(source, file, "exec")
        except SyntaxError:
            return None
        line = positions[mutation.original_node].start.line
        return Mutant(key, file, min((head for head in heads if line in head), key=len), function, change, source)

    for mutation in visitor.mutations:
        function = mutation.contained_by_top_level_function
        if isinstance(function, libcst.FunctionDef):
            before, after = (module.code_for_node(node) for node in (mutation.original_node, mutation.mutated_node))
            name = f"{file} {function.name.value} {before} -> {after}"
            seen[name] += 1
            key = hashlib.sha256(f"{seed} {name} {seen[name]}".encode()).hexdigest()[:12]
            yield key, functools.partial(make, key, mutation, function.name.value, f"{before} -> {after}")


def _last_line(node: Any) -> int:
    """Returns the last line of a statement, of one with a body the last one before it; defaults matter everywhere."""
    body = None if isinstance(node, ast.FunctionDef) else getattr(node, "body", None)
    last: int = max(node.lineno, body[0].lineno - 1) if body else node.end_lineno
    return last


def sample(folder: str, size: int, seed: int) -> list[Mutant]:
    """Returns the mutants of a folder with the lowest keys, ascending: whatever a run gets to is a sample as well."""
    paths = sorted((ROOT / "ms_prefstream" / folder).rglob("*.py"))
    found = (one for path in paths for one in mutants_of(str(path.relative_to(ROOT)), seed))
    every = sorted(found, key=lambda one: one[0])
    made = list(itertools.islice((mutant for _, make in every if (mutant := make()) is not None), size))
    print(f"{folder}: {len(made)} of {len(every)} mutants", flush=True)
    return made


def _named(code: Code) -> dict[tuple[str, int], Code]:
    """Returns all code of a module by name, and by number where names are equal, as those of comprehensions are."""
    seen: Counter[str] = Counter()
    named, todo = {}, [code]
    while todo:
        code = todo.pop(0)
        seen[code.co_qualname] += 1
        named[code.co_qualname, seen[code.co_qualname]] = code
        todo += [constant for constant in code.co_consts if isinstance(constant, Code)]
    return named


@functools.cache
def code_of(file: str) -> dict[tuple[str, int], Code]:
    """The code of a file as it was imported, see `_named`."""
    return _named(compile(text_of(file), ROOT / file, "exec"))


def apply(mutant: Mutant, functions: Functions) -> None:
    """Exchanges the code of existing functions, or their defaults."""
    old, new = code_of(mutant.file), _named(compile(mutant.source, ROOT / mutant.file, "exec"))
    changed = [name for name, code in old.items() if new.get(name, code) != code and functions[code]]
    for name in changed:
        for function in functions[old[name]]:
            function.__code__ = new[name]
    if changed:
        return
    defaults = [
        [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
        for text in (text_of(mutant.file), mutant.source)
    ]
    for before, after in zip(*defaults, strict=True):
        if ast.dump(before.args) != ast.dump(after.args):
            code = next(code for code in old.values() if code.co_firstlineno == before.lineno)
            for function in functions[code]:
                _set_defaults(function, after.args)
                return
    raise LookupError(f"no function holds {mutant}")


def _set_defaults(function: types.FunctionType, given: ast.arguments) -> None:
    def value(node: ast.expr) -> Any:
        return eval(ast.unparse(node), function.__globals__)

    function.__defaults__ = tuple(map(value, given.defaults))
    pairs = zip(given.kwonlyargs, given.kw_defaults, strict=True)
    function.__kwdefaults__ = {argument.arg: value(node) for argument, node in pairs if node is not None}


class Mutation:
    """The pytest plugin that runs mutants instead of the collected tests."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.seconds: dict[str, float] = {}
        self.reach: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
        self.functions: Functions = defaultdict(list)
        self.kills: Counter[tuple[str, str]] = Counter()
        self.trusted: set[str] = set()

    def pytest_collection(self) -> None:
        """Spares hypothesis the search for small examples: the first failure is enough."""
        for name in ("cheap", "costly", "quick"):
            profile = hypothesis.settings.get_profile(name)
            phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
            hypothesis.settings.register_profile(name, profile, phases=phases)
        hypothesis.settings.load_profile("quick")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.items = {item.nodeid: item for item in session.items}
        mutants = []
        for folder in self.options.folders:
            for path in (ROOT / "ms_prefstream" / folder).rglob("*.py"):
                parts = path.relative_to(ROOT).with_suffix("").parts
                importlib.import_module(".".join(parts).removesuffix(".__init__"))
            mutants += sample(folder, self.options.size, self.options.seed)
        wanted = self.options.only.split(",") if self.options.only else [mutant.key for mutant in mutants]
        mutants = [mutant for mutant in mutants if mutant.key in wanted]
        self._measure()
        print(f"{len(self.seconds)} of {len(self.items)} tests pass alone", flush=True)
        for found in gc.get_objects():
            if isinstance(found, types.FunctionType) and str(found.__module__).startswith("ms_prefstream"):
                self.functions[found.__code__].append(found)
        gc.freeze()
        outcomes: Counter[tuple[str, str]] = Counter()
        for number, mutant in enumerate(mutants, 1):
            outcome, killer = self._outcome(mutant)
            outcomes[mutant.file, outcome] += 1
            if outcome == "survived":
                print(f"\r{mutant}", flush=True)
            if self.options.log:
                with open(self.options.log, "a", encoding="utf-8") as log:
                    found = {**vars(mutant), "outcome": outcome, "killer": killer, "lines": mutant.lines.start}
                    log.write(json.dumps(found | {"source": ""}, ensure_ascii=False) + "\n")
            print(f"\r{number}/{len(mutants)}", end="", file=sys.stderr, flush=True)
        kinds = ("killed", "timeout", "survived")
        print(f"\n{'file':56}" + "".join(f"{kind:>10}" for kind in kinds) + f"{'%':>8}")
        for file in [*sorted({file for file, _ in outcomes}), ""]:
            of_file = [(kind, count) for (name, kind), count in outcomes.items() if file in ("", name)]
            counts = [sum(count for kind, count in of_file if kind == wanted) for wanted in kinds]
            found = 100 * (counts[0] + counts[1]) / max(1, sum(counts))
            print(f"{file or 'all':56}" + "".join(f"{count:10}" for count in counts) + f"{found:8.1f}")
        return True

    def _outcome(self, mutant: Mutant) -> tuple[str, str]:
        """Returns how a mutant ends, and the test that found it."""
        lines = self.reach[mutant.file]
        while True:
            reaching = {test for line in mutant.lines for test in lines[line] if test in self.seconds}
            order = sorted(reaching, key=lambda test: (-self.kills[mutant.file, test], self.seconds[test]))
            spent = [*itertools.accumulate(self.seconds[test] for test in order)]
            tests = order[: max(1, bisect.bisect(spent, self.options.seconds))]
            outcome, killer = self._run(mutant, tests)
            if killer and killer not in self.trusted:
                if self._run(None, tests[: tests.index(killer) + 1])[0] != "survived":
                    del self.seconds[killer]  # it fails without a mutant as well
                    continue
                self.trusted.add(killer)
            self.kills[mutant.file, killer] += 1
            return outcome, killer

    def _run(self, mutant: Mutant | None, tests: list[str]) -> tuple[str, str]:
        """Runs tests in a child, with a mutant or without; returns how it ends, and the test that failed."""
        with tempfile.NamedTemporaryFile() as current, tempfile.TemporaryDirectory() as caches:

            def run() -> int:
                if mutant is not None and "/backends/" in mutant.file:
                    os.environ["XDG_CACHE_HOME"] = caches  # a verdict that another child stored would hide the mutant
                pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
                limit = pages * resource.getpagesize() + EXTRA_MEMORY
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
                if mutant is not None:
                    apply(mutant, self.functions)
                for test, following in zip(tests, [*tests, None][1:], strict=True):
                    pathlib.Path(current.name).write_text(test)
                    signal.setitimer(signal.ITIMER_PROF, 3 * self.seconds[test] + 5)
                    signal.setitimer(signal.ITIMER_REAL, IDLE)
                    if not self._passes(test, following):
                        return 3
                return 0

            code = _in_child(run)
            last = pathlib.Path(current.name).read_text()
        if code == 0:
            return "survived", ""
        if code > 0 and not last:
            raise RuntimeError(f"cannot run {mutant}")
        return ("timeout" if -code in TIMEOUTS else "killed"), last

    def _passes(self, test: str, following: str | None) -> bool:
        after = None if following is None else self.items[following]
        return all(report.passed for report in runtestprotocol(self.items[test], nextitem=after, log=False))

    def _measure(self) -> None:
        """Runs all tests once, in a child; notes the seconds of those that pass, and which of them reach each line."""
        kept = pathlib.Path(self.options.measured) if self.options.measured else None
        known, modules = pickle.loads(kept.read_bytes()) if kept and kept.exists() else ({}, set())
        todo = [test for test in self.items if test not in known]
        with tempfile.NamedTemporaryFile() as result:

            def run() -> int:
                inside = [f"{ROOT}/ms_prefstream/{folder}/*" for folder in self.options.folders]
                measured = coverage.Coverage(data_file=None, include=inside, config_file=False)
                seconds = {}
                measured.start()
                for test, following in zip(todo, [*todo, None][1:], strict=True):
                    measured.switch_context(test)
                    began = process_time()
                    if self._passes(test, following):
                        seconds[test] = process_time() - began
                measured.stop()
                found: dict[str, tuple[float, dict[str, list[int]]]] = {
                    test: (seconds.get(test, 0.0), {}) for test in todo
                }
                for file in measured.get_data().measured_files():
                    for line, tests in measured.get_data().contexts_by_lineno(file).items():
                        for test in filter(seconds.__contains__, tests):
                            found[test][1].setdefault(os.path.relpath(file, ROOT), []).append(line)
                pathlib.Path(result.name).write_bytes(pickle.dumps((found, {*sys.modules})))
                return 0

            _in_child(run)
            found, imported = pickle.loads(pathlib.Path(result.name).read_bytes())
        known, modules = known | found, modules | imported
        if kept:
            kept.write_bytes(pickle.dumps((known, modules)))
        for test, (seconds, reached) in known.items():
            if seconds and test in self.items:
                self.seconds[test] = seconds
                for file, numbers in reached.items():
                    for line in numbers:
                        self.reach[file][line].append(test)
        for name in sorted(modules):  # now, and not in each child
            if not name.startswith(("mindspore", "__mp_main__")):
                with contextlib.suppress(Exception):
                    importlib.import_module(name)


def _in_child(run: Callable[[], int]) -> int:
    """Returns what a function returns in a forked child; the negative number of the signal that ended it, or 4."""
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
    parser.add_argument(
        "--tests", nargs="+", help="test files and folders; by default those of the folders, see TESTS_OF"
    )
    parser.add_argument("--size", type=int, default=300, help="mutants of each folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=6, help="tests for one mutant, in seconds without it")
    parser.add_argument("--measured", default="", help="a file that keeps what was measured, for the next call")
    parser.add_argument("--only", default="", help="keys of mutants, separated by commas")
    parser.add_argument("--log", default="", help="a file that gets a JSON line for each mutant")
    options = parser.parse_args()
    os.chdir(ROOT)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    related = [f"tests/{name}" for folder in options.folders for name in TESTS_OF.get(folder, folder).split()]
    tests = options.tests or list(dict.fromkeys(related))
    return int(pytest.main([*tests, "-m", QUIET, "-p", "no:xdist", "-s", "-q"], plugins=[Mutation(options)]))


if __name__ == "__main__":
    sys.exit(main())
