"""What steps say of options that cannot be combined, in full, and the whole summary of a stream."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ms_prefstream as mps
from tests.helpers import json_lines, pairs

LONG = [{**row, "prompt": "word " * (20 * (number % 3 < 2)) + "why?"} for number, row in enumerate(pairs(40))]


def stream(source: Any = "rows.jsonl", **options: Any) -> mps.Stream:
    usual: dict[str, Any] = {"task": mps.DPO(128), "tokenizer": "bytes", "batching": mps.Bucket(4), "verbose": False}
    return mps.stream(source, **usual | options)


def named(text: str) -> str:
    """The text without the hash in the name of an index, which depends on versions."""
    return re.sub(r"\.[0-9a-f]{8}\.mprefidx", ".mprefidx", text)


def generator() -> Iterator[Any]:
    return iter(pairs(40))


def mixed() -> Any:
    return mps.mix([("rows.jsonl", 1), ("other.jsonl", 1)])


@pytest.fixture(scope="module", autouse=True)
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Makes a folder with rows the working directory: errors name files as they were given."""
    folder = tmp_path_factory.mktemp("steps")
    json_lines(folder / "rows.jsonl", pairs(40))
    json_lines(folder / "other.jsonl", pairs(20))
    json_lines(folder / "bad.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "b"}] * 9)
    json_lines(folder / "long.jsonl", LONG)
    json_lines(folder / "empty.jsonl", [])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        stream("other.jsonl", index="build")
        mps.write_cache(stream("rows.jsonl"), "cache")
        yield


ERRORS: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: stream(task=mps.DPO),
        "task is DPO; expected an object such as mps.DPO(max_length=1024).",
    ),
    (
        lambda: stream(tokenizer=...),
        "tokenizer is missing; expected a directory, a file or an object, or None for rows that are already "
        "tokenized, as those of a cache are.",
    ),
    (
        lambda: stream(verbose=1),
        "verbose is 1; expected True or False.",
    ),
    (
        lambda: stream(index=3),
        "index is 3; expected 'auto', 'build', the path of a length index, or None.",
    ),
    (
        lambda: stream(on_bad_row="keep"),
        "on_bad_row is 'keep'; expected 'raise' or 'drop'.",
    ),
    (
        lambda: stream(order_noise=2),
        "order_noise is 2; expected the share by which a row may move, 0 to 1.",
    ),
    (
        lambda: stream(order_noise="a"),
        "order_noise is 'a'; expected the share by which a row may move, 0 to 1.",
    ),
    (
        lambda: stream(order_noise=True),
        "order_noise is True; expected the share by which a row may move, 0 to 1.",
    ),
    (
        lambda: stream(order_noise=0.5),
        "order_noise is 0.5 without an order. Give order_by, or leave order_noise out.",
    ),
    (
        lambda: stream(order_by="length", shuffle="window"),
        "order_by is 'length', which fixes the order of the rows, but shuffle is 'window'. Leave one of the two out.",
    ),
    (
        lambda: stream(order_by="length", longest_first=True),
        "order_by is 'length', which fixes the order of the rows, but longest_first is True. Leave one of the two out.",
    ),
    (
        lambda: stream(order_by="length"),
        "order_by is 'length', but rows.jsonl has no length index that holds what rows are ordered by. Pass "
        'index="build", or build one with mps.build_index(…, order_by=…) or `ms-prefstream index --order-by '
        "…`.",
    ),
    (
        lambda: stream(generator, order_by="length"),
        "order_by is 'length', but generator() can only be read from the front. Unpack it to plain JSON "
        "Lines, or leave order_by out.",
    ),
    (
        lambda: stream(generator, index="build"),
        "index is 'build', but generator() can only be read from the front.",
    ),
    (
        lambda: stream("cache", tokenizer=None, index="rows.prefidx"),
        "index is 'rows.prefidx', but cache has an index of its own. Leave it out.",
    ),
    (
        lambda: stream("cache", tokenizer=None, order_by="margin"),
        "order_by is 'margin', but the length index cache/lengths.mprefidx does not hold what it orders rows "
        "by, as that of a cache. Build an index of the rows with this order_by, or order by 'length'.",
    ),
    (
        lambda: stream(generator).build_index(),
        "generator() can only be read from the front, so it has no length index. Unpack it to plain JSON "
        "Lines, or write it to a cache.",
    ),
    (
        lambda: stream("cache", tokenizer=None).build_index(),
        "cache is a cache, which has a length index of its own already.",
    ),
    (
        lambda: stream(steps_per_epoch=3),
        "steps_per_epoch is 3, but rows.jsonl has a known number of rows, so its steps follow from it. Leave it out.",
    ),
    (
        lambda: stream("other.jsonl", batching=mps.Pack(256), steps_per_epoch=3),
        "steps_per_epoch is 3, but there is a length index (other.jsonl.mprefidx), and packs follow from the "
        "lengths in it. Leave steps_per_epoch out, or pass index=None.",
    ),
    (
        lambda: stream(batching=mps.Pack(256)),
        "Pack: how many packed rows the data fill is only known once all lengths are. Pass steps_per_epoch; "
        "by the lengths of some rows steps_per_epoch=21 holds all of them. Or build a length index "
        "(index='build'), which finds the exact number.",
    ),
    (
        lambda: stream(batching=mps.Pack(256), window=1),
        "Pack: how many packed rows the data fill is only known once all lengths are. Pass steps_per_epoch; "
        "by the lengths of some rows steps_per_epoch=24 holds all of them. Or build a length index "
        "(index='build'), which finds the exact number.",
    ),
    (
        lambda: stream(generator, batching=mps.Pack(256)),
        "Pack: how many packed rows the data fill is only known once all lengths are. Pass steps_per_epoch; "
        "by the lengths of some rows steps_per_epoch=21 holds all of them.",
    ),
    (
        lambda: stream(iter([]), batching=mps.Pack(256), steps_per_epoch=3),
        "Pack: list_iterator can be read only once, but packs are dealt out in proportion to the number of "
        "its rows, which must be counted first. Pass a file, a list or a function that returns a new iterator"
        " each time, or use Pad or Bucket.",
    ),
    (
        lambda: stream(generator, steps_per_epoch=0),
        "steps_per_epoch is 0; expected a whole number of steps, 1 or more.",
    ),
    (
        lambda: stream(generator, steps_per_epoch=True),
        "steps_per_epoch is True; expected a whole number of steps, 1 or more.",
    ),
    (
        lambda: stream(generator, steps_per_epoch=1.5),
        "steps_per_epoch is 1.5; expected a whole number of steps, 1 or more.",
    ),
    (
        lambda: stream(batching=mps.Pack(256), steps_per_epoch=3, drop_remainder="mask"),
        "drop_remainder is 'mask', but a packed row has no row mask: its rows are repeated only where an "
        "epoch needs more packs than the data fill. Use Pad or Bucket.",
    ),
    (
        lambda: stream(batching=mps.Bucket(max_tokens=2048)),
        "Bucket: max_tokens=2048 needs the lengths of all rows, and rows.jsonl has no length index. Pass "
        'index="build", build one with mps.build_index or `ms-prefstream index`, or give batch_size.',
    ),
    (
        lambda: stream(mixed(), batching=mps.Bucket(max_tokens=2048)),
        "Bucket: max_tokens=2048 plans the same rows for every epoch, and a mix takes other ones in each. "
        "Give batch_size.",
    ),
    (
        lambda: stream(generator, batching=mps.Bucket(max_tokens=2048)),
        "Bucket: max_tokens=2048 needs a length index, but generator() can only be read from the front and "
        "has none. Give batch_size, or unpack it to plain JSON Lines.",
    ),
    (
        lambda: stream("other.jsonl", batching=mps.Bucket(max_tokens=2048), shuffle=False),
        "Bucket: max_tokens=2048 brings rows of like length together from the whole source, which "
        "shuffle=False rules out. Leave shuffle out, or give batch_size.",
    ),
    (
        lambda: stream("other.jsonl", batching=mps.Bucket(max_tokens=2048), shuffle="window"),
        "Bucket: max_tokens=2048 brings rows of like length together from the whole source, which "
        "shuffle='window' rules out. Leave shuffle out, or give batch_size.",
    ),
    (
        lambda: stream(mps.follow("rows.jsonl", timeout=1.0), steps_per_epoch=3, num_shards=2, shard_id=0),
        "rows.jsonl ends after a time without data, and 2 ranks would not agree on the last row. Give it "
        "until=<file or number of rows> instead of a timeout.",
    ),
    (
        lambda: stream("empty.jsonl"),
        "empty.jsonl: found no rows, expected at least one. Check that the data was written to the end.",
    ),
    (
        lambda: stream("bad.jsonl", batching=mps.Bucket(2, max_shapes=2)),
        "none of the first 9 rows of bad.jsonl can be used: chosen and rejected are the same text [identical].",
    ),
    (
        lambda: stream(iter(pairs(9)), batching=mps.Bucket(2, max_shapes=2), steps_per_epoch=3),
        "list_iterator can be read only once, so its lengths cannot be looked at to choose shapes. Give "
        "boundaries or multiple_of.",
    ),
    (
        lambda: stream([{**row, "margin": 1.0} for row in pairs(9)], carry={"margin": "float32"}),
        "carry makes a column 'margin', which is one of DPO(max_length=128, max_prompt_length=None, "
        "truncation='prompt_left', layout='paired', labels='unshifted', margin=False) already. Pass "
        "margin=True to the task instead.",
    ),
    (
        lambda: stream(
            [{**row, "row_mask": 1} for row in pairs(9)], carry={"row_mask": "int64"}, drop_remainder="mask"
        ),
        "carry makes a column 'row_mask', which is one of drop_remainder='mask' already. Leave it out of carry=.",
    ),
    (
        lambda: stream(
            [{**row, "chosen_labels": 1, "margin": 1} for row in pairs(9)], carry={"chosen_labels": "int64"}
        ),
        "carry makes a column 'chosen_labels', which is one of DPO(max_length=128, max_prompt_length=None, "
        "truncation='prompt_left', layout='paired', labels='unshifted', margin=False) already. Leave it out "
        "of carry=.",
    ),
    (
        lambda: stream(generator).rows(0, 0),
        "a source that is read from the front has no row ids to look up. Pass a plain JSON Lines file or a "
        "list to ask for the rows of a step.",
    ),
    (
        lambda: stream().state(-1),
        "step is -1; expected a whole number of at least 0.",
    ),
]


