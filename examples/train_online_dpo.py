"""Online DPO: a second process samples from the policy and appends pairs; training follows the file as it grows.

    python examples/train_online_dpo.py
    python examples/train_online_dpo.py --data prompts.jsonl --tokenizer path/to/Qwen2.5 --max-prompt-length 256

The trainer publishes its policy after every step. The writer (this script with ``--role writer``) takes the newest one,
draws four responses to each prompt, asks a judge for the best and the worst, and appends both as token ids: what was
sampled is trained on as it was, never tokenised again. `mps.follow` hands each line over once, as soon as it is
complete; ``until`` says how many there will be, and so how many steps. The writer stays a few steps ahead at most.

The judge here stands for a model or a person: it likes lower-case letters and spaces.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import mindspore as ms
import numpy as np
from common import Curves, at_least, batches, begin, check, mean, parser, sources, vocabulary
from mindspore import nn

import ms_prefstream as mps
from ms_prefstream.demo.losses import DPOLoss
from ms_prefstream.demo.model import CausalLM, ModelOptions
from ms_prefstream.demo.rollouts import Roller, Rollouts, end_of_turn
from ms_prefstream.demo.train import train_step

PAIRS = "pairs.jsonl"
PATIENCE = 120.0  # seconds without news after which each process believes that the other is gone


def judge(text: str) -> float:
    """The share of characters that are lower-case letters or spaces."""
    return sum("a" <= character <= "z" or character == " " for character in text) / max(1, len(text))


def open_prompts(options: argparse.Namespace) -> mps.Stream:
    return mps.stream(
        sources(options),
        task=mps.RLHF(max_prompt_length=options.max_prompt_length, seq_length=options.max_length),
        tokenizer=options.tokenizer,
        batching=mps.Pad(options.batch_size),
        seed=options.seed,
    )


def make_policy(prompts: mps.Stream, options: argparse.Namespace) -> CausalLM:
    """The untrained policy; a real run loads the one that supervised training made."""
    width = options.max_prompt_length + options.new_tokens
    ids = vocabulary(prompts, options, options.batch_size * max(2, options.rollouts), width)
    return CausalLM(ModelOptions(vocab_size=ids, max_length=width))


def publish(policy: CausalLM, step: int, folder: pathlib.Path) -> None:
    """Put the policy where the writer looks; it appears when it is whole."""
    ms.save_checkpoint(policy, str(folder / "writing.ckpt"))
    os.replace(folder / "writing.ckpt", folder / f"policy-{step:06d}.ckpt")
    (folder / f"policy-{step - 8:06d}.ckpt").unlink(missing_ok=True)


def newest(folder: pathlib.Path, at_least: int) -> pathlib.Path:
    """The newest policy, once there is one of this step or a later one."""
    begun = time.monotonic()
    while time.monotonic() < begun + PATIENCE:
        found = sorted(folder.glob("policy-*.ckpt"))
        if found and int(found[-1].stem.split("-")[1]) >= at_least:
            return found[-1]
        time.sleep(0.05)
    raise SystemExit(f"writer: no policy of step {at_least} came within {PATIENCE:.0f} seconds.")


def write(options: argparse.Namespace) -> None:
    """The second process: prompts -> sampled pairs, appended line by line."""
    prompts, folder = open_prompts(options), pathlib.Path(options.folder)
    policy = make_policy(prompts, options)
    first, pad_id = next(prompts.batches()), prompts.pad_token_id
    end_id = end_of_turn(first["pretrain_ids"], first["loss_mask"])
    roller = Roller(policy, new_tokens=options.new_tokens, end_id=end_id, pad_id=pad_id)
    random, written = np.random.default_rng(options.seed), 0
    endless = itertools.chain.from_iterable(prompts.batches(epoch) for epoch in itertools.count())
    with open(folder / PAIRS, "a", encoding="utf-8") as file:
        while written < options.pairs:
            needed = max(0, written // options.batch_size - options.ahead)
            ms.load_checkpoint(str(newest(folder, needed)), policy)
            found = roller.draw(next(endless)["prompt_ids"], random, each=options.rollouts)
            for row in ranked(found, options.rollouts, prompts.tokenizer)[: options.pairs - written]:
                file.write(json.dumps(row) + "\n")
                written += 1
            file.flush()


def ranked(found: Rollouts, each: int, tokenizer: Any) -> list[dict[str, Any]]:
    """Of each prompt's responses the best against the worst, as a tokenized row; no row where the judge sees none."""
    responses, rows = [ids.tolist() for ids in found.responses()], []
    for first in range(0, len(responses), each):
        group = responses[first : first + each]
        scores = [judge(tokenizer.encoder.decode(ids)) for ids in group]
        best, worst = int(np.argmax(scores)), int(np.argmin(scores))
        if scores[best] > scores[worst]:
            prompt = found.ids[first][: found.begins[first]].tolist()
            row = {"prompt_ids": prompt, "chosen_ids": group[best], "rejected_ids": group[worst]}
            rows.append({**row, "judged": mean(scores)})  # further fields are no part of the format
    return rows


