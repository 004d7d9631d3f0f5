"""Runs the tests under other versions of Python, MindSpore, MindFormers and transformers, and prints a table.

``python tests/compat/versions.py --folder /some/space [2.7.1+1.7.0 ...]`` makes an environment for each setup, some GB
and minutes each; an environment that exists is used again. The tests run as they are, from this checkout. Where this
machine has no such Python, ``pip download`` shows that the wheels exist, and nothing runs.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]


class Setup(NamedTuple):
    """What an environment holds.

    Attributes:
        mindspore: Its version; None for none.
        mindformers: Its version; None for none.
        python: The version of Python.
        lacks: Packages that MindFormers asks for and that no index has, so that it is installed without dependencies.
        more: Further packages with their versions.
    """

    mindspore: str | None = None
    mindformers: str | None = None
    python: str = "3.11"
    lacks: tuple[str, ...] = ()
    more: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What the command line calls it: ``2.9.0+1.9.0-python3.12``."""
        pair = "+".join(filter(None, (self.mindspore, self.mindformers))) or "core"
        return "-".join([pair, *(f"python{self.python}" for _ in range(self.python != "3.11")), *self.more])


SETUPS = (
    Setup("2.7.1", "1.7.0"),
    Setup("2.9.0", "1.9.0"),
    Setup("2.9.0", "1.9.0", python="3.10"),
    Setup("2.9.0", "1.9.0", python="3.12"),
    Setup("2.10.0", more=("transformers==5.24.0",)),
    Setup("2.10.0", "2.0.0", lacks=("hyper-parallel",)),
    Setup("2.10.0", "2.1.0", lacks=("hyper-parallel", "mindspore 2.11")),
    Setup(more=("transformers==5.24.0", "tokenizers==0.23.1")),
    Setup(more=("tokenizers==0.21.4", "numpy<2")),
)
CORE = [
    "tests/plan", "tests/batch", "tests/encode", "tests/formats", "tests/lengths", "tests/load", "tests/sources",
    "tests/stats", "tests/steps", "tests/inspection", "tests/tasks", "tests/golden",
]  # fmt: skip
MINDSPORE = [
    "tests/mindspore", "tests/stream/test_training.py", "tests/stream/test_compilations.py", "tests/resume",
    "tests/msrun", "tests/mindrecord/test_ragged.py", "tests/cache/test_layouts.py", "tests/cache/test_reference.py",
]  # fmt: skip
MINDFORMERS = ["tests/adapters", "tests/trainer", "tests/recipes"]


def listed(name: str) -> list[str]:
    """Returns a list of pyproject.toml, with the extras of this package that it names."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(rf"^{name} = \[(.*?)\](?:  #.*)?$", text, flags=re.DOTALL | re.MULTILINE)
    assert block is not None, f"pyproject.toml has no list {name}"
    found = []
    for entry in re.findall(r'"([^"]+)"', block[1]):
        extras = re.fullmatch(r"ms-prefstream\[(.*)\]", entry)
        found += [one for extra in extras[1].split(",") for one in listed(extra)] if extras else [entry]
    return found


def dependencies(setup: Setup) -> list[str]:
    """Returns what the package and its tests need in a setup, the setup's own packages included."""
    fixed = {re.split(r"[<>=]", one)[0] for one in setup.more} | {"mindspore", "mindformers", "fsspec"}
    needed = [one for name in ("dependencies", "test", "parquet") for one in listed(name)]
    pair = [f"mindspore=={setup.mindspore}"] if setup.mindspore else []
    if setup.mindformers:
        whole = [f"mindformers=={setup.mindformers}"] if not setup.lacks else []
        pair += whole or required(setup)
    return [*pair, *setup.more, *(one for one in needed if re.split(r"[<>=]", one)[0] not in fixed), "datasets"]