@pytest.mark.parametrize(("call", "said"), ERRORS)
def test_options_that_are_refused(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(mps.PrefStreamError) as raised:
        call()
    assert named(str(raised.value)) == said


SUMMARIES: list[tuple[Callable[[], mps.Stream], str]] = [
    (
        lambda: stream(seed=7, num_shards=2, shard_id=1),
        "DPO  rows.jsonl · 40 rows · strings\n"
        "     bytes · bytes · boundary joint · chat template\n"
        "     max_length 128\n"
        "     4 rows a step · 5 steps an epoch · widths 64 128 · padding 48.5 %\n"
        "     rank 1 of 2 · seed 7 · no length index",
    ),
    (
        lambda: stream(task=mps.Reward(128, max_prompt_length=60), shuffle=False, carry={"prompt": "text"}),
        "Reward rows.jsonl · 40 rows · strings\n"
        "     bytes · bytes · boundary joint · chat template\n"
        "     max_length 128 · max_prompt_length 60 · carries prompt text\n"
        "     4 rows a step · 10 steps an epoch · widths 64 128 · padding 56.7 %\n"
        "     rank 0 of 1 · source order · no length index",
    ),
    (
        lambda: stream("other.jsonl", order_by="length"),
        "DPO  other.jsonl · 20 rows · strings\n"
        "     bytes · bytes · boundary joint · chat template\n"
        "     max_length 128\n"
        "     4 rows a step · 5 steps an epoch · widths 64 128 · padding 42.5 %\n"
        "     rank 0 of 1 · ordered by length · length index other.jsonl.mprefidx",
    ),
    (
        lambda: stream(mixed(), batching=mps.Bucket(4, multiple_of=8)),
        "DPO  mix of rows.jsonl, other.jsonl · 60 rows · strings\n"
        "     bytes · bytes · boundary joint · chat template\n"
        "     max_length 128\n"
        "     4 rows a step · 10 steps an epoch · widths 8 16 … 128 (16) · padding 23.1 %\n"
        "     rank 0 of 1 · seed 0 · no length index\n"
        "  !  20 of the first 52 rows repeat another row. Remove the copies.",
    ),
    (
        lambda: stream("cache", tokenizer=None),
        "DPO  cache · 40 rows\n"
        "     tokenizer bytes, when the cache was written · boundary joint\n"
        "     max_length 128\n"
        "     4 rows a step · 10 steps an epoch · widths 64 128 · padding 41.3 %\n"
        "     rank 0 of 1 · seed 0 · length index lengths.mprefidx",
    ),
    (
        lambda: stream("other.jsonl", batching=mps.Bucket(max_tokens=2048)),
        "DPO  other.jsonl · 20 rows · strings\n"
        "     bytes · bytes · boundary joint · chat template\n"
        "     max_length 128\n"
        "     2,048 tokens a step · 2 steps an epoch · widths 64 128 · padding 60.6 %\n"
        "     rank 0 of 1 · seed 0 · length index other.jsonl.mprefidx",
    ),
    (
        lambda: stream(generator),
        "DPO  generator() · auto\n"
        "     bytes · bytes · boundary joint · chat template\n"
        "     max_length 128\n"
        "     4 rows a step · 10 steps an epoch · widths 64 128 · padding 41.3 %\n"
        "     rank 0 of 1 · seed 0 · no length index",
    ),
    (
        lambda: stream(batching=mps.Pack(256), steps_per_epoch=9),
        "DPO  rows.jsonl · 40 rows · strings\n"
        "     bytes · bytes · boundary joint · chat template\n"
        "     max_length 128\n"
        "     1 packed rows a step · 9 steps an epoch · width 256 · padding 17.7 %\n"
        "     rank 0 of 1 · seed 0 · no length index",
    ),
    (
        lambda: stream(template=None, task=mps.DPO(64)),
        "DPO  rows.jsonl · 40 rows · strings\n"
        "     bytes · bytes · boundary inference · no chat template: prompt and response joined as text\n"
        "     max_length 64\n"
        "     4 rows a step · 10 steps an epoch · width 64 · padding 49.1 %\n"
        "     rank 0 of 1 · seed 0 · no length index",
    ),
    (
        lambda: stream("long.jsonl", task=mps.DPO(40)),
        "DPO  long.jsonl · 40 rows · strings\n"
        "     bytes · bytes · boundary joint · chat template\n"
        "     max_length 40 · 100.0 % of rows cut · 97.5 % of rows without their question\n"
        "     4 rows a step · 10 steps an epoch · width 64 · padding 49.1 %\n"
        "     rank 0 of 1 · seed 0 · no length index\n"
        "  !  max_length 40: 8 of 8 rows lose their whole question. max_length=176 keeps 90 % of the rows …",
    ),
]


def test_the_first_warnings_of_many() -> None:
    made = stream(pairs(40))
    for count, last in (
        (3, "  !  warning 2"),
        (4, "  !  and 2 more, see stream.report"),
        (9, "  !  and 7 more, see stream.report"),
    ):
        made.report.warnings[:] = [f"warning {number}" for number in range(count)]
        assert repr(made).splitlines()[-3:] == ["  !  warning 0", "  !  warning 1", last]


@pytest.mark.parametrize(("made", "said"), SUMMARIES)
def test_summaries(made: Callable[[], mps.Stream], said: str) -> None:
    stream = made()
    for _ in stream.batches():
        pass
    assert named(repr(stream)) == said


@pytest.mark.parametrize(
    ("batching", "made_by", "said"),
    [
        (mps.Pad(2), "arrays.pad", "2 rows of 64 columns"),
        (mps.Pack(128), "packed.PackedLayout.build", "1 packed rows of 128 columns"),
    ],
    ids=["padded", "packed"],
)
def test_a_batch_that_does_not_fit_into_memory_is_named(
    batching: Any, made_by: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise MemoryError("Unable to allocate 64.0 TiB")

    found = stream(lambda: iter(pairs(6)), task=mps.DPO(64), batching=batching, steps_per_epoch=3)
    steps = found.batches()
    monkeypatch.setattr(f"ms_prefstream.batch.layouts.{made_by}", full)
    with pytest.raises(mps.OptionError, match=rf"no memory for a batch of {said} \(Unable to allocate 64"):
        list(steps)
