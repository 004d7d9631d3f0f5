"""The length index of a source without a stream of it: `build_index`."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ms_prefstream.checks import checked_call, group_of, process_count
from ms_prefstream.lengths import LengthIndex
from ms_prefstream.load.workers.engines import check_engine, open_engine
from ms_prefstream.part_range import part_range_of
from ms_prefstream.plan import Ranks
from ms_prefstream.sources.copies import Remote
from ms_prefstream.steps.data import BadRowPolicy, Encoding, StreamData
from ms_prefstream.steps.summary import data_lines
from ms_prefstream.tasks import Task

_log = logging.getLogger("ms_prefstream")


@checked_call
def build_index(
    source: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    task: Task,
    tokenizer: Any = ...,
    dedup: str | None = None,
    exclude: Any = (),
    order_by: str | None = None,
    part_range: tuple[int, int] | None = None,
    format: Any = "auto",
    fields: Mapping[str, str] | None = None,
    template: str | None = "auto",
    template_variables: Mapping[str, Any] | None = None,
    vocab_size: int | None = None,
    boundary: str = "auto",
    special_tokens_in_content: str = "escape",
    content_lost: str = "report",
    continue_final_message: str = "error",
    train_empty_think: bool = False,
    template_limit_s: float | None = 10.0,
    carry: Sequence[str] | Mapping[str, Any] | None = None,
    backend: str = "auto",
    on_bad_row: str = "raise",
    workers: int = 0,
    engine: str = "local",
    ray_address: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    verbose: bool = True,
) -> LengthIndex:
    """Measures every row of a source in one pass and writes its length index.

    Streams with the same settings use an index that lies beside the file; others name it: ``index="train.mprefidx"``.
    `dedup` and `exclude` are no settings of streams: they take whatever index was built last.
    Restart an interrupted pass and it resumes.

    Args:
        source: What `ms_prefstream.stream` takes; random access is needed.
        path: Where to write it, for a mix a folder; None puts it beside the source if that is a single file, for a mix
            beside each part.
        dedup: Leaves out usable rows that equal an earlier one, counted as ``duplicate``. ``row``: every field of the
            raw row, exactly. ``pair``: prompt and both responses; ``prompt``: the prompt. These two are compared in
            Unicode's NFKC form, without case, with one blank for each run of white space; rows with other labels are
            other pairs. Several pairs that a format makes of one row share their row and prompt, and count as one
            there. In a mix the first of all parts stays.
        exclude: Other data, such as an evaluation set: what `ms_prefstream.stream` takes as a source, or a mix of parts
            with formats of their own. Rows with one of their prompts are left out, counted as ``contaminated``.
            Prompts are compared as `ms_prefstream.split` does, without system messages.
        order_by: What streams will order rows by: ``margin`` or ``field:NAME``; the index holds it. ``length`` needs
            nothing more.
        part_range: Measures only the rows of a range, such as (3, 8) for the third of eight, and writes them to a file
            beside the index, ``train.mprefidx.3-of-8``. The ranges may be measured by hosts that share the folder, at
            the same time. `mps.merge` then makes the index of them. Not with `dedup`, and not of a mix.
        task: `DPO`, `Reward`, `RLHF`, `KTO`, `ProcessReward` or `Prompts`.
        tokenizer: As for `ms_prefstream.stream`, like all that follows up to `workers`.
        format: A preset's name, a preset, or a function row -> row.
        fields: Standard name -> the row's field.
        template: ``auto``, ``chat``, Jinja text, the path of a .jinja file, or None.
        template_variables: Further variables of a chat template.
        vocab_size: Rows of the model's embedding.
        boundary: ``auto``, ``joint`` or ``inference``.
        special_tokens_in_content: ``escape``, ``error`` or ``allow``.
        content_lost: ``report``, ``drop`` or ``error``.
        continue_final_message: ``error`` or ``join``.
        train_empty_think: Whether an empty think block is under the loss.
        template_limit_s: Seconds that a chat template may take for one conversation; None for no limit.
        carry: Fields of the row that become further columns.
        backend: ``auto``, ``fastokens``, ``tiktoken``, ``tokenizers`` or ``sentencepiece``.
        on_bad_row: ``raise`` or ``drop``.
        workers: Processes that measure; 0 does it in this one.
        engine: ``local``: this machine. ``ray``: a Ray cluster whose machines share the file system of the source.
        ray_address: Of a running cluster; None starts one on this machine with `workers` processes.
        storage_options: Credentials and addresses of the stores of URLs, as for `ms_prefstream.stream`.
        cache_dir: Folder of the local copies of remote files, likewise.
        verbose: Whether to show progress on standard error, and to log warnings.

    Raises:
        PrefStreamError: An option cannot be used, there is no place for the index, or the source can only be read from
            the front; with ``on_bad_row="raise"`` also the first malformed row.
    """
    given = locals() | {"pad_token_id": 0}  # nothing is padded
    check_engine(engine, ray_address)
    share = part_range_of(part_range)
    workers = process_count(workers)
    encoding, policy = group_of(Encoding, given), group_of(BadRowPolicy, given)
    ranks = Ranks.given(1, 0, None)
    here = workers if engine == "local" else 0
    remote = group_of(Remote, given)
    data = StreamData(source, encoding, policy, ranks, order_by, remote, workers=here, verbose=verbose)
    if verbose:
        _log.info("%s", "\n".join(data_lines(data)))
    try:
        by = None if engine == "local" else (lambda recipe: open_engine(engine, ray_address, recipe, workers))
        return data.build_index(path, verbose, dedup, exclude, by, share)
    finally:
        if data.pool is not None:
            data.pool.close()
