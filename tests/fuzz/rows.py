"""Target: rows as objects, in every layout that the presets know, alone and together."""

from __future__ import annotations

import copy
import pathlib
import random
from typing import Any

import ms_prefstream as mps
from ms_prefstream.encode.tokenizer import load_tokenizer
from tests.encode.chat_templates import FAMILIES
from tests.fuzz.mutations import json_text, json_value
from tests.helpers import pairs, token_pairs

COUNT = 5
LONGEST = 256

Rows = list[dict[str, Any]]


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def chats(count: int) -> Rows:
    return [
        {
            "prompt": [said("system", "Be brief."), said("user", row["prompt"])],
            "chosen": [said("assistant", row["chosen"])],
            "rejected": [said("assistant", row["rejected"])],
        }
        for row in pairs(count)
    ]


def dialogues(count: int) -> Rows:
    made = []
    for row in pairs(count):
        begin = [said("user", row["prompt"]), said("assistant", "hm"), said("user", "And?")]
        made.append({side: [*begin, said("assistant", row[side])] for side in ("chosen", "rejected")})
    return made


def with_tools(count: int) -> Rows:
    schema = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
    calls = [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": [2, None]}}}]
    return [
        {
            "tools": [schema],
            "prompt": [said("user", row["prompt"]), said("assistant", "", tool_calls=calls), said("tool", "3")],
            "chosen": row["chosen"],
            "rejected": row["rejected"],
        }
        for row in pairs(count)
    ]


def alpaca(count: int) -> Rows:
    return [
        {
            "instruction": row["prompt"], "input": "1 2", "chosen": row["chosen"], "rejected": row["rejected"],
            "history": [["a", "b"]], "system": "s",
        }
        for row in pairs(count)
    ]  # fmt: skip


def sharegpt(count: int) -> Rows:
    return [
        {
            "conversations": [{"from": "human", "value": row["prompt"]}],
            "chosen": {"from": "gpt", "value": row["chosen"]},
            "rejected": {"from": "gpt", "value": row["rejected"]},
        }
        for row in pairs(count)
    ]


def transcripts(count: int) -> Rows:
    return [
        {side: f"\n\nHuman: {row['prompt']}\n\nAssistant: {row[side]}" for side in ("chosen", "rejected")}
        for row in pairs(count)
    ]


def ranked(count: int) -> Rows:
    return [
        {"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"], "third"], "scores": [3, 1.5, 2]}
        for row in pairs(count)
    ]


def answers(count: int) -> Rows:
    return [
        {
            "prompt": f"\n\nHuman: {row['prompt']}\n\nAssistant: ",
            "answers": [{"answer": row["chosen"], "rank": 1.0}, {"answer": row["rejected"], "rank": 2.0}],
            "turns": 1,
            "good_natured": True,
        }
        for row in pairs(count)
    ]


def compared(count: int) -> Rows:
    return [
        {
            "prompt": row["prompt"], "response_0": row["chosen"], "response_1": row["rejected"],
            "better_response_id": 0, "safer_response_id": 0, "is_response_0_safe": True, "is_response_1_safe": True,
        }
        for row in pairs(count)
    ]  # fmt: skip


def rejected_beside(count: int) -> Rows:
    return [
        {
            "messages": [said("user", row["prompt"]), said("assistant", row["chosen"])],
            "rejected_response": row["rejected"],
        }
        for row in pairs(count)
    ]


def labelled(count: int) -> Rows:
    return [
        {"prompt": row["prompt"], "completion": row["chosen"], "label": number % 3 > 0}
        for number, row in enumerate(pairs(count))
    ]


def in_steps(count: int) -> Rows:
    return [
        {"prompt": row["prompt"], "completions": ["one and ", row["chosen"]], "labels": [True, number % 2 > 0]}
        for number, row in enumerate(pairs(count))
    ]


def rated(count: int) -> Rows:
    return [{**row, "labels": [0.25, float(row["labels"][1])]} for row in in_steps(count)]


