"""Row starts must not depend on where blocks end."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ms_prefstream.sources.lines import RowScanner

PIECES = st.sampled_from([b"\n", b"\r\n", b" ", b"\t\x0b\x0c", b" " * 70, b"{}", b'{"a": "\xe4\xb8\xad"}', b"x" * 9])


def naive(text: bytes) -> list[int]:
    starts, offset = [], 0
    for line in text.split(b"\n"):
        if line.strip():
            starts.append(offset)
        offset += len(line) + 1
    return starts


def scan(text: bytes, cuts: list[int]) -> tuple[list[int], int]:
    scanner, starts, newlines = RowScanner(), [], 0
    bounds = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    for begin, end in itertools.pairwise(bounds):
        found, ends = scanner.feed(np.frombuffer(text[begin:end], np.uint8))
        starts += found.tolist()
        newlines += ends.size
    return starts, newlines


@given(st.lists(PIECES, max_size=30).map(b"".join), st.lists(st.integers(0, 10_000), max_size=6))
def test_blocks_of_any_size_give_the_starts_of_lines_with_something_in_them(text: bytes, cuts: list[int]) -> None:
    assert scan(text, cuts) == (naive(text), text.count(b"\n"))


def test_every_byte_its_own_block() -> None:
    text = b'\n {"a":1}\r\n\r\n' + b" " * 100 + b"\n" + b" " * 100 + b'{"b":2}\n\n'
    assert scan(text, list(range(len(text))))[0] == naive(text) == [1, 114]


def test_deep_indentation_is_not_a_blank_line() -> None:
    text = b"".join(b" " * n + b"1\n" + b" " * n + b"\n" for n in range(60, 70))
    assert scan(text, [])[0] == naive(text)
