"""Padding, ends and masks: traps 7, 8, 9, 10, 23 and 29."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ms_prefstream as mps
from tests.traps.helpers import END, Tok, chatml, pair, stream_of

SHORT, LONG = "Oh!", "Tea! It is good! Really good! Wrap it in cloth! 你好!"


def one_id(tok: Tok, text: str) -> int:
    (found,) = tok.ids(f"{END}{text}{END}")[1:-1][-1:]
    return found


def test_trap_07_one_end_for_both_sides_found_by_the_pad_id(tok: Tok) -> None:
    """Each side ends where its own length says, also when the pad id ("!") occurs inside the text."""
    pad = one_id(tok, "!")
    stream = stream_of([pair("Tea!", SHORT, LONG), pair("Tea!", LONG, SHORT)], tok, mps.Reward(256), pad_token_id=pad)
    for batch, texts in zip(stream.batches(), ((SHORT, LONG), (LONG, SHORT)), strict=True):
        for row, text in enumerate(texts):
            expected = tok.ids(chatml(("user", "Tea!"), ("assistant", text)))
            assert batch["end_ind"][row] == len(expected)
            assert batch["input_ids"][row, : len(expected)].tolist() == expected
            assert (batch["input_ids"][row, len(expected) :] == pad).all()
            assert batch["attention_mask"][row].sum() == len(expected)
        assert batch["end_ind"][0] != batch["end_ind"][1]
        ends = batch["end_ind"]
        assert np.flatnonzero(batch["loss_mask"][0])[-1] == ends.max() - 1


@pytest.mark.parametrize("labels", ["unshifted", "shifted"])
def test_trap_08_zero_as_the_ignore_value(tok: Tok, labels: str) -> None:
    """The first id of the vocabulary ("!" in Qwen2.5) is a label like any other; -100 marks what is ignored."""
    stream = stream_of([pair("Tea!", LONG, SHORT)], tok, mps.DPO(256, layout="concat", labels=labels))
    (batch,) = stream.batches()
    shift = int(labels == "shifted")
    for row in range(2):
        mask, marks, ids = (batch[name][row] for name in ("loss_mask", "labels", "input_ids"))
        assert (marks[mask == 0] == -100).all()
        assert marks[mask == 1].tolist() == ids[np.flatnonzero(mask) + shift].tolist()
        bang = one_id(tok, "!")
        text = (LONG, SHORT)[row]
        assert (marks == bang).sum() == tok.ids(chatml(("assistant", text))).count(bang)
    if tok.directory is not None and "qwen" in str(tok.directory):
        assert one_id(tok, "!") == 0
        assert (batch["labels"] == 0).sum() > 3


@pytest.mark.parametrize("layout", ["paired", "concat"])
def test_trap_09_masks_are_padded_with_zero(tok: Tok, layout: str) -> None:
    """No mask ever holds the pad id."""
    pad = max(5, tok.loaded.eos_id or 5)
    (batch,) = stream_of([pair("Tea", SHORT, LONG)], tok, mps.DPO(300, layout=layout), pad_token_id=pad).batches()
    masks = {name: array for name, array in batch.items() if name.endswith("mask")}
    assert masks
    for name, mask in masks.items():
        assert set(np.unique(mask)) == {0, 1}, name
        assert not mask[:, -1].any()
    ids = batch["chosen_input_ids" if layout == "paired" else "input_ids"]
    assert (ids[:, -1] == pad).all()


def test_trap_10_attention_mask_from_ids(tok: Tok) -> None:
    """With the pad id equal to the end of turn, the ends of turn inside the text are still attended to."""
    end = tok.loaded.special[END]
    (batch,) = stream_of([pair("Tea", SHORT, LONG)], tok, pad_token_id=end).batches()
    for name, text in (("chosen", SHORT), ("rejected", LONG)):
        expected = tok.ids(chatml(("user", "Tea"), ("assistant", text)))
        assert expected.count(end) == 2
        size = len(expected)
        assert batch[f"{name}_attention_mask"][0].tolist() == [1] * size + [0] * (512 - size)
        trained = size - len(tok.ids(chatml(("user", "Tea"), asking=True))) - len(tok.ids(f"{END}\n")[1:])
        assert batch[f"{name}_loss_mask"][0].sum() == trained


@pytest.mark.parametrize(("length", "width"), [(15, 16), (16, 16), (17, 24)])
def test_trap_23_pad_to_a_multiple(length: int, width: int) -> None:
    """A length that is a multiple already is not padded by a further block."""
    row = {"prompt_ids": [1] * 4, "chosen_ids": [2] * (length - 4), "rejected_ids": [3]}
    stream = mps.stream(
        [row], task=mps.DPO(64), tokenizer=None, pad_token_id=0, batching=mps.Bucket(1, multiple_of=8), shuffle=False
    )
    (batch,) = stream.batches()
    assert batch["chosen_input_ids"].shape == (1, width)


def test_trap_29_rows_of_a_pair_stay_together(tok: Tok) -> None:
    """Both sides of a pair stand at the same index, equally wide, whatever was dropped or sorted."""
    rows: list[Any] = [
        pair(f"#{n}# why?", f"#{n}# " + "yes " * (1 + n % 7), f"#{n}# " + "no " * (n % 5)) for n in range(24)
    ]
    rows[5] = pair("#5# why?", "same", "same")
    for layout in ("paired", "concat"):
        stream = stream_of(
            rows, tok, mps.DPO(256, layout=layout), batching=mps.Bucket(4, multiple_of=16), shuffle=True, seed=3
        )
        seen = []
        for batch in stream.batches():
            if layout == "paired":
                chosen, rejected = batch["chosen_input_ids"], batch["rejected_input_ids"]
            else:
                chosen, rejected = np.split(batch["input_ids"], 2)
            assert chosen.shape == rejected.shape
            for left, right in zip(chosen, rejected, strict=True):
                marks = {tok.decode(side.tolist()).split("#")[1] for side in (left, right)}
                assert len(marks) == 1
                seen.append(int(marks.pop()))
        assert len(seen) == 24
        assert set(seen) == set(range(24)) - {5}
