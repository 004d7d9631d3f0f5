"""RLHF in one script: a reward model, then REINFORCE on prompts of the stream, with the pretraining loss mixed in.

    python examples/train_rlhf.py
    python examples/train_rlhf.py --pretrain-weight 0      # fails its check: the policy forgets how to write
    python examples/train_rlhf.py --data pairs.jsonl --tokenizer path/to/Qwen2.5 --max-length 512

Each step takes a batch of the stream's RLHF columns: `prompt_ids` start the rollouts, which the reward model scores;
`pretrain_ids` and `loss_mask` keep the policy from forgetting how to answer, as in mindrlhf's RLHF tutorial. Of PPO's
parts only the gradient of the rollouts is here: REINFORCE with the mean of a prompt's other rollouts as its baseline
(RLOO, Ahmadian et al. 2024) and the distance to the frozen start taken off the reward. Each rollout is used for one
update, so there is nothing for PPO's clipping to clip, and no critic to train; the data flow is the same.

Prompts and rollouts have fixed widths, so every function compiles once. On Ascend give `Roller`'s place to your model's
own generation with a key-value cache.
"""

from __future__ import annotations

import argparse
from typing import Any

import mindspore as ms
import numpy as np
from common import Curves, batches, begin, check, parser, sources
from mindspore import Tensor, nn

import ms_prefstream as mps
from ms_prefstream.demo.losses import end_scores, frozen_copy, sequence_log_probs
from ms_prefstream.demo.model import CausalLM, ModelOptions, RewardModel
from ms_prefstream.demo.rollouts import Roller, Rollouts
from ms_prefstream.demo.train import passes, train_reward, train_step


class PretrainingLoss(nn.Cell):
    """Mean negative log-probability of the response's tokens, from `pretrain_ids` and `loss_mask`; and how many."""

    def __init__(self, policy: CausalLM) -> None:
        super().__init__(auto_prefix=False)
        self.policy = policy

    def construct(self, pretrain_ids: Tensor, loss_mask: Tensor) -> tuple[Tensor, Tensor]:
        tokens = loss_mask.sum()
        return -sequence_log_probs(self.policy(pretrain_ids), pretrain_ids, loss_mask).sum() / tokens, tokens


