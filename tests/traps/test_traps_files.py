"""What is written and read again: traps 24 and 26."""

from __future__ import annotations

import pathlib
import shutil

import numpy as np
import pytest

import ms_prefstream as mps
from ms_prefstream.mindrecord.manifest import MANIFEST, read_manifest
from tests.helpers import Batch
from tests.traps.helpers import Tok, pair

pytestmark = pytest.mark.mindspore
ROWS = 1003


def stream_of(source: object, tokenizer: object, **more: object) -> mps.Stream:
    return mps.stream(
        source, task=mps.DPO(128), tokenizer=tokenizer, batching=mps.Pad(1), index=None, shuffle=False, **more
    )


def test_trap_24_the_last_rows_and_the_last_file(tmp_path: pathlib.Path) -> None:
    """1,003 rows in files of 504, in groups of 128: nothing at any end is lost."""
    from mindspore.dataset import MindDataset

    rows = [{"prompt_ids": [1, 2], "chosen_ids": [3, 4 + n], "rejected_ids": [5]} for n in range(ROWS)]
    out = tmp_path / "out"
    stream = stream_of(rows, None, pad_token_id=0)
    manifest = mps.write_cache(stream, out, layout="mindrlhf", rows_per_part=504)
    files = sorted(map(str, out.glob("*.mindrecord")))
    assert [manifest.files[pathlib.Path(file).name].rows for file in files] == [504, 499]
    assert [MindDataset(file).get_dataset_size() for file in files] == [504, 499]
    dataset = MindDataset(files, columns_list=["chosen_input_ids"], shuffle=False)
    found = [ids[3] for (ids,) in dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)]
    assert sorted(map(int, found)) == [4 + n for n in range(ROWS)]


def logps(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    return -batch["chosen_loss_mask"].sum(axis=1), -batch["rejected_loss_mask"].sum(axis=1)


def test_trap_26_reference_log_probabilities_of_another_model_or_tokenisation(tok: Tok, tmp_path: pathlib.Path) -> None:
    """They are bound to the checkpoint's name, and row for row to the tokens that they belong to."""

    def write(name: str, answer: str, reference_id: str = "sft, step 900") -> None:
        rows = [pair("Tea!", f"{answer} {n}", "No.") for n in range(6)]
        stream = stream_of(rows, tok.loaded, template=None)
        mps.write_cache(stream, tmp_path / name, reference=logps, reference_id=reference_id)

    write("ours", "Gladly!")
    write("theirs", "Here it is!")
    with pytest.raises(mps.StateError, match="'sft, step 900', and reference_id is 'sft, step 1000' now"):
        write("ours", "Gladly!", "sft, step 1000")
    # The files of one cache in the other, and a manifest that was made to fit.
    ours, theirs = (read_manifest(str(tmp_path / name)) for name in ("ours", "theirs"))
    assert ours.reference is not None
    assert theirs.reference is not None
    one, other = ours.reference["file"], theirs.reference["file"]
    shutil.copy(tmp_path / "theirs" / other, tmp_path / "ours" / one)
    ours.files[one] = theirs.files[other]  # type: ignore[index]
    object.__setattr__(ours, "reference", {**theirs.reference, "file": one})
    (tmp_path / "ours" / MANIFEST).write_text(ours.text(), "utf-8")
    with pytest.raises(mps.StateError, match="belongs to other tokens"):
        next(stream_of(str(tmp_path / "ours"), None).batches())
