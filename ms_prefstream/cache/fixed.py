"""Fixed layouts for existing trainers: every row padded to one length, in their columns, order and dtypes.

    mindrlhf, DPO      ten columns of its DPODataset (eight without reference log-probabilities), int32[L]
    mindrlhf, RLHF     prompt_ids int64[max_prompt_length], pretrain_ids and loss_mask int64[L]
    mindformers        the seven columns of its RewardModelDataset, int32[L], end_ind int64

The values are those of the stream's own batches; see `ms_prefstream.batch`.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ms_prefstream.batch import Layout, make_layout
from ms_prefstream.errors import OptionError
from ms_prefstream.mindrecord.encoding import PaddedBlock
from ms_prefstream.mindrecord.schema import Column
from ms_prefstream.sample import Sample
from ms_prefstream.tasks.base import Task

_REF = "_ref_logps"
_UNIT = 16


def check_fixed(layout: str, task: Task) -> None:
    """Checks that the readers of a layout can read the samples of a task.

    Raises:
        OptionError: Names the task's kind and the layouts it has.
    """
    fits = {"mindrlhf": task.name in ("dpo", "rlhf"), "mindformers": task.layout == "mindformers"}
    if not fits[layout]:
        able = ", ".join(repr(name) for name, good in (*fits.items(), ("ragged", True)) if good)
        kind = f"{task.name} samples" + (f" with a {task.layout}" if task.layout == "reward_token" else "")
        raise OptionError(f"layout is {layout!r}, whose reader takes no {kind}; expected {able}.")
    if task.margin:
        raise OptionError(f"layout {layout!r} has no place for a margin. Leave margin out, or use layout='ragged'.")


def fixed_columns(task: Task, width: int, reference: bool) -> dict[str, Column]:
    """Returns the columns of a file, in the order of its readers.

    Args:
        task: The samples' task.
        width: L, the columns of the arrays.
        reference: Whether DPO rows carry reference log-probabilities.
    """
    ids = Column(dtype="int32", most=width, shape=(width,))
    if task.name == "dpo":
        names = _layout(task, reference).columns
        number = Column(dtype="float32", most=1, shape=(1,))
        return {name: number if name.endswith(_REF) else ids for name in names}
    if task.name == "reward":
        sides = [f"{side}_{kind}" for side in ("chosen", "rejected") for kind in ("input_ids", "attention_mask")]
        return {name: ids for name in (*sides, "position_id", "loss_mask")} | {
            "end_ind": Column(dtype="int64", most=1, shape=())
        }
    prompt = task.prompt_columns or width
    return {
        "prompt_ids": Column(dtype="int64", most=prompt, shape=(prompt,)),
        "pretrain_ids": Column(dtype="int64", most=width, shape=(width,)),
        "loss_mask": Column(dtype="int64", most=width, shape=(width,)),
    }


def fixed_values(samples: Many[Sample], task: Task, width: int, pad_id: int, reference: bool) -> dict[str, Any]:
    """Returns samples as columns of a file.

    Args:
        samples: The samples.
        task: Their task.
        width: L.
        pad_id: The id that ids are padded with.
        reference: Whether DPO rows carry reference log-probabilities.
    """
    # All columns after the longest sample are equal, so only the first of them are built.
    most = max(len(sequence.ids) for sample in samples for sequence in sample.sequences)
    built = min(-(-(most + 1) // _UNIT) * _UNIT, width)
    batch: dict[str, Any] = _layout(task, reference).build(samples, built, pad_id, task.shifted)
    if task.name == "rlhf":
        batch = {name: array.astype(np.int64) for name, array in batch.items()}
        return {"prompt_ids": batch.pop("prompt_ids"), **_padded(batch, width)}
    if task.name == "dpo":
        references = {name: batch[name] for name in batch if name.endswith(_REF)}
        return _padded({name: batch[name] for name in batch if name not in references}, width) | references
    count, mask = len(samples), batch["attention_mask"].astype(np.int32)
    sides = {
        "chosen_input_ids": batch["input_ids"][:count],
        "chosen_attention_mask": mask[:count],
        "rejected_input_ids": batch["input_ids"][count:],
        "rejected_attention_mask": mask[count:],
        "loss_mask": batch["loss_mask"].astype(np.int32),
    }
    # A file has one position_id and one end_ind a pair: those of the longer side.
    positions = np.broadcast_to(np.arange(width, dtype=np.int32), (count, width))
    ends = batch["end_ind"].reshape(2, count).max(axis=0).tolist()
    return {**_padded(sides, width), "position_id": positions, "end_ind": ends}


def _padded(columns: Mapping[str, NDArray[Any]], width: int) -> dict[str, PaddedBlock]:
    return {name: PaddedBlock(array, width) for name, array in columns.items()}


def holds_pad(samples: Many[Sample], pad_id: int) -> bool:
    """Returns whether a text holds the pad id."""
    ids = [sequence.ids for sample in samples for sequence in sample.sequences]
    return bool(ids) and bool((np.concatenate(ids) == pad_id).any())


def _layout(task: Task, reference: bool) -> Layout:
    if task.name == "dpo":
        return make_layout("paired", with_ref_logps=reference)
    return make_layout(task.layout, max_prompt_length=task.prompt_columns)