class PolicyLoss(nn.Cell):
    """-advantage * log-probability of the rollouts a token, and with a weight the pretraining loss, also returned."""

    def __init__(self, policy: CausalLM, pretrain_weight: float) -> None:
        super().__init__(auto_prefix=False)
        self.policy, self.pretraining, self.weight = policy, PretrainingLoss(policy), pretrain_weight

    def construct(
        self, ids: Tensor, mask: Tensor, advantages: Tensor, pretrain_ids: Tensor, loss_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        gained = (advantages * sequence_log_probs(self.policy(ids), ids, mask)).sum() / mask.sum()
        pretraining, _ = self.pretraining(pretrain_ids, loss_mask)
        return self.weight * pretraining - gained, pretraining


class Judge:
    """Scores rollouts with the reward model and says how far the policy has moved from the reference."""

    def __init__(self, policy: CausalLM, reference: nn.Cell, reward: RewardModel) -> None:
        def judged(ids: Tensor, mask: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
            moved = sequence_log_probs(policy(ids), ids, mask) - sequence_log_probs(reference(ids), ids, mask)
            return end_scores(reward(ids), ends), moved

        self._judged: Any = ms.jit(judged)

    def __call__(self, found: Rollouts) -> tuple[np.ndarray, np.ndarray]:
        """Scores, and log(policy / reference) of each response, (R,) float32 each."""
        scores, moved = self._judged(Tensor(found.ids), Tensor(found.mask), Tensor(found.ends))
        return scores.asnumpy(), moved.asnumpy()


def reward_model(rows: list[Any], options: argparse.Namespace) -> RewardModel:
    """A reward model that was trained on the pairs; `train_reward.py` shows how."""
    stream = mps.stream(
        rows,
        task=mps.Reward(max_length=options.max_length),
        tokenizer=options.tokenizer,
        batching=mps.Pad(8),
        seed=options.seed,
    )
    model = RewardModel(ModelOptions(vocab_size=stream.tokenizer.vocab_size, max_length=options.max_length, layers=1))
    model.update_parameters_name("reward.")  # the policy's names are the same
    steps = options.reward_epochs * stream.steps_per_epoch
    hits = []
    for record in train_reward(model, passes(stream.dataset(), options.reward_epochs), steps=steps):
        hits.append(record.accuracy)
        if record.step % 10 == 0:
            print(f"reward model step {record.step}/{steps}  pair accuracy {np.mean(hits[-10:]):.2f}", flush=True)
    return model


def open_stream(rows: list[Any], options: argparse.Namespace, *, shuffle: bool = True) -> mps.Stream:
    return mps.stream(
        rows,
        task=mps.RLHF(max_prompt_length=options.max_prompt_length, seq_length=options.max_length),
        tokenizer=options.tokenizer,
        batching=mps.Pad(options.batch_size),
        shuffle=shuffle,
        seed=options.seed,
    )


def advantages(rewards: np.ndarray, each: int) -> np.ndarray:
    """A rollout's reward minus the mean of the same prompt's others, in units of their spread; (R,) float32."""
    groups = rewards.reshape(-1, each)
    others = (groups.sum(axis=1, keepdims=True) - groups) / (each - 1)
    found = (groups - others).reshape(-1)
    return (found / (found.std() + 1e-6)).astype(np.float32)


def main() -> None:
    cli = parser(__doc__, epochs=4, learning_rate=2e-3, max_length=160)
    cli.add_argument("--max-prompt-length", type=int, default=64)
    cli.add_argument("--new-tokens", type=int, default=16, help="of a rollout, at most")
    cli.add_argument("--rollouts", type=int, default=4, help="of each prompt, 2 or more")
    cli.add_argument("--reward-epochs", type=int, default=4)
    cli.add_argument("--warm-up-epochs", type=int, default=3, help="of the pretraining loss alone, before the rollouts")
    cli.add_argument("--pretrain-weight", type=float, default=0.5)
    cli.add_argument("--kl-weight", type=float, default=0.02)
    options = begin(cli)
    rows = mps.read(sources(options))
    kept = rows[::5][: 2 * options.batch_size]  # two batches of prompts for the check, never trained on
    rows = [row for number, row in enumerate(rows) if number % 5]
    reward = reward_model(rows, options)

    stream, held = open_stream(rows, options), list(open_stream(kept, options, shuffle=False).batches())
    width = max(options.max_length, options.max_prompt_length + options.new_tokens)
    policy = CausalLM(ModelOptions(vocab_size=stream.tokenizer.vocab_size, max_length=width, layers=1))
    pretraining = PretrainingLoss(policy)
    learn = train_step(pretraining, nn.AdamWeightDecay(policy.trainable_params(), learning_rate=3e-3))
    for batch in passes(stream.dataset(), options.warm_up_epochs):  # stands for a policy that can write already
        learn(batch["pretrain_ids"], batch["loss_mask"])

    end_id = int(held[0]["pretrain_ids"][held[0]["loss_mask"] == 1][-1])  # what the template ends a turn with
    roller = Roller(policy, new_tokens=options.new_tokens, end_id=end_id, pad_id=stream.pad_token_id)
    judge = Judge(policy, frozen_copy(policy), reward)

    def held_out() -> tuple[float, float]:
        """Mean reward of rollouts and pretraining loss on the prompts that were kept; the same chance every time."""
        random = np.random.default_rng(options.seed)
        scores = [judge(roller.draw(batch["prompt_ids"], random, each=options.rollouts))[0] for batch in held]
        losses = [float(pretraining(Tensor(batch["pretrain_ids"]), Tensor(batch["loss_mask"]))[0]) for batch in held]
        return float(np.mean(scores)), float(np.mean(losses))

    before = held_out()
    print(f"held prompts before: reward {before[0]:.2f}, pretraining loss {before[1]:.2f}", flush=True)
    loss = PolicyLoss(policy, options.pretrain_weight)
    step = train_step(loss, nn.AdamWeightDecay(policy.trainable_params(), learning_rate=options.learning_rate))
    random = np.random.default_rng(options.seed + 1)
    curves = Curves("rlhf", options.epochs * stream.steps_per_epoch, options)
    for batch in batches(stream.dataset(), options):
        found = roller.draw(batch["prompt_ids"].asnumpy(), random, each=options.rollouts)
        scores, moved = judge(found)
        gains = advantages(scores - options.kl_weight * moved, options.rollouts)
        _, learned = step(
            Tensor(found.ids), Tensor(found.mask), Tensor(gains), batch["pretrain_ids"], batch["loss_mask"]
        )
        curves.add(reward=float(scores.mean()), pretraining_loss=float(learned), kl=float(moved.mean()))
    curves.finish(reward=before[0], pretraining_loss=before[1])

    print(stream.report)
    after = held_out()
    claim = (
        f"held prompts: reward {before[0]:.2f} -> {after[0]:.2f}, at least 0.3 more expected; "
        f"pretraining loss {before[1]:.2f} -> {after[1]:.2f}, at most 0.05 more expected"
    )
    check(options, claim, after[0] >= before[0] + 0.3 and after[1] <= before[1] + 0.05)


if __name__ == "__main__":
    main()
