"""RLHF in one script: a reward model, then REINFORCE on prompts of the stream, with the pretraining loss mixed in.

    python examples/train_rlhf.py                          # requests.jsonl: the polite answers are the better ones
    python examples/train_rlhf.py --pretrain-weight 0      # fails its check: the policy forgets how to write
    python examples/train_rlhf.py --data pairs.jsonl --tokenizer path/to/Qwen2.5 --max-length 512

Each step takes a batch of the stream's RLHF columns: `prompt_ids` start the rollouts, which the reward model scores;
`pretrain_ids` and `loss_mask` keep the policy from forgetting how to answer, as in mindrlhf's RLHF tutorial. Of PPO's
parts only the gradient of the rollouts is here: REINFORCE with the mean of a prompt's other rollouts as its baseline
(RLOO, Ahmadian et al. 2024) and the distance to the frozen start taken off the reward. Each rollout is used for one
update, so there is nothing for PPO's clipping to clip, and no critic to train; the data flow is the same.

At first the policy learns both sides of the pairs alike, so that it can answer either way; a large model brings that
with it. Prompts and rollouts have fixed widths, so every function compiles once. On Ascend put your model's own
generation with a key-value cache in the place of `Roller`.
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import mindspore as ms
import numpy as np
from common import Curves, at_least, batches, begin, check, parser, sources, take, vocabulary
from mindspore import Tensor, nn

import ms_prefstream as mps
from ms_prefstream.demo.losses import end_scores, frozen_copy, sequence_log_probs
from ms_prefstream.demo.model import CausalLM, ModelOptions, RewardModel
from ms_prefstream.demo.rollouts import Roller, Rollouts, end_of_turn
from ms_prefstream.demo.train import train_reward, train_step


class TokenLoss(nn.Cell):
    """Mean negative log-probability of the tokens under the mask; and how many they are."""

    def __init__(self, policy: CausalLM) -> None:
        super().__init__(auto_prefix=False)
        self.policy = policy

    def construct(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return -sequence_log_probs(self.policy(ids), ids, mask).sum() / mask.sum(), mask.sum()


class PolicyLoss(nn.Cell):
    """-advantage * log-probability of the rollouts a token, and with a weight the pretraining loss, also returned."""

    def __init__(self, policy: CausalLM, pretrain_weight: float) -> None:
        super().__init__(auto_prefix=False)
        self.policy, self.pretraining, self.weight = policy, TokenLoss(policy), pretrain_weight

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

        self._reward, self._judged = reward, ms.jit(judged)

    def __call__(self, found: Rollouts) -> tuple[np.ndarray, np.ndarray]:
        """Scores, and log(policy / reference) of each response, (R,) float32 each."""
        scores, moved = self._judged(Tensor(found.ids), Tensor(found.mask), Tensor(found.ends))
        return scores.asnumpy(), moved.asnumpy()

    def scores(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Scores of the responses that the rows have, (R,) float32."""
        ends = mask.shape[1] - mask[:, ::-1].argmax(axis=1)  # behind the last token under the mask
        return end_scores(self._reward(Tensor(ids)), Tensor(ends.astype(np.int32))).asnumpy()


def open_stream(rows: list[Any], task: Any, options: argparse.Namespace) -> mps.Stream:
    """Batches of one shape."""
    batching = mps.Pad(options.batch_size)
    return mps.stream(rows, task=task, tokenizer=options.tokenizer, batching=batching, seed=options.seed)


def reward_model(rows: list[Any], size: ModelOptions, options: argparse.Namespace) -> RewardModel:
    """A reward model that was trained on the pairs; `train_reward.py` shows how."""
    stream = open_stream(rows, mps.Reward(max_length=options.max_length), options)
    model = RewardModel(size)
    model.update_parameters_name("reward.")  # the policy's names are the same
    steps = options.reward_steps
    hits = [record.accuracy for record in train_reward(model, take(stream.dataset(), steps), steps=steps)]
    print(f"reward model: {steps} steps, pair accuracy {100 * np.mean(hits[-8:]):.0f} % in the last 8", flush=True)
    return model


def warm_up(policy: CausalLM, rows: list[Any], options: argparse.Namespace) -> None:
    """Teach the policy to answer at all, by both sides of the pairs."""
    stream = open_stream(rows, mps.DPO(max_length=options.max_length, layout="concat"), options)
    step = train_step(TokenLoss(policy), nn.AdamWeightDecay(policy.trainable_params(), learning_rate=4e-3, beta2=0.98))
    dataset = stream.dataset(columns=["input_ids", "loss_mask"])
    losses = [float(step(*batch.values())[0]) for batch in take(dataset, options.warm_up_steps)]
    print(f"warm-up: {len(losses)} steps, loss {losses[0]:.2f} -> {losses[-1]:.2f}", flush=True)


