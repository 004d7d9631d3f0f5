"""Importing the library or its MindFormers adapter leaves no trace: no folder, output, logger or random state."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
CODE = """
import logging, os, random, sys
import numpy
random.seed(1), numpy.random.seed(1)

def state():
    loggers = {name: (logger.level, logger.handlers) for name, logger in logging.Logger.manager.loggerDict.items()
               if isinstance(logger, logging.Logger)}
    return (random.getstate(), repr(numpy.random.get_state()), logging.root.level, logging.root.handlers[:],
            logging.root.manager.disable, dict(os.environ)), loggers

before, loggers = state()
import %s
after, more = state()
assert before == after
assert all(more[name] == loggers[name] for name in loggers)
assert not any(handlers or level for name, (level, handlers) in more.items() if name not in loggers), more
print(sorted({"mindspore", "mindformers", "transformers"} & set(sys.modules)))
"""


@pytest.mark.parametrize("name", ["ms_prefstream.public", "ms_prefstream.adapters.mindformers"])
def test_an_import_leaves_no_trace(name: str, tmp_path: pathlib.Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("LOG_MF_PATH", None)
    done = subprocess.run(
        [sys.executable, "-c", CODE % name], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.stderr, done.returncode) == ("[]\n", "", 0)
    assert list(tmp_path.iterdir()) == []
