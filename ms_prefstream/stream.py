"""Wires the steps: source -> records -> samples -> plan -> batches -> MindSpore. Read it as a table of contents."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ms_prefstream.batch import BatchingRule
from ms_prefstream.checks import WORD, NoDataset, check_made, checked_call, group_of, whole_number
from ms_prefstream.errors import OptionError
from ms_prefstream.lengths import LengthIndex
from ms_prefstream.mindspore.dataset import to_dataset
from ms_prefstream.mindspore.ranks import known_ranks
from ms_prefstream.plan import Ranks
from ms_prefstream.plan.state import State
from ms_prefstream.sample import Batch
from ms_prefstream.sources.copies import Remote
from ms_prefstream.steps.collate import Steps, select_columns
from ms_prefstream.steps.data import BadRowPolicy, Encoding, StreamData
from ms_prefstream.steps.open import Order, step_opener
from ms_prefstream.steps.planned import RowIds
from ms_prefstream.steps.state import resume_steps, save_state
from ms_prefstream.steps.summary import summary, warning_lines
from ms_prefstream.tasks import Task

_log = logging.getLogger("ms_prefstream")
Path: TypeAlias = str | os.PathLike[str]

if TYPE_CHECKING:
    from mindspore.dataset import GeneratorDataset


@checked_call
def stream(
    source: Any,
    *,
    task: Task,
    tokenizer: Any = ...,
    format: Any = "auto",
    fields: Mapping[str, str] | None = None,
    carry: Sequence[str] | Mapping[str, Any] | None = None,
    batching: BatchingRule,
    shuffle: Any = True,
    seed: int = 0,
    template: str | None = "auto",
    template_variables: Mapping[str, Any] | None = None,
    pad_token_id: int | None = None,
    vocab_size: int | None = None,
    boundary: str = "auto",
    special_tokens_in_content: str = "escape",
    content_lost: str = "report",
    continue_final_message: str = "error",
    train_empty_think: bool = False,
    template_limit_s: float | None = 10.0,
    backend: str = "auto",
    on_bad_row: str = "raise",
    quarantine: Path | None = None,
    num_shards: int | None = None,
    shard_id: int | None = None,
    logical_shards: int | None = None,
    window: int = 64,
    drop_remainder: Literal["mask"] | bool = True,
    longest_first: bool = False,
    order_by: str | None = None,
    order_noise: float = 0.0,
    steps_per_epoch: int | None = None,
    index: Path | None = "auto",
    workers: int = 0,
    storage_options: Mapping[str, Any] | None = None,
    cache_dir: Path | None = None,
    verbose: bool = True,
) -> Stream:
    """Open a stream of ready batches from raw preference rows.

    Args:
        source: Path, glob or list of them (JSON Lines, JSON, .gz, .zst), a list or any object with ``__len__`` and
            ``__getitem__``, an iterable of dicts, a function that returns one, the folder of a cache, or the name of
            a data set in a local cache of Hugging Face or ModelScope (``org/name``, ``org/name:split``). A URL that
            fsspec opens (``s3://bucket/train-*.jsonl``) stands for local copies of its files.
        task: `DPO`, `Reward`, `RLHF`, `KTO`, `ProcessReward` or `Prompts`: what a row becomes.
        tokenizer: A local directory, a tokenizer.json, a SentencePiece .model, a tokenizer object, ``"bytes"``, the
            name of a model in such a cache, or None for rows that are already tokenized, caches among them. One of
            these must be given.
        format: A preset's name, a preset made by `ms_prefstream.formats`, or a function row -> row.
        fields: Standard name -> the row's field, where rows have other names than the format expects:
            ``{"prompt": "question", "chosen": "good.text"}``. A dotted path leads into objects.
        carry: Fields of a row that become further columns of a batch: names, or name -> ``int64``, ``float32``,
            ``text`` or ``[dtype, default]``. A dotted path leads into objects and names the column by its last part.
        batching: `Pad` or `Bucket`: how many samples a step has and how they are padded. `Pack`: several samples share
            a row.
        shuffle: True: a new order of all rows for each epoch. ``"window"``: rows stay near their place in the source.
            False: source order. One-pass sources are shuffled within windows.
        seed: Of the order, 0 to 2**32 - 1.
        template: ``auto`` (the tokenizer's chat template if it has one), ``chat`` (must have one), Jinja text, the
            path of a .jinja file, or None: prompt and response joined as text.
        template_variables: Further variables of a chat template: ``{"enable_thinking": False}``. A row's own
            ``chat_template_kwargs`` go before them. A template that asks for the date gets the day on which the run
            began, unless ``date_string`` states another.
        pad_token_id: What ids are padded with; None takes the tokenizer's pad, else a reserved token, else EOS.
        vocab_size: Rows of the model's embedding, where it has more than the tokenizer has ids; a reward token that no
            vocabulary has gets a free id among them.
        boundary: ``joint`` encodes the text as the model sees it; ``inference`` keeps the prompt's ids as they are at
            generation time. ``auto`` is inference for pairs with no control token between prompt and response, so that
            both sides have one prompt, and joint elsewhere; a state, index or cache goes on with its own.
        special_tokens_in_content: Control strings in content: ``escape`` (plain text), ``error`` or ``allow``.
        content_lost: What happens to a row whose trained turn loses words to the chat template: ``report`` counts it,
            ``drop`` drops it, ``error`` is for malformed rows.
        continue_final_message: For a prompt that ends with an answer: ``error`` refuses the row, ``join`` lets the
            response continue that answer.
        train_empty_think: Whether the empty think block that a template inserts is under the loss.
        template_limit_s: Seconds that a chat template may take for one conversation; None for no limits.
        backend: ``auto``, ``fastokens``, ``tiktoken``, ``tokenizers`` or ``sentencepiece``.
        on_bad_row: What malformed rows do: ``raise`` or ``drop``. Unusable rows are always dropped and counted.
        quarantine: A JSON Lines file for dropped rows.
        num_shards: Ranks that share the data; None asks MindSpore's communication, which must be initialised where
            several processes were started together.
        shard_id: This rank, with `num_shards`.
        logical_shards: Shards that are planned; ranks that divide them may share the run. None: `num_shards`.
        window: Steps whose rows are sorted by length together.
        drop_remainder: Whether rows that do not fill a last step are left out (True) or filled up with repeats
            (False). ``"mask"`` adds the column `row_mask`, (B,): 0 for repeats and stand-ins, so that each row counts
            once.
        longest_first: Whether step 0 holds the longest rows of its window.
        order_by: Epochs in the order of ``margin``, ``length`` or ``field:NAME`` (``-margin``: descending) instead of
            shuffled, and windows not sorted by length. Needs a length index that was built with it.
        order_noise: The share of the rows by which a row may move, to another place in each epoch.
        steps_per_epoch: For one-pass sources: the steps of an epoch, instead of counting the rows once. For `Pack`
            without a length index: the steps into which the rows are packed, required.
        index: ``auto`` uses the length index beside a file if there is one for these settings (`build_index` writes
            it), for a mix those beside all its parts; ``build`` builds it if there is none; a path, for a mix a
            folder, names one that must fit; None uses none.
        workers: Processes that tokenise ahead; 0 does it in the training process. The batches are the same.
        storage_options: What fsspec takes for the stores of URLs: credentials, endpoint. It is saved nowhere.
        cache_dir: Folder of the local copies of remote files; None is ``~/.cache/ms_prefstream/files``.
        verbose: Whether the logger ``ms_prefstream`` gets a summary (INFO, rank 0) and warnings.

    Raises:
        PrefStreamError: Anything a user can cause, as one sentence.
    """
    given = locals()
    check_made("batching", batching, "batch_size", "mps.Bucket(batch_size=8)")
    encoding, policy, order = group_of(Encoding, given), group_of(BadRowPolicy, given), group_of(Order, given)
    batching.layout(task)  # refuses what this rule cannot batch before anything is loaded
    ranks = Ranks.given(*known_ranks(num_shards, shard_id), logical_shards)
    remote = group_of(Remote, given)
    data = StreamData(source, encoding, policy, ranks, order_by, remote, workers=workers, index=index, verbose=verbose)
    return Stream(data, batching, order, ranks, steps_per_epoch)


@checked_call
class Stream(NoDataset):
    """Ready batches of one rank. Made by `ms_prefstream.stream`.

    Attributes:
        report: What was read, dropped and why; filled as rows are read.
        task: What rows become.
        tokenizer: The loaded tokenizer, or None.
        batching: How samples are batched.
        layout: The arrays of a batch.
        pad_token_id: The id that arrays are padded with.
        data: The rows without order and batches, for `write_cache`.
    """

    def __init__(
        self, data: StreamData, batching: BatchingRule, order: Order, ranks: Ranks, steps_per_epoch: int | None = None
    ) -> None:
        self.data, self.batching, self.pad_token_id = data, batching, data.pad_token_id
        self.task, self.tokenizer, self.report = data.task, data.recipe.tokenizer, data.report
        self._opener = step_opener(data, batching, order, ranks, steps_per_epoch)
        self._steps, self.layout = self._opener.open(), self._opener.layout
        self._resumed: int | None = None
        self._begins = 0
        if data.verbose and ranks.rank == 0:
            _log.info("%s", "\n".join(summary(self._opener, self._steps)))

    @property
    def column_names(self) -> list[str]:
        """The arrays of a batch, in order."""
        return list(self.layout.columns)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Every (rows, columns) that the token arrays of a batch can have; a closed set."""
        rows_at = self._steps.plan.options.rows_at
        rows = self.layout.sides * self.layout.repeat
        return [(rows * rows_at(width) // self.world, width) for width in self._opener.widths]

    @property
    def steps_per_epoch(self) -> int:
        """Steps of every epoch, the same on all ranks."""
        return self._steps.steps_per_epoch

    @property
    def rank(self) -> int:
        """This rank, from 0."""
        return self._opener.ranks.rank

    @property
    def world(self) -> int:
        """Ranks that share the data."""
        return self._opener.ranks.world

    @property
    def start_step(self) -> int:
        """The absolute step that training begins with: where the latest dataset begins, or the stream was resumed."""
        return self._begins

    def rows(self, epoch: int, step: int, resolved: bool = False) -> RowIds:
        """Returns the row ids that a step of this rank is planned to hold, (B,) int64; B varies with a token budget.

        Packs hold different numbers of rows: the rows of one packed row follow those of another. Without a length
        index the step's window is tokenised to find them.

        Args:
            epoch: From 0.
            step: Step in the epoch.
            resolved: Name the stand-ins of dropped rows instead of the dropped rows.

        Raises:
            SourceError: The source can only be read in one pass.
        """
        return self._steps.rows(whole_number("epoch", epoch, 0, WORD), step, resolved)

    def batches(self, epoch: int | None = None, start_step: int | None = None) -> Iterator[Batch]:
        """Returns the batches of one epoch as dicts of numpy arrays, without MindSpore.

        Args:
            epoch: From 0. None is the epoch in which a resumed stream continues, and 0 for others.
            start_step: The first step to yield; nothing before its window is read. None is the step at which a
                resumed stream continues in that epoch, and 0 in others.
        """
        at, step = divmod(self._resumed or 0, self.steps_per_epoch)
        epoch = whole_number("epoch", at if epoch is None else epoch, 0)
        if start_step is not None or epoch != at:
            step = whole_number("start_step", start_step or 0, 0, self.steps_per_epoch)
        return self._steps.start(epoch, step)

    def dataset(self, start_epoch: int | None = None, *, columns: Sequence[str] | None = None) -> GeneratorDataset:
        """Returns a MindSpore dataset of ready batches: one row is one training step. Its `stream` is this stream.

        Args:
            start_epoch: The epoch that its iterators begin with, 0 if not given. MindSpore begins every new iterator
                at the first epoch again, so a second ``model.train`` call needs a dataset with the next epoch. A
                resumed stream begins at its own step; any later epoch may be given.
            columns: The columns that it delivers, in this order; None for all (`column_names`).

        Raises:
            OptionError: The epoch lies before the step at which a resumed stream continues, or a column is not one of
                `column_names`.
        """
        steps: Steps = self._steps if columns is None else select_columns(self._steps, columns)
        at, step = divmod(self._resumed or 0, self.steps_per_epoch)
        if start_epoch is not None and whole_number("start_epoch", start_epoch, 0) != at:
            if self._resumed is not None and start_epoch < at:
                raise OptionError(
                    f"start_epoch is {start_epoch}, but the stream was resumed in epoch {at}. Leave start_epoch out, "
                    "or make a fresh stream to train that epoch again."
                )
            at, step = start_epoch, 0
        self._begins, resumed = at * self.steps_per_epoch + step, self._resumed is not None
        return to_dataset(steps, start_epoch=at, init_step=step, resumed=resumed, moved=self._moved, stream=self)

    def _moved(self, step: int) -> None:
        self._begins = step
        self.data.resume_quarantine()

    def build_index(
        self, path: Path | None = None, dedup: str | None = None, exclude: Any = (), *, progress: bool = False
    ) -> LengthIndex:
        """Measure every row in one pass and write the length index, which this stream then uses.

        With it plans are exact and global: rows that would be dropped are left out beforehand, every rank pads to the
        same width at every step, and any number of ranks that divides the global batch may resume the run. Restart an
        interrupted pass and it resumes. With ``workers`` the pass runs in several processes. Of several ranks, one
        builds the index before the others open their streams. For `Pack` the steps then follow from the index, and
        steps_per_epoch no longer counts.

        Args:
            path: Where to write it, for a mix a folder; None puts it beside the source if that is a single file, for a
                mix beside each part.
            dedup: Leaves out duplicates, see `ms_prefstream.build_index`: ``row``, ``pair``, ``prompt`` or None.
            exclude: Other data whose prompts no row may have, see there.
            progress: Whether to show rows a second and the time left, on standard error.

        Raises:
            OptionError: There is no place for it, the source can only be read in one pass, or the stream was resumed:
                the rest of that run belongs to the plan it began with.
            RowError: The first malformed row, if these are errors.
        """
        if self._resumed is not None:
            raise OptionError(
                "the stream was resumed, and an index would give its remaining steps other rows. Build the index "
                "before a run begins, or begin a new one."
            )
        index = self.data.build_index(path, progress, dedup, exclude)
        self._opener = step_opener(self.data, self.batching, self._opener.order, self._opener.ranks)
        self._steps = self._opener.open()
        return index

    def state(self, step: int) -> State:
        """Returns what to save once `step` steps (of all epochs together) are finished: plain values for JSON.

        Args:
            step: Absolute: epoch * steps_per_epoch + steps finished in that epoch.

        Raises:
            OptionError: It is not a whole number from 0 on.
        """
        return save_state(self._opener, self._steps, step)

    def resume(self, state: Mapping[str, Any]) -> Stream:
        """Resume after the last finished step of a saved state, on any number of ranks that divides it.

        Args:
            state: What `state` returned. The global batch and everything that decides about rows must be the same.

        Returns:
            This stream. `dataset()` now starts at epoch step // K with a short first pass; `batches()` likewise.

        Raises:
            StateError: The data or a setting differs; names the old and the new value.
            OptionError: This number of ranks cannot share the logical shards of the state.
        """
        self._opener, self._steps, step = resume_steps(self._opener, self._steps, state)
        self._resumed = self._begins = step
        self.data = self._opener.data
        self.data.resume_quarantine()
        return self

    def __repr__(self) -> str:
        return "\n".join([*summary(self._opener, self._steps), *warning_lines(self.data)])