def train(options: argparse.Namespace, folder: pathlib.Path) -> Curves:
    """The first process: DPO on the pairs as they come."""
    prompts = open_prompts(options)
    policy = make_policy(prompts, options)
    (folder / PAIRS).touch(exist_ok=False)  # pairs of another run would be trained on first
    publish(policy, 0, folder)
    stream = mps.stream(
        mps.follow(folder / PAIRS, until=options.pairs, timeout=PATIENCE, poll=0.05),
        task=mps.DPO(max_length=options.max_prompt_length + options.new_tokens, layout="concat"),
        tokenizer=None,
        format="tokenized",
        pad_token_id=prompts.pad_token_id,
        batching=mps.Pad(options.batch_size),
        window=1,  # steps follow the data closely
    )
    step = train_step(
        DPOLoss(policy, beta=0.1), nn.AdamWeightDecay(policy.trainable_params(), learning_rate=options.learning_rate)
    )
    curves = Curves("online dpo", stream.steps_per_epoch, options)
    with open(folder / PAIRS, encoding="utf-8") as file:
        for batch in batches(stream.dataset(), options):
            value, accuracy = step(*batch.values())
            publish(policy, len(curves) + 1, folder)
            lines = itertools.islice(file, options.batch_size)  # window=1: a step's rows are the next lines
            judged = mean([json.loads(line)["judged"] for line in lines])
            curves.add(loss=float(value), pair_accuracy=float(accuracy), judged=judged)
    print(stream.report)
    return curves


def main() -> None:
    cli = parser(__doc__, epochs=1)
    cli.add_argument("--max-prompt-length", type=int, default=64)
    cli.add_argument("--new-tokens", type=int, default=16, help="of a response, at most")
    cli.add_argument("--rollouts", type=at_least(2), default=4, help="of each prompt, 2 or more")
    cli.add_argument("--pairs", type=int, default=240, help="how many are written")
    cli.add_argument("--ahead", type=int, default=2, help="steps that the writer may be ahead of the trainer")
    cli.add_argument("--role", default="trainer", choices=["trainer", "writer"])
    cli.add_argument("--folder", default=None, help="where both processes meet; a temporary one otherwise")
    options = begin(cli)
    if options.role == "writer":
        return write(options)
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(options.folder or made)
        writer = subprocess.Popen([sys.executable, *sys.argv, "--role", "writer", "--folder", str(folder)])
        try:
            curves = train(options, folder)
        finally:
            writer.terminate()
            writer.wait()
    curves.finish(loss=math.log(2), pair_accuracy=0.5)
    first, last = mean([record["judged"] for record in curves.records[:5]]), curves.mean("judged", 5)
    check(
        options,
        f"what the judge likes in new responses {first:.2f} -> {last:.2f}, at least 0.15 more expected",
        last >= first + 0.15,
    )


if __name__ == "__main__":
    main()
