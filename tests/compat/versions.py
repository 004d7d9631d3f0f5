"""Runs the tests that touch MindSpore or MindFormers under several versions of both, and prints a table.

``python tests/compat/versions.py --folder /some/space [2.7.1 ...]`` makes an environment for each pair, some GB and
minutes each; an environment that is there is used again. The tests run as they are, from this checkout.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import subprocess
import sys
import venv

ROOT = pathlib.Path(__file__).parents[2]
PAIRS = {"2.7.1": "1.7.0", "2.9.0": "1.9.0", "2.10.0": None}  # MindSpore: the MindFormers released with it
MINDSPORE = [
    "tests/mindspore", "tests/stream/test_training.py", "tests/stream/test_compilations.py", "tests/resume",
    "tests/msrun", "tests/mindrecord/test_ragged.py", "tests/cache/test_layouts.py", "tests/cache/test_reference.py",
]  # fmt: skip
MINDFORMERS = ["tests/adapters", "tests/trainer", "tests/recipes"]


def dependencies() -> list[str]:
    """What the package and its tests need, without MindSpore and MindFormers."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lists = [
        re.search(rf"^{name} = \[(.*?)\]", text, flags=re.DOTALL | re.MULTILINE) for name in ("dependencies", "test")
    ]
    found = [name for block in lists if block for name in re.findall(r'"([^"]+)"', block[1])]
    return [name for name in found if not name.startswith(("mindspore", "mindformers"))]


def environment(folder: pathlib.Path, mindspore: str, mindformers: str | None) -> pathlib.Path:
    """The Python of an environment with these versions."""
    place = folder / f"mindspore-{mindspore}"
    python, ready = place / "bin" / "python", place / "ready"
    if not ready.exists():
        venv.create(place, with_pip=True, clear=True)
        exact = [f"mindspore=={mindspore}", *([f"mindformers=={mindformers}"] if mindformers else [])]
        subprocess.run([python, "-m", "pip", "install", "-q", *exact, *dependencies()], check=True)
        ready.touch()
    return python


def result(python: pathlib.Path, tests: list[str]) -> str:
    """The last line of pytest, and the tests that fail."""
    done = subprocess.run(
        [python, "-m", "pytest", "-m", "not long", *tests],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return "\n    ".join([*(lines[-1:] or [done.stderr[-500:]]), *failed])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("versions", nargs="*", default=list(PAIRS), help="of MindSpore; all if none is given")
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="where the environments go")
    options = parser.parse_args()
    for version in options.versions:
        mindformers = PAIRS[version]
        python = environment(options.folder, version, mindformers)
        print(f"mindspore {version}, Python {sys.version.split()[0]}: {result(python, MINDSPORE)}", flush=True)
        if mindformers:
            print(f"mindspore {version} + mindformers {mindformers}: {result(python, MINDFORMERS)}", flush=True)
        else:
            print(f"mindspore {version}: no MindFormers was released for it; its tests are left out", flush=True)


if __name__ == "__main__":
    main()