def required(setup: Setup) -> list[str]:
    """Returns what a MindFormers asks for that is installed without its dependencies, without what no index has."""
    folder = ROOT / "build" / "compat"
    wheel = f"mindformers-{setup.mindformers}-py3-none-any.whl"
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", f"mindformers=={setup.mindformers}"]
    subprocess.run([*command, "-d", str(folder)], check=True)
    script = f"import importlib.metadata as m, zipfile, email; z = zipfile.ZipFile({str(folder / wheel)!r}); "
    script += "text = z.read(next(n for n in z.namelist() if n.endswith('METADATA'))).decode(); "
    script += "print('\\n'.join(email.message_from_string(text).get_all('Requires-Dist')))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    absent = ("mindspore", *(one.split()[0] for one in setup.lacks))
    return [one for one in done.stdout.splitlines() if not one.startswith(absent)]


def interpreter(version: str) -> str | None:
    """Returns the path of a Python of that version, if there is one on PATH or of pyenv."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    candidates = [shutil.which(f"python{version}")]
    candidates += map(str, sorted(pathlib.Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python")))
    for candidate in filter(None, candidates):
        if subprocess.run([candidate, "-c", "import venv, ensurepip"], capture_output=True).returncode == 0:
            return candidate
    return None


def environment(folder: pathlib.Path, setup: Setup, python: str) -> pathlib.Path:
    """Returns the Python of an environment of a setup."""
    place = folder / setup.name.replace("=", "").replace("<", "below")
    own, ready = place / "bin" / "python", place / "ready"
    if not ready.exists():
        subprocess.run([python, "-m", "venv", "--clear", place], check=True)
        pip = [own, "-m", "pip", "install", "-q"]
        subprocess.run([*pip, "--upgrade", "pip"], check=True)
        subprocess.run([*pip, *dependencies(setup)], check=True)
        if setup.lacks:
            subprocess.run([*pip, "--no-deps", f"mindformers=={setup.mindformers}"], check=True)
        ready.touch()
    return own


def resolved(folder: pathlib.Path, setup: Setup) -> str:
    """Returns whether pip finds wheels of everything for a Python that this machine lacks."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--only-binary", ":all:"]
    command += ["--python-version", setup.python, "-d", str(folder / "wheels"), *dependencies(setup)]
    done = subprocess.run(command, capture_output=True, text=True)
    found = "pip finds a wheel of every package" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]
    return f"no Python {setup.python} on this machine, so nothing ran; {found}"


def result(python: pathlib.Path, tests: list[str]) -> str:
    """Returns the last line of pytest, and the tests that fail."""
    done = subprocess.run(
        [python, "-m", "pytest", "-m", "not long", "--ignore=tests/compat", *tests],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return "\n    ".join([*(lines[-1:] or [done.stderr[-500:]]), *failed])


def imported(python: pathlib.Path, package: str) -> str | None:
    """Returns why a package cannot be imported, or None if it can."""
    done = subprocess.run([python, "-c", f"import {package}"], cwd=ROOT / "build", capture_output=True, text=True)
    return None if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [setup.name for setup in SETUPS]
    parser.add_argument("setups", nargs="*", default=names, help=f"some of {', '.join(names)}; all if none is given")
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="where the environments go")
    options = parser.parse_args()
    (ROOT / "build").mkdir(exist_ok=True)
    for setup in SETUPS:
        if setup.name not in options.setups:
            continue
        python = interpreter(setup.python)
        if python is None:
            print(f"{setup.name}: {resolved(options.folder, setup)}", flush=True)
            continue
        own = environment(options.folder, setup, python)
        parts = {"core": CORE, **({"MindSpore": MINDSPORE} if setup.mindspore else {})}
        if setup.mindformers:
            why = imported(own, "mindformers")
            if why is None:
                parts["MindFormers"] = MINDFORMERS
            else:
                print(f"{setup.name}: import mindformers ends with {why}", flush=True)
        for part, tests in parts.items():
            print(f"{setup.name}, {part}: {result(own, tests)}", flush=True)


if __name__ == "__main__":
    main()
