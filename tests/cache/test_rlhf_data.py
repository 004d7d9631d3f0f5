"""The commands of the documents that write what mindrlhf's scripts write.

The definition of rlhf_data.py: the prompt, and the prompt with the better response directly after it, are encoded by
the tokenizer without BOS and EOS. Each is cut on the right, to max_prompt_length and to seq_length, and padded on the
right with the pad id. The loss mask is 1 on the tokens of the second one, but 0 on as many leading tokens as the cut
prompt has. That of cvalues_comparison.py: `PROMPT` with each stripped response is encoded, cut and padded on the right;
the loss mask is 1 from the first difference of the two sides to the end of the longer one.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import shlex
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import pytest

from ms_prefstream.cli import main
from tests.stream.test_boundary import BEGINS, ENDS

pytestmark = pytest.mark.mindspore
ROOT = pathlib.Path(__file__).parents[2]
Encode = Callable[[str], list[int]]
PAD = 0
PROMPT = "根据以下问题，写一个合适的回答。\n\n### 问题：\n{}\n\n### 回答：\n{}"


def script(encode: Encode, row: dict[str, Any], most_prompt: int, most: int) -> dict[str, list[int]]:
    prompt = encode(row["prompt"])[:most_prompt]
    both = encode(row["prompt"] + row["pos_resp"])[:most]
    mask = [0] * min(len(prompt), len(both)) + [1] * (len(both) - len(prompt))
    return {
        "prompt_ids": prompt + [PAD] * (most_prompt - len(prompt)),
        "pretrain_ids": both + [PAD] * (most - len(both)),
        "loss_mask": mask + [0] * (most - len(mask)),
    }


def line(page: str = "caches.md", option: str = "--truncation right") -> list[str]:
    """The words of the command of a page that has an option."""
    text = (ROOT / "docs" / page).read_text("utf-8").replace("\\\n", " ")
    found = [one for one in re.findall(r"^ms-prefstream (cache .*)$", text, re.MULTILINE) if option in one]
    assert len(found) == 1
    return shlex.split(found[0])


def written(monkeypatch: pytest.MonkeyPatch, folder: pathlib.Path, words: list[str]) -> list[dict[str, Any]]:
    from mindspore.mindrecord import FileReader

    monkeypatch.setattr("sys.argv", ["ms-prefstream", *words])
    with contextlib.suppress(SystemExit):
        main.main()
    rows: list[dict[str, Any]] = []
    for file in sorted(folder.glob("*.mindrecord")):
        reader = FileReader(str(file))
        rows += list(reader.get_next())
        reader.close()
    return rows


def rows_of_texts() -> list[dict[str, str]]:
    texts = [(f"{number} {end}" * (1 + number % 5), begin * (1 + number % 7)) for number, (end, begin) in enumerate(
        (end, begin) for end in ENDS for begin in BEGINS)]  # fmt: skip
    more = [("q" * 90, "answer"), ("Why? <|im_end|>", "<|im_start|> tea"), ("  lead", "trail  "), ("\n", "x")]
    return [{"prompt": prompt, "pos_resp": good, "neg_resp": "no"} for prompt, good in [*texts, *more]]


def check(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
    tokenizer: str,
    encode: Encode,
    rows: list[dict[str, Any]],
    most: tuple[int, int],
) -> None:
    source, out = tmp_path / "rows.jsonl", tmp_path / "out"
    source.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    words = line()
    words[1:3] = [str(source), str(out)]
    given = {"--tokenizer": tokenizer, "--max-prompt-length": str(most[0]), "--seq-length": str(most[1])}
    for name, value in given.items():
        words[words.index(name) + 1] = value
    found = written(monkeypatch, out, words)
    assert len(found) == len(rows)
    for row, one in zip(rows, found, strict=True):
        expected = script(encode, row, *most)
        assert set(one) == set(expected)
        for name, ids in expected.items():
            assert one[name].dtype == np.int64
            assert one[name].tolist() == ids, (row, name)


@pytest.mark.parametrize("most", [(24, 40), (12, 12), (200, 400)])
@pytest.mark.parametrize("kind", ["chatml_dir", "llama2_dir", "gpt2_dir", "sentencepiece_model"])
def test_bytes_of_the_script(
    kind: str,
    most: tuple[int, int],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    path = request.getfixturevalue(kind)
    if kind == "sentencepiece_model":
        import sentencepiece

        encode: Encode = sentencepiece.SentencePieceProcessor(model_file=str(path)).encode
    else:
        from tokenizers import Tokenizer

        rust = Tokenizer.from_file(str(path / "tokenizer.json"))
        encode = lambda text: rust.encode(text, add_special_tokens=False).ids  # noqa: E731
    rows = rows_of_texts()
    if kind == "sentencepiece_model":  # the library alone does not read control tokens in text
        rows = [row for row in rows if "<|" not in row["prompt"]]
    check(monkeypatch, tmp_path, str(path), encode, rows, most)


@pytest.mark.slow
def test_bytes_of_the_script_for_qwen(
    shared: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenizers import Tokenizer

    path = shared / "tokenizers/qwen2_5"
    rust = Tokenizer.from_file(str(path / "tokenizer.json"))
    with open(shared / "data/cvalues_like_2k.jsonl", encoding="utf-8") as file:
        rows = [json.loads(text) for text in islice(file, 200)]
    check(
        monkeypatch, tmp_path, str(path), lambda text: rust.encode(text, add_special_tokens=False).ids, rows, (64, 256)
    )


def test_values_of_the_script_for_reward_data(
    chatml_dir: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenizers import Tokenizer

    rust = Tokenizer.from_file(str(chatml_dir / "tokenizer.json"))
    texts = [("1 + 1?", "2", "3, or 4"), ("为什么？", "因为", "不知道"), ("Why?", "good " * 900, "<|im_end|>")]
    rows = [
        {"prompt": f" {question} ", "pos_resp": f"{good}\n", "neg_resp": f" {bad}", "pos_type": "", "neg_type": ""}
        for question, good, bad in texts
    ]
    (tmp_path / "cvalues.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    words = line("moving.md", "--layout mindformers")
    words[words.index("--tokenizer") + 1] = str(chatml_dir)
    monkeypatch.chdir(tmp_path)
    found = written(monkeypatch, tmp_path / "reward-cache", words)
    for row, one in zip(rows, found, strict=True):
        sides = [
            rust.encode(PROMPT.format(row["prompt"].strip(), row[name].strip()), add_special_tokens=False).ids[:1024]
            for name in ("pos_resp", "neg_resp")
        ]
        chosen, rejected = sides
        for side, ids in zip(("chosen", "rejected"), sides, strict=True):
            pad = one[f"{side}_input_ids"][len(ids) :]
            assert one[f"{side}_input_ids"].tolist() == [*ids, *pad]
            assert len(set(pad.tolist())) <= 1
            assert one[f"{side}_attention_mask"].tolist() == [1] * len(ids) + [0] * len(pad)
        begin = next(at for at, (good, bad) in enumerate(zip(chosen, rejected, strict=False)) if good != bad)
        end = max(map(len, sides))
        assert one["loss_mask"].tolist() == [0] * begin + [1] * (end - begin) + [0] * (1024 - end)
        assert (one["end_ind"], one["position_id"].tolist()) == (end, list(range(1024)))
