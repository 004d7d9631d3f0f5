"""An address where no Ray cluster is ends within seconds in a sentence; Ray itself would try for minutes."""

from __future__ import annotations

import contextlib
import pathlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

import ms_prefstream as mps
from ms_prefstream import OptionError
from ms_prefstream.cache import ray
from ms_prefstream.cache.ray import check_ray_address
from tests.cache.places import source, stream_of
from tests.cache.test_ray import needs_ray

SETTINGS = bytes([0, 0, 6, 4, 0, 0, 0, 0, 0]) + bytes(6)


@contextlib.contextmanager
def server(answer: bytes | None, host: str = "127.0.0.1") -> Iterator[str]:
    """The address of something that takes one connection and answers this; None for a silence."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listening:

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listening.accept()
                with connection:
                    if answer is None:
                        time.sleep(0.5)
                    else:
                        connection.recv(64)
                        connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"[{host}]:{listening.getsockname()[1]}" if ":" in host else f"{host}:{listening.getsockname()[1]}"
        finally:
            listening.close()
            with contextlib.suppress(OSError):
                socket.create_connection(listening.getsockname()).close()
            thread.join()


def dead() -> str:
    """An address where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("form", ["{}", "ray://{}"])
def test_nothing_answers(form: str) -> None:
    address = form.format(dead())
    with pytest.raises(OptionError, match=r"nothing answers there .*refused.*`ray start --head`") as caught:
        check_ray_address(address)
    assert f"ray_address is {address!r}, " in str(caught.value)


def test_something_else_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "_SECONDS", 0.2)
    for answer in (b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0"):
        with server(answer) as address, pytest.raises(OptionError, match=r"no Ray .*dashboard"):
            check_ray_address(address)
    with server(None) as address, pytest.raises(OptionError, match="nothing answers there within"):
        check_ray_address(address)


def test_a_cluster_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(SETTINGS) as address:
        check_ray_address(address)
    with server(SETTINGS) as address:
        check_ray_address("ray://" + address)
    with server(b"\x15\x03") as address:
        monkeypatch.setenv("RAY_USE_TLS", "1")  # no plain words are spoken there
        check_ray_address(address)


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_an_address_of_the_sixth_version() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("needs IPv6")
    with server(SETTINGS, "::1") as address:
        check_ray_address(address)


@pytest.mark.parametrize("address", ["", "127.0.0.1", "head", "head:", ":6379", "head:port"])
def test_other_forms(address: str) -> None:
    with pytest.raises(OptionError, match="expected host:port"):
        check_ray_address(address)


def test_a_port_that_is_none() -> None:
    with pytest.raises(OptionError, match="nothing answers"):
        check_ray_address("127.0.0.1:123456")


def test_what_is_left_to_ray() -> None:
    for address in ("local", "ray://head", "other://somewhere"):
        check_ray_address(address)


def test_auto_goes_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    address = dead()
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(OptionError, match=f"ray_address is 'auto', which is {address}, and nothing answers"):
        check_ray_address("auto")


@needs_ray
@pytest.mark.mindspore
def test_a_cache_names_the_address(tmp_path: pathlib.Path) -> None:
    address = dead()
    with pytest.raises(OptionError, match=f"ray_address is '{address}', and nothing answers"):
        mps.write_cache(stream_of(source(tmp_path), mps.DPO(128)), tmp_path / "out", engine="ray", ray_address=address)
    assert not (tmp_path / "out").exists()
