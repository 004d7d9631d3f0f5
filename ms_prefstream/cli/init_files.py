"""The files that `init` writes for some rows, a tokenizer and a task: templates with lengths that fit the rows."""

from __future__ import annotations

import json
import math
from typing import Any

import jinja2
import numpy as np

from ms_prefstream.encode.tokenizer import choose_pad_id
from ms_prefstream.errors import NoUsableRowsError, RowError
from ms_prefstream.load.records import formats_of
from ms_prefstream.sources import open_source
from ms_prefstream.steps.data import Encoding
from ms_prefstream.steps.look import first_rows, whole_lengths
from ms_prefstream.tasks import RLHF, TASKS, Task
from ms_prefstream.tasks.base import traits

_MEASURED = 2000  # rows
_FIT = 0.99  # share of these that is not cut
_MULTIPLE = 64
_SHAPES = 8  # widths of batches: MindSpore compiles once for each

_LENGTH = 1024  # before rows are measured


def files_for(
    source: tuple[str, ...],
    task: str,
    mindformers: bool,
    *,
    tokenizer: str,
    format_: str,
    max_length: int | None,
    batch_size: int,
) -> dict[str, str]:
    """Returns the texts of the files by their names.

    Args:
        source: Paths or names of data sets.
        task: Its name on the command line.
        mindformers: Whether the two files for MindFormers are among them.
        tokenizer: A path or a name.
        format_: A preset.
        max_length: Tokens of a side or row; None measures the first rows.
        batch_size: Rows of a step.

    Raises:
        PrefStreamError: The rows or the tokenizer cannot be read, or no row can be used.
    """
    named = source[0] if len(source) == 1 else list(source)
    made: Task = RLHF(_LENGTH // 2, _LENGTH) if task == RLHF.name else TASKS[task](_LENGTH)
    recipe = Encoding(task=made, tokenizer=tokenizer, format=format_).recipe(ready=False)
    assert recipe.tokenizer is not None  # a path or a name
    opened = open_source(named)
    lengths = _lengths(recipe, opened, formats_of(opened, format_, unpairs=traits(made).unpairs))
    length = max_length or _fitting(lengths[traits(made).length_option])
    values = {
        "task": task,
        "type": type(made).__name__,
        "source": named,
        "tokenizer": tokenizer,
        "format": format_,
        "batch_size": batch_size,
        "length": length,
        "max_prompt_length": min(length, _fitting(lengths["max_prompt_length"] or [_MULTIPLE])),
        "multiple_of": _rounded(length / _SHAPES),
        "vocab_size": recipe.tokenizer.vocab_size,
        "pad_token_id": choose_pad_id(None, recipe.tokenizer),
    }
    trains = ["train.py"] * traits(made).trains  # prompts alone are continued by a loop of the user
    names = ["run.yaml", *trains, *["train_mindformers.yaml", "train_mindformers.py"] * mindformers]
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("ms_prefstream.cli"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)  # as Python and YAML read it
    return {name: templates.get_template(f"{name}.jinja").render(values) for name in names}


def _lengths(recipe: Any, source: Any, formats: Any) -> dict[str, list[int]]:
    """Returns the tokens of the first rows, by the option that limits them."""
    found = list(first_rows(source, formats, _MEASURED))
    records = [record for _, _, record in found]
    loaded = recipe.loader().samples(records, lambda at: found[at][0])
    lengths = whole_lengths(recipe, records, loaded)
    if not any(lengths.values()):
        error = next((one.error for one in loaded if isinstance(one.error, RowError)), None)
        raise NoUsableRowsError(f"no row can be used{'' if error is None else f'; the first: {error}'}")
    return lengths


def _fitting(lengths: list[int]) -> int:
    """Returns a length that nearly all of some rows fit into."""
    return _rounded(float(np.quantile(lengths, _FIT, method="higher")))


def _rounded(number: float) -> int:
    return math.ceil(number / _MULTIPLE) * _MULTIPLE
