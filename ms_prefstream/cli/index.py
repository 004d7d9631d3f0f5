"""The command `index`."""

from __future__ import annotations

from typing import Any

import click
import cloup

from ms_prefstream.cli.options import (
    ENGINE,
    ORDER_BY,
    PART_RANGE,
    command,
    index_options,
    run_group,
    source_argument,
    verbose_option,
)
from ms_prefstream.cli.terminal import show


@command(
    example="""
ms-prefstream index train.jsonl --task dpo --max-length 1024 --tokenizer Qwen2.5
ms-prefstream index --config run.yaml --workers 8
ms-prefstream index --config run.yaml --out train.mprefidx --part-range 3/8
"""
)
@source_argument
@index_options
@cloup.option_group(
    "Left out",
    cloup.option(
        "--dedup",
        type=click.Choice(("row", "pair", "prompt")),
        help="Leave out rows that equal an earlier one: in every field, in prompt and responses, or in the prompt.",
    ),
    cloup.option(
        "--exclude", type=click.Path(), multiple=True, help="Leave out rows with a prompt of this file; repeatable."
    ),
)
@cloup.option_group(
    "Order",
    ORDER_BY,
)
@run_group(
    cloup.option("--out", type=click.Path(), help="Where the index is written; beside SOURCE if that is one file."),
    cloup.option("--workers", type=int, default=0, show_default=True, help="Processes that measure; 0 for none."),
    *ENGINE,
    PART_RANGE,
    verbose_option,
)
def index(source: tuple[str, ...], out: str | None, **options: Any) -> None:
    """Measure every row of SOURCE and write its length index.

    Several hosts share the work with --part-range; `merge` completes it.
    """
    from ms_prefstream.cli.building import given_to, make_encoding, one_or_list, source_of
    from ms_prefstream.indexing import build_index

    given = given_to(build_index, options) | make_encoding(options)
    given["exclude"] = one_or_list(options["exclude"], options) if options["exclude"] else ()
    found = build_index(source_of(source, options), out, **given)
    show(f"{found.usable:,} of {found.rows:,} rows can be used; written to {found.path}")
    show(found)
    if (share := options["part_range"]) is not None:
        whole = found.path.removesuffix(f".{share[0]}-of-{share[1]}")
        show(f"When all {share[1]} ranges are written: ms-prefstream merge {whole}")
