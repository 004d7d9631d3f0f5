"""``python -m ms_prefstream``: the command `ms-prefstream`."""

from __future__ import annotations

from ms_prefstream.cli.main import main

main()
