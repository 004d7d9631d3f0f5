"""Packages that only some features need: how each is installed, and which of its versions the tests ran with.

`needs` surrounds the import of such a package. `warn_if_untried` is for packages that are loaded already.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
from collections.abc import Iterator
from typing import NamedTuple

from ms_prefstream.errors import PrefStreamError

_log = logging.getLogger("ms_prefstream")


class Package(NamedTuple):
    """How to install a package, and what is known of its versions.

    Attributes:
        install: What pip installs.
        tried: The versions that the tests ran with; the ranges of pyproject.toml end at one. Empty if any will do.
        depth: How many numbers of a version must be those of a tried one: 2 for 2.9.1 after 2.9.0.
    """

    install: str
    tried: tuple[str, ...] = ()
    depth: int = 2


PACKAGES = {
    "mindspore": Package("ms-prefstream[mindspore]", ("2.7.1", "2.9.0", "2.10.0")),
    "mindformers": Package("ms-prefstream[mindformers]", ("1.7.0", "1.9.0", "2.1.0")),  # 2.1: graph mode
    "tokenizers": Package("ms-prefstream", ("0.21.4", "0.22.2", "0.23.1")),
    "transformers": Package("transformers", ("4.57.1", "5.24.0"), depth=1),
    "pyarrow": Package("ms-prefstream[parquet]"),
    "datasets": Package("datasets"),
    "ray": Package("ms-prefstream[ray]"),
}


@contextlib.contextmanager
def needs(package: str, what: str, error: type[PrefStreamError] = PrefStreamError, instead: str = "") -> Iterator[None]:
    """Turns a failed import of `package` in the ``with`` block into an error that says how to install it.

    Args:
        package: A name in `PACKAGES`.
        what: The feature that needs it, as the sentence's subject.
        error: The class of the error.
        instead: What can be done without the package, as the end of the sentence.

    Raises:
        PrefStreamError: It is not installed, or another package of `PACKAGES` that it needs, or it is damaged.
    """
    try:
        yield
    except ImportError as missing:
        name = (missing.name or "").partition(".")[0]
        if name == "ms_prefstream":
            raise
        if not isinstance(missing, ModuleNotFoundError) or name not in PACKAGES:
            raise error(
                f"{what} needs the package {package}, which cannot be imported here: {type(missing).__name__}: "
                f"{' '.join(str(missing).split())}. Repair its installation, or the environment of its libraries"
                f"{instead}."
            ) from missing
        raise error(
            f"{what} needs the package {name}, which is not installed here. Install it: "
            f'pip install "{PACKAGES[package].install}"{instead}.'
        ) from missing
    warn_if_untried(package)


@functools.cache  # one warning in a process
def warn_if_untried(package: str) -> None:
    """Logs a warning if the loaded version of a package is none that the tests ran with."""
    known, version = PACKAGES.get(package, Package("")), getattr(sys.modules.get(package), "__version__", None)
    if not known.tried or not isinstance(version, str):
        return
    if version.split(".")[: known.depth] not in [one.split(".")[: known.depth] for one in known.tried]:
        _log.warning(
            "%s %s is installed, and ms_prefstream was never tried with it. It was tested with %s: install one of "
            "these if something fails.",
            package,
            version,
            ", ".join(known.tried),
        )
