"""The command `init`."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import click
import cloup

from ms_prefstream.cli.options import command, source_argument
from ms_prefstream.cli.terminal import show
from ms_prefstream.cli.values import Count, Preset, Suggested

_TASKS = ("dpo", "reward", "rlhf")  # that train.py has a loss for


@command(
    example="""
ms-prefstream init train.jsonl --task dpo --tokenizer Qwen2.5
ms-prefstream init train.jsonl --task reward --tokenizer Qwen2.5 --mindformers --out reward/
"""
)
@source_argument
@cloup.option("--task", type=click.Choice(_TASKS), required=True, help="What rows become.")
@cloup.option(
    "--tokenizer", type=Suggested("bytes"), required=True, help="Directory, tokenizer.json, .model or 'bytes'."
)
@cloup.option("--format", "format_", type=Preset(), default="auto", show_default=True, help="Preset of the rows.")
@cloup.option("--max-length", type=int, help="Tokens of a side, row or prompt; measured if not given.")
@cloup.option("--batch-size", type=Count(min=1), default=8, show_default=True, help="Rows of a step.")
@cloup.option(
    "--out", type=click.Path(file_okay=False), default=".", help="Folder of the files; this one if not given."
)
@cloup.option("--mindformers", is_flag=True, help="Write train_mindformers.yaml and its script as well (dpo, reward).")
@cloup.option("--overwrite", is_flag=True, help="Replace files that exist.")
def init(source: tuple[str, ...], task: str, out: str, mindformers: bool, overwrite: bool, **options: Any) -> None:
    """Write run.yaml and, where the task trains on rows, train.py for SOURCE, ready to run.

    Without --max-length the first 2,000 rows are measured: 99 % of them fit whole.
    """
    from ms_prefstream.cli.init_files import files_for
    from ms_prefstream.disk import cause_and_remedy, check_path, exists, shown, write_file
    from ms_prefstream.errors import OptionError

    if mindformers and task not in ("dpo", "reward"):
        raise click.UsageError("--mindformers is for --task dpo and reward: MindFormers has no trainer for the others.")
    if "-" in source:
        raise click.UsageError("- is standard input, and the files name SOURCE for every later run. Give a file.")
    folder = pathlib.Path(out)
    check_path(folder / "run.yaml", OptionError, "--out")
    if folder.resolve() != pathlib.Path().resolve():  # names in the files are then relative to another folder
        source = tuple(os.path.abspath(one) if os.path.exists(one) else one for one in source)
        if os.path.exists(options["tokenizer"]):
            options["tokenizer"] = os.path.abspath(options["tokenizer"])
    files = files_for(source, task, mindformers, **options)
    try:
        existing = [name for name in files if exists(folder / name)]
    except OSError as error:
        raise OptionError(f"--out {shown(folder)} cannot be read: {cause_and_remedy(error)}.") from error
    if existing and not overwrite:
        raise click.UsageError(f"{', '.join(existing)} exist in {out}. Give --overwrite to replace them, or --out.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"--out {shown(folder)} cannot be made a folder: {cause_and_remedy(error)}.") from error
    for name, text in files.items():  # a name that is no UTF-8 stands in quotes, where YAML and Python read its escape
        write_file(folder / name, text.encode("utf-8", "backslashreplace"), OptionError, "the file")
        show(f"written: {folder / name}")
    show(f"next:    ms-prefstream doctor --config {folder / 'run.yaml'}")
    if "train.py" in files:
        show(f"         cd {folder} && python train.py" if out != "." else "         python train.py")
    else:
        show("         examples/train_grpo.py shows a loop of rollouts")
    if mindformers:
        show("         python train_mindformers.py")
