"""DPO on packed rows: several pairs share a row, both sides of each in the same one, and next to nothing is padding.

    python examples/train_dpo_packed.py
    python examples/train_dpo_packed.py --data pairs.jsonl --tokenizer path/to/Qwen2.5 --max-length 1024 --tokens 4096

Every batch has one shape, so graph mode compiles once. The small model here wants a dense mask, which `mps.causal_mask`
makes of a batch; on Ascend give `actual_seq_len` to flash attention instead (TND), and no mask is needed.
"""

from __future__ import annotations

import math
import pathlib
import tempfile

from common import Curves, batches, begin, check, parser, sources, vocabulary
from mindspore import Tensor, nn

import ms_prefstream as mps
from ms_prefstream.demo.model import CausalLM, ModelOptions
from ms_prefstream.demo.packed_losses import PackedDPOLoss
from ms_prefstream.demo.train import train_step


def main() -> None:
    cli = parser(__doc__, batch_size=2, learning_rate=2e-3, epochs=4)
    cli.add_argument("--tokens", type=int, default=1024, help="columns of a packed row")
    cli.add_argument("--max-segments", type=int, default=16, help="sequences that a packed row may hold, two a pair")
    options = begin(cli)

    stream = mps.stream(
        sources(options),
        task=mps.DPO(max_length=options.max_length),
        tokenizer=options.tokenizer,
        batching=mps.Pack(options.tokens, max_segments=options.max_segments, batch_size=options.batch_size),
        seed=options.seed,
        steps_per_epoch=1,  # unknown until the lengths are; the index below knows the exact number
        index=None,
    )
    with tempfile.TemporaryDirectory() as folder:
        stream.build_index(pathlib.Path(folder, "lengths"))  # a real run builds it once: `ms-prefstream index`
        print(f"{stream.steps_per_epoch} steps an epoch, shapes {stream.shapes}")
        ids = vocabulary(stream, options, options.batch_size, options.tokens)
        policy = CausalLM(ModelOptions(vocab_size=ids, max_length=options.max_length))
        loss = PackedDPOLoss(policy, beta=0.1, pairs=options.max_segments // 2)
        step = train_step(loss, nn.AdamWeightDecay(policy.trainable_params(), learning_rate=options.learning_rate))

        curves = Curves("packed dpo", options.epochs * stream.steps_per_epoch, options)
        for batch in batches(stream.dataset(), options):
            masked = Tensor(mps.causal_mask({name: column.asnumpy() for name, column in batch.items()}))
            value, accuracy = step(*batch.values(), masked)
            pairs = float(batch["pair_ids"].max(axis=1).sum())
            curves.add(loss=float(value), pair_accuracy=float(accuracy), pairs_in_step=pairs)
    curves.finish(loss=math.log(2), pair_accuracy=0.5)

    print(stream.report)
    last = curves.mean("loss", stream.steps_per_epoch)
    check(
        options,
        f"loss {last:.3f} in the last epoch, below {0.9 * math.log(2):.3f} expected (no preference is ln 2)",
        last < 0.9 * math.log(2),
    )


if __name__ == "__main__":
    main()