def advantages(rewards: np.ndarray, each: int) -> np.ndarray:
    """A rollout's reward minus the mean of the same prompt's others, in units of their spread; (R,) float32."""
    groups = rewards.reshape(-1, each)
    others = (groups.sum(axis=1, keepdims=True) - groups) / (each - 1)
    found = (groups - others).reshape(-1)
    return (found / (found.std() + 1e-6)).astype(np.float32)


def main() -> None:
    data = pathlib.Path(__file__).with_name("requests.jsonl")
    cli = parser(__doc__, data=[str(data)], max_length=56, epochs=2, learning_rate=1e-3)
    cli.add_argument("--max-prompt-length", type=int, default=40)
    cli.add_argument("--new-tokens", type=int, default=18, help="of a rollout, at most")
    cli.add_argument("--rollouts", type=at_least(2), default=4, help="of each prompt, 2 or more")
    cli.add_argument("--reward-steps", type=int, default=24)
    cli.add_argument("--warm-up-steps", type=int, default=64)
    cli.add_argument("--pretrain-weight", type=float, default=0.5)
    cli.add_argument("--kl-weight", type=float, default=0.05)
    options = begin(cli)
    rows = list(mps.read(sources(options)))
    rows, held = rows[: -options.batch_size], rows[-options.batch_size :]  # the last prompts are for the check
    task = mps.RLHF(max_prompt_length=options.max_prompt_length, seq_length=options.max_length)
    stream, held_batch = open_stream(rows, task, options), next(open_stream(held, task, options).batches())

    width = max(options.max_length, options.max_prompt_length + options.new_tokens)
    ids = vocabulary(stream, options, options.batch_size * max(2, options.rollouts), width)
    size = ModelOptions(vocab_size=ids, max_length=width)
    reward, policy = reward_model(rows, size, options), CausalLM(size)
    warm_up(policy, rows, options)
    end_id = end_of_turn(held_batch["pretrain_ids"], held_batch["loss_mask"])
    roller = Roller(policy, new_tokens=options.new_tokens, end_id=end_id, pad_id=stream.pad_token_id)
    judge, pretraining = Judge(policy, frozen_copy(policy), reward), TokenLoss(policy)

    def held_out() -> tuple[float, float]:
        """Mean reward of rollouts and pretraining loss on the prompts that were kept; the same chance every time."""
        random, prompts = np.random.default_rng(options.seed), held_batch["prompt_ids"]
        scores = [judge(roller.draw(prompts, random, each=options.rollouts))[0].mean() for _ in range(3)]
        loss, _ = pretraining(Tensor(held_batch["pretrain_ids"]), Tensor(held_batch["loss_mask"]))
        return float(np.mean(scores)), float(loss)

    better = float(judge.scores(held_batch["pretrain_ids"], held_batch["loss_mask"]).mean())
    before, random = held_out(), np.random.default_rng(options.seed + 1)
    steps = options.epochs * stream.steps_per_epoch
    falling = Tensor(np.linspace(options.learning_rate, options.learning_rate / 10, steps, dtype=np.float32))
    loss = PolicyLoss(policy, options.pretrain_weight)
    step = train_step(loss, nn.AdamWeightDecay(policy.trainable_params(), learning_rate=falling, beta2=0.98))
    curves = Curves("rlhf", steps, options)
    for batch in batches(stream.dataset(), options):
        found = roller.draw(batch["prompt_ids"].asnumpy(), random, each=options.rollouts)
        scores, moved = judge(found)
        gains = Tensor(advantages(scores - options.kl_weight * moved, options.rollouts))
        _, learned = step(Tensor(found.ids), Tensor(found.mask), gains, batch["pretrain_ids"], batch["loss_mask"])
        curves.add(reward=float(scores.mean()), pretraining_loss=float(learned), kl=float(moved.mean()))
    curves.finish(**{name: value for name, value in curves.records[0].items() if name != "kl"})

    print(stream.report)
    print("a rollout:", stream.tokenizer.encoder.decode(found.responses()[0].tolist()))
    after = held_out()
    expected = (before[0] + better) / 2
    claim = (
        f"held prompts: reward {before[0]:.2f} -> {after[0]:.2f}, at least half of the way to the {better:.2f} of the "
        f"better answers expected; pretraining loss {before[1]:.2f} -> {after[1]:.2f}, at most 0.05 more expected"
    )
    check(options, claim, after[0] >= expected > before[0] and after[1] <= before[1] + 0.05)


if __name__ == "__main__":
    main()
