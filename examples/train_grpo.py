"""GRPO: groups of responses to each prompt, a rule as reward, advantages normalised within each group.

    python examples/train_grpo.py
    python examples/train_grpo.py --data questions.jsonl --tokenizer path/to/Qwen2.5 --max-prompt-length 256

`mps.Prompts(repeat=4)` gives each prompt four adjacent rows, and ``carry=["answer"]`` brings the row's answer along for
the rule. Without --data the script makes questions whose answer is a kind of character, and the reward is the share of
a response's characters that are of this kind. With --data it is the share of the answer's characters that a response
has; put your own rule in its place.
"""

from __future__ import annotations

import argparse
from typing import Any

import mindspore as ms
import numpy as np
from common import Curves, at_least, begin, check, mean, parser, sources, take, vocabulary
from mindspore import Tensor, nn

import ms_prefstream as mps
from ms_prefstream.demo.losses import GRPOLoss, group_advantages
from ms_prefstream.demo.model import CausalLM, ModelOptions
from ms_prefstream.demo.rollouts import Roller
from ms_prefstream.demo.train import train_step

KINDS = {"small letters": "abcdefghijklmnopqrstuvwxyz", "capital letters": "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}


def made_up(count: int) -> list[dict[str, str]]:
    """Questions with the characters that an answer should consist of."""
    kinds = list(KINDS.items())
    return [
        {"prompt": f"{number}: write {kinds[number % 2][0]}.", "answer": kinds[number % 2][1]}
        for number in range(count)
    ]


def reward(response: str, answer: str) -> float:
    """The share of a response's characters that are among those of the answer."""
    return sum(character in answer for character in response) / max(1, len(response))


def open_prompts(options: argparse.Namespace) -> mps.Stream:
    return mps.stream(
        made_up(64) if options.data is None else sources(options),
        task=mps.Prompts(max_length=options.max_prompt_length, repeat=options.group),
        tokenizer=options.tokenizer,
        batching=mps.Pad(options.batch_size),
        carry=["answer"],
        seed=options.seed,
    )


def train(options: argparse.Namespace) -> Curves:
    stream = open_prompts(options)
    print(stream)
    width = options.max_prompt_length + options.new_tokens
    ids = vocabulary(stream, options, stream.shapes[-1][0], width)
    policy = CausalLM(ModelOptions(vocab_size=ids, max_length=width))
    step = train_step(
        GRPOLoss(policy), nn.AdamWeightDecay(policy.trainable_params(), learning_rate=options.learning_rate)
    )
    tokenizer: Any = stream.tokenizer
    roller = Roller(policy, new_tokens=options.new_tokens, end_id=tokenizer.eos_id, pad_id=stream.pad_token_id)
    random = np.random.default_rng(options.seed)
    curves = Curves("grpo", options.updates, options)
    for batch in take(stream.dataset(), curves.steps):
        found = roller.draw(batch["prompt_ids"].asnumpy(), random)
        texts = [tokenizer.decode(ids.tolist()) for ids in found.responses()]
        answers = [str(answer) for answer in batch["answer"]]  # texts stay numpy arrays
        rewards = np.array([reward(text, answer) for text, answer in zip(texts, answers, strict=True)], np.float32)
        advantages = group_advantages(rewards, options.group)
        value, _ = step(Tensor(found.ids), Tensor(found.mask), Tensor(advantages, ms.float32))
        curves.add(reward=float(rewards.mean()), loss=float(value))
    print(stream.report)
    return curves


def main() -> None:
    cli = parser(__doc__, data=None, batch_size=8)
    cli.add_argument("--max-prompt-length", type=int, default=64)
    cli.add_argument("--new-tokens", type=int, default=8, help="of a response, at most")
    cli.add_argument("--group", type=at_least(2), default=4, help="responses to each prompt, 2 or more")
    cli.add_argument("--updates", type=int, default=100, help="steps of the policy")
    options = begin(cli)
    curves = train(options)
    curves.finish()
    first, last = mean([record["reward"] for record in curves.records[:5]]), curves.mean("reward", 10)
    check(options, f"reward {first:.2f} -> {last:.2f}, at least 0.3 more expected", last >= first + 0.3)


if __name__ == "__main__":
    main()