DPO = mps.DPO(LONGEST)
JOINED = ("pairs", "short pairs", "reward", "ranked", "swift", "labelled", "rlhf", "prompts", "steps", "rated steps")
TOKENS: dict[str, Any] = {"tokenizer": None, "pad_token_id": 0, "vocab_size": 300}
TEXT: list[dict[str, Any]] = [{"template": None}] * 12  # which is quick
OTHERS: list[dict[str, Any]] = [
    {}, {"special_tokens_in_content": "error"}, {"special_tokens_in_content": "allow"},
    {"content_lost": "drop"}, {"boundary": "inference"}, {"carry": {"source_name": ["text", "?"]}},
    {"continue_final_message": "join"},
]  # fmt: skip
SHAPES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "pairs": (pairs, mps.DPO(LONGEST, margin=True), {}),
    "short pairs": (pairs, mps.DPO(40, truncation="prompt_left", layout="concat", labels="shifted"), {}),
    "reward": (pairs, mps.Reward(64, truncation="response_right"), {}),
    "chats": (chats, mps.DPO(80), {}),
    "dialogues": (dialogues, mps.Reward(LONGEST, layout="reward_token", reward_token=259), {}),
    "tools": (with_tools, mps.DPO(2048, truncation="drop"), {"template": FAMILIES["qwen2.5"].template}),
    "alpaca": (alpaca, DPO, {}),
    "sharegpt": (sharegpt, DPO, {}),
    "transcripts": (transcripts, DPO, {}),
    "ranked": (ranked, DPO, {}),
    "answers": (answers, DPO, {"format": "nectar"}),
    "compared": (compared, DPO, {}),
    "swift": (rejected_beside, DPO, {}),
    "labelled": (labelled, mps.KTO(96, kl=False), {}),
    "rlhf": (labelled, mps.RLHF(48, 96), {}),
    "prompts": (labelled, mps.Prompts(48), {}),
    "steps": (in_steps, mps.ProcessReward(192), {}),
    "rated steps": (rated, mps.ProcessReward(192, values=True), {}),
    "tokens": (token_pairs, mps.DPO(24), TOKENS),
}


class RowsTarget:
    """Some rows, a few of them changed: none is lost, and each gives what it gives alone."""

    place = r"row \d|rows"

    def __init__(self, folder: pathlib.Path) -> None:
        self._tokenizer = load_tokenizer("bytes")
        self._right: dict[str, set[str]] = {}

    def start(self, draw: random.Random) -> Any:
        name = draw.choice(sorted(SHAPES))
        others = {} if name == "tokens" else draw.choice([*OTHERS, *(TEXT if name in JOINED else [])])
        return name, others, draw.choice(["drop", "drop", "drop", "alone", "raise"]), SHAPES[name][0](COUNT)

    def mutate(self, value: Any, draw: random.Random) -> Any:
        name, others, how, rows = value
        at = draw.randrange(COUNT - 1)  # the last one stays as it is
        change = json_text if draw.random() < 0.4 else json_value
        return name, others, how, [change(row, draw) if number == at else row for number, row in enumerate(rows)]

    def run(self, value: Any) -> bool:
        """Returns whether a changed row became a sample."""
        name, others, how, rows = value
        valid = SHAPES[name][0](COUNT)
        same = [self._of_valid(name, others, row) for row, was in zip(rows, valid, strict=True) if row == was]
        delivered, report = self._delivered(name, others, rows, "raise" if how == "raise" else "drop")
        kept = set().union(*same)
        assert kept <= delivered, "a row that is as it was gives something else"
        ledger = report.ledger()
        came = ledger["delivered"] + ledger["dropped"] + ledger["remainder"] - ledger["repeats"]
        assert ledger["rows"] == report.read == came, f"rows are lost: {ledger}"
        if how == "alone":
            alone = [self._alone(name, others, row) for row in rows]
            assert set().union(*alone) == delivered, "together the rows give something else than alone"
            assert ledger["dropped"] == sum(not keys for keys in alone), f"other rows are dropped alone: {ledger}"
        return bool(delivered - kept)

    def is_parsed(self, value: Any) -> bool:
        return False

    def _of_valid(self, name: str, others: dict[str, Any], row: Any) -> set[str]:
        key = f"{name} {others} {row}"
        if key not in self._right:
            self._right[key] = self._alone(name, others, row)
        return self._right[key]

    def _alone(self, name: str, others: dict[str, Any], row: Any) -> set[str]:
        """The samples of a row that is alone, as texts."""
        try:
            return set(self._delivered(name, others, [row], "drop")[0])
        except mps.NoUsableRowsError:
            return set()

    def _delivered(self, name: str, others: dict[str, Any], rows: Rows, policy: str) -> Any:
        _, task, options = SHAPES[name]
        given: dict[str, Any] = {"tokenizer": self._tokenizer, **options, **others}
        stream = mps.stream(
            copy.deepcopy(rows), task=task, batching=mps.Pad(1), shuffle=False, on_bad_row=policy, verbose=False,
            drop_remainder=False, **given,
        )  # fmt: skip
        found = {repr([(column, array.tobytes()) for column, array in batch.items()]) for batch in stream.batches()}
        return found, stream.report
