"""Whether a Ray cluster answers at an address: Ray itself tries for minutes, without a word."""

from __future__ import annotations

import contextlib
import os
import socket

from ms_prefstream.errors import OptionError

_SECONDS = 5.0
_CLIENT = "ray://"
# Every gRPC server answers an HTTP/2 client's first bytes, here with empty settings, with a frame of its own settings.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = 4


def check_ray_address(address: str) -> None:
    """Connect once to where an address leads, for some seconds at most.

    Args:
        address: ``host:port``, ``ray://host:port``, ``auto`` or ``local``; other forms are left to Ray.

    Raises:
        OptionError: Nothing answers, or something that is no Ray, or the address is none.
    """
    place = _found() if address == "auto" else address
    if place is None or place == "local":
        return
    host, colon, port = place.removeprefix(_CLIENT).rpartition(":")
    if not (colon and host and port.isdigit()):
        if "://" in place:
            return
        raise OptionError(f"ray_address is {address!r}; expected host:port, ray://host:port, 'auto' or 'local'.")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _SECONDS) as connection:
            known = os.environ.get("RAY_USE_TLS", "0") == "1" or _is_grpc(connection)
    except TimeoutError:
        raise _refused(address, place, f"nothing answers there within {_SECONDS:.0f} seconds") from None
    except (OSError, OverflowError) as error:
        raise _refused(address, place, f"nothing answers there ({error})") from error
    if not known:
        raise _refused(address, place, "what answers there is no Ray (is it the port of the dashboard?)")


def _is_grpc(connection: socket.socket) -> bool:
    connection.sendall(_HELLO)
    head = b""
    with contextlib.suppress(ConnectionError):
        while len(head) < 9 and (more := connection.recv(9 - len(head))):
            head += more
    return len(head) == 9 and head[3] == _SETTINGS


def _found() -> str | None:
    """Where ``auto`` leads, by Ray's own search; None if it finds nothing, which it says itself."""
    known = os.environ.get("RAY_ADDRESS")  # Ray heeds it for "auto" only
    if known and known != "auto":
        return known
    with contextlib.suppress(Exception):  # it is not public
        from ray._private.services import canonicalize_bootstrap_address

        return str(canonicalize_bootstrap_address("auto"))
    return None


def _refused(address: str, place: str, why: str) -> OptionError:
    leads = "" if place == address else f", which is {place}"
    return OptionError(
        f"ray_address is {address!r}{leads}, and {why}. Start a cluster with `ray start --head` and name the address "
        "that it prints (host:port), or leave ray_address out for a cluster on this machine."
    )
