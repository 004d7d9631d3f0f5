"""The cycle collector rests while rows are loaded, and only then."""

from __future__ import annotations

import gc
import threading

import pytest

import ms_prefstream as mps
from ms_prefstream.load import loader
from ms_prefstream.load.loader import collector_paused


@pytest.fixture(autouse=True)
def as_before():
    yield
    gc.enable()
    gc.unfreeze()
    loader._is_frozen = False


def test_it_rests_and_goes_on():
    with collector_paused():
        assert not gc.isenabled()
        with collector_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_it_goes_on_after_an_error():
    with pytest.raises(KeyError), collector_paused():
        raise KeyError
    assert gc.isenabled()


def test_who_has_switched_it_off_finds_it_off():
    gc.disable()
    with collector_paused():
        pass
    assert not gc.isenabled()


def test_what_a_program_has_frozen_stays_frozen_and_is_counted_once(monkeypatch):
    """Counting walks through all of them: 40 ms for a million objects, for each window."""
    counted = []

    def count(own=gc.get_freeze_count):
        counted.append(own())
        return counted[-1]

    monkeypatch.setattr(gc, "get_freeze_count", count)
    with collector_paused():
        pass
    assert counted == [0]
    gc.freeze()
    for _ in range(3):
        with collector_paused():
            pass
    assert len(counted) == 2
    assert min(counted[1], count()) > 1000  # 0 were they handed back; some end by themselves, as nobody refers to them


def test_the_last_of_several_threads_restores_it():
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with collector_paused():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    with collector_paused():
        thread.start()
        assert inside.wait(10)
    assert not gc.isenabled()
    leave.set()
    thread.join()
    assert gc.isenabled()


def test_it_rests_while_a_stream_loads_and_not_between_batches():
    seen = []

    def row(raw):
        seen.append(gc.isenabled())
        return raw

    rows = [{"prompt": "p", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(8)]
    stream = mps.stream(rows, task=mps.DPO(64), tokenizer="bytes", format=row, batching=mps.Pad(2), template=None)
    between = [gc.isenabled() for _ in stream.batches()]
    assert seen
    assert not any(seen)
    assert all(between)
