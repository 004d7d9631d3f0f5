"""An address without a Ray cluster ends within seconds in a sentence; Ray itself would try for minutes."""

from __future__ import annotations

import pathlib
import socket
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream import OptionError
from ms_prefstream.load.workers import ray
from tests.cache.places import source, stream_of
from tests.load.workers.test_ray import needs_ray

pytestmark = pytest.mark.mindspore


def write(folder: pathlib.Path, address: str) -> str:
    """The sentence that writing with Ray at this address ends in; nothing is left in the folder."""
    path = source(folder)
    with pytest.raises(OptionError) as caught:
        mps.write_cache(stream_of(path, mps.DPO(128)), folder / "out", engine="ray", ray_address=address)
    assert [entry.name for entry in folder.iterdir()] == ["rows.jsonl"]
    return str(caught.value)


def replace_ray(monkeypatch: pytest.MonkeyPatch, init: Callable[..., Any]) -> None:
    """Put a module in the place of Ray whose `init` is this function."""
    module = types.ModuleType("ray")
    module.__dict__.update(is_initialized=lambda: False, init=init)
    monkeypatch.setitem(sys.modules, "ray", module)


def test_no_cluster_answers(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    replace_ray(monkeypatch, lambda **options: over.wait())
    monkeypatch.setattr(ray, "_JOIN_SECONDS", 0.1)
    try:
        said = write(tmp_path, "10.0.0.1:6379")
    finally:
        over.set()
    assert "ray_address is '10.0.0.1:6379', and Ray cannot join a cluster there: no cluster answers within" in said
    assert "`ray start --head`" in said


def test_what_ray_says_is_part_of_the_sentence(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}

    def init(**options: Any) -> None:
        given.update(options)
        raise ConnectionError("Could not find any running Ray instance.")

    replace_ray(monkeypatch, init)
    assert "'auto', and Ray cannot join a cluster there: Could not find any running Ray" in write(tmp_path, "auto")
    assert given["address"] == "auto"
    assert "Ray cannot be started on this machine: Could not find" in write(tmp_path, "local")
    assert given["address"] == "local"


@needs_ray
def test_an_address_where_nothing_listens(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "_JOIN_SECONDS", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
    assert f"ray_address is {address!r}" in write(tmp_path, address)
