"""What a package that is not installed is needed for, in a sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ms_prefstream.errors import PrefStreamError

_INSTALL = {
    "mindspore": "pip install mindspore==2.9.0",
    "mindformers": "pip install mindformers==1.9.0, which goes with mindspore 2.9.0; MindSpore 2.10 has none",
}


@contextlib.contextmanager
def needs(package: str, what: str) -> Iterator[None]:
    """Import `package` inside of it.

    Args:
        package: ``mindspore`` or ``mindformers``.
        what: What it is needed for, as the sentence's subject.

    Raises:
        PrefStreamError: It is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise PrefStreamError(
            f"{what} needs the package {package}, which is not installed here. Install it: {_INSTALL[package]}."
        ) from error
