"""Layouts of a cache: the columns of its files, and the values that samples have there.

    ragged             nothing padded; see `ms_prefstream.mindrecord.ragged`
    mindrlhf, DPO      ten columns of its DPODataset (eight without reference log-probabilities), int32[L]
    mindrlhf, RLHF     prompt_ids int64[max_prompt_length], pretrain_ids and loss_mask int64[L]
    mindrlhf-grpo      RLHF: the same three columns for its GRPO trainer, with the answer alone in pretrain_ids
    mindformers        the seven columns of its RewardModelDataset, int32[L], end_ind int64
    megatron           nothing padded; files of another format, see `ms_prefstream.mindrecord.megatron`

All but `ragged` are for existing trainers. Those of MindRecord files pad every row to one length, with the values of
the stream's own batches; see `ms_prefstream.batch`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.batch import Layout, make_layout
from ms_prefstream.checks import whole_number
from ms_prefstream.errors import OptionError
from ms_prefstream.mindrecord.encoding import PaddedBlock
from ms_prefstream.mindrecord.files import part_name
from ms_prefstream.mindrecord.megatron import COLUMNS, MEGATRON, pair_values
from ms_prefstream.mindrecord.megatron import part_files as token_files
from ms_prefstream.mindrecord.ragged import further_column, further_values, ragged_columns, ragged_values
from ms_prefstream.mindrecord.schema import Column
from ms_prefstream.mindrecord.sidecar import SIDECAR
from ms_prefstream.sample import Block, Sample
from ms_prefstream.tasks.base import Task, columns_of, traits

LAYOUTS = ("ragged", "mindrlhf", "mindrlhf-grpo", "mindformers", MEGATRON)
_GRPO = "mindrlhf-grpo"
ROWS_PER_PART = 8192
_REF = "_ref_logps"
_UNIT = 16
_NAME = r"\w+"


@dataclass(frozen=True, kw_only=True)
class Job:
    """Options of a cache. The same job gives the same files for any number of workers and interruptions.

    Attributes:
        layout: One of `LAYOUTS`.
        task: The task that makes samples.
        width: L, the columns of the arrays of the fixed layouts.
        pad_id: The id that these are padded with.
        rows_per_part: Rows of the source for each file.
        reference: Whether samples have reference log-probabilities.
        carried: The columns that rows carry: name -> dtype.

    Raises:
        OptionError: A value is not allowed, or readers of the layout cannot read the samples of the task.
    """

    layout: str
    task: Task
    width: int
    pad_id: int
    rows_per_part: int = ROWS_PER_PART
    reference: bool = False
    carried: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        layout, task = self.layout, self.task
        if layout not in LAYOUTS:
            raise OptionError(f"layout is {layout!r}; expected one of {', '.join(map(repr, LAYOUTS))}.")
        object.__setattr__(self, "rows_per_part", whole_number("rows_per_part", self.rows_per_part, 1))
        if self.width < task.length:
            raise OptionError(
                f"Pad: length is {self.width}, but rows may have {task.length} tokens. Give at least that many."
            )
        fits = {
            "mindrlhf": task.name in ("dpo", "rlhf"),
            _GRPO: task.name == "rlhf",
            "mindformers": task.layout == "mindformers",
            MEGATRON: task.name == "dpo" or task.layout == "mindformers",
            "ragged": True,
        }
        if not fits[layout]:
            able = ", ".join(repr(name) for name, good in fits.items() if good)
            kind = f"{task.name} samples" + (f" with a {task.layout}" if task.layout == "reward_token" else "")
            raise OptionError(f"layout is {layout!r}, whose reader takes no {kind}; expected {able}.")
        if layout != "ragged" and task.margin:
            raise OptionError(f"layout {layout!r} has no place for a margin. Leave margin out, or use layout='ragged'.")
        if layout == MEGATRON and task.shifted:
            raise OptionError(
                f"layout {layout!r} takes labels that are not shifted: its trainers shift them. Leave labels='shifted' "
                "(--labels shifted) out."
            )
        if layout == MEGATRON and self.carried:
            raise OptionError(
                f"layout {layout!r} has no place for fields that are carried: {', '.join(self.carried)}. Leave carry "
                "out, or use layout='ragged'."
            )
        for name in self.carried:
            if name in self._own_columns or not re.fullmatch(_NAME, name):
                why = "files have already" if name in self._own_columns else "files cannot have"
                raise OptionError(
                    f"carry makes a column {name!r}, a name that MindRecord {why}; expected letters, digits and _. "
                    "Leave it out, or rename the field in the data."
                )

    @property
    def columns(self) -> dict[str, Column]:
        """The columns of every file, in the order of its readers; those that rows carry are last."""
        return self._own_columns | {name: further_column(dtype) for name, dtype in self.carried.items()}

    @property
    def _own_columns(self) -> dict[str, Column]:
        task, width = self.task, self.width
        if self.layout == "ragged":
            scores, further = traits(task).scores_spans, columns_of(task)
            return ragged_columns(task.pairs, task.length, task.prompt_columns, further, scores)
        if self.layout == MEGATRON:
            return {name: Column(dtype="int32", most=task.length) for name in COLUMNS}
        ids = Column(dtype="int32", most=width, shape=(width,))
        if task.name == "dpo":
            number = Column(dtype="float32", most=1, shape=(1,))
            return {name: number if name.endswith(_REF) else ids for name in self._batch_layout.columns}
        if task.name == "reward":
            sides = [f"{side}_{kind}" for side in ("chosen", "rejected") for kind in ("input_ids", "attention_mask")]
            columns = {name: ids for name in (*sides, "position_id", "loss_mask")}
            return columns | {"end_ind": Column(dtype="int64", most=1, shape=())}
        prompt, long = task.prompt_columns or width, Column(dtype="int64", most=width, shape=(width,))
        return {
            "prompt_ids": Column(dtype="int64", most=prompt, shape=(prompt,)),
            "pretrain_ids": long,
            "loss_mask": long,
        }

    def values(self, block: Block, rows: Sequence[int]) -> dict[str, Any]:
        """Returns the values of good rows with these ids, by column."""
        if self.layout == MEGATRON:
            return dict(pair_values(block))
        samples = [one.sample for one in block if one.sample is not None]
        if self.layout == "ragged":
            return ragged_values(samples, block.notes.tolist(), rows, self.columns)
        columns = {name: further_column(dtype).dtype for name, dtype in self.carried.items()}
        carried = {name: further_values(samples, rows, name, dtype) for name, dtype in columns.items()}
        return self._fixed_values(_answers(samples, rows) if self.layout == _GRPO else samples) | carried

    def _fixed_values(self, samples: Sequence[Sample]) -> dict[str, Any]:
        # All columns after the longest sample are equal, so only the first of them are built.
        most = max(len(sequence.ids) for sample in samples for sequence in sample.sequences)
        built = min(-(-(most + 1) // _UNIT) * _UNIT, self.width)
        batch: dict[str, Any] = self._batch_layout.build(Block.of(samples), built, self.pad_id, self.task.shifted)
        if self.task.name == "rlhf":
            batch = {name: array.astype(np.int64) for name, array in batch.items()}
            return {"prompt_ids": batch.pop("prompt_ids"), **self._padded(batch)}
        if self.task.name == "dpo":
            references = {name: batch.pop(name) for name in list(batch) if name.endswith(_REF)}
            return self._padded(batch) | references
        count, mask = len(samples), batch["attention_mask"].astype(np.int32)
        sides = {
            "chosen_input_ids": batch["input_ids"][:count],
            "chosen_attention_mask": mask[:count],
            "rejected_input_ids": batch["input_ids"][count:],
            "rejected_attention_mask": mask[count:],
            "loss_mask": batch["loss_mask"].astype(np.int32),
        }
        # A file has one position_id and one end_ind a pair: those of the longer side.
        positions = np.broadcast_to(np.arange(self.width, dtype=np.int32), (count, self.width))
        ends = batch["end_ind"].reshape(2, count).max(axis=0).tolist()
        return {**self._padded(sides), "position_id": positions, "end_ind": ends}

    @property
    def pads(self) -> bool:
        """True if all rows have one length."""
        return self.layout not in ("ragged", MEGATRON)

    @property
    def counts_padding(self) -> bool:
        """True if readers of the layout count the ids that are not padding."""
        return self.layout in (_GRPO, "mindformers")

    @property
    def _batch_layout(self) -> Layout:
        """The layout of the stream's batches that has the values of a fixed layout."""
        if self.task.name == "dpo":
            return make_layout("paired", with_ref_logps=self.reference)
        return make_layout(self.task.layout, max_prompt_length=self.task.prompt_columns)

    def _padded(self, columns: Mapping[str, NDArray[Any]]) -> dict[str, PaddedBlock]:
        return {name: PaddedBlock(array, self.width) for name, array in columns.items()}


def part_files(layout: str, number: int) -> list[str]:
    """Returns the names of the files of a part that has a good row, the one with the rows first."""
    name = part_name(number)
    return token_files(number) if layout == MEGATRON else [name, name + SIDECAR]


def _answers(samples: Sequence[Sample], rows: Sequence[int]) -> list[Sample]:
    """Returns samples whose sequence is what is under the loss, from its first to its last token.

    mindrlhf's GRPO trainer decodes it without control tokens, and compares the text with that of rollouts.

    Raises:
        OptionError: A sample has nothing under the loss.
    """
    found = []
    for sample, row in zip(samples, rows, strict=True):
        (sequence,) = sample.sequences
        if not sequence.spans:
            raise OptionError(
                f"row {row} has no response; layout {_GRPO!r} needs the answer that a reward is computed with. Leave "
                "such rows out, or name the field of the answer: fields={'response': ...}."
            )
        begin, end = sequence.spans[0][0], sequence.spans[-1][1]
        answer = sequence._replace(ids=sequence.ids[begin:end], spans=((0, end - begin),))
        found.append(sample._replace(sequences=(answer,)))
    return found
