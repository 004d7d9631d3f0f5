"""Text of every kind for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

_SPACES = " \t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u180e\u2000\u2003\u200a\u200b\u2028\u2029\u202f\u205f\u3000\ufeff"
_MARKS = "\u0300\u0301\u0303\u0307\u0308\u0323\u0327\u030a\u0338\u093c\u09be\u11a8\u1161\u3099\u20e3\ufe0f\u200d"
_BASES = "aeouAqKÅéǅßﬁſİıKΩ가각\u1100क\u09c7か葛"
_SNIPPETS = [
    "I'm",
    "I'M",
    "they'Ve",
    "'s",
    "'ſ",
    "'K",
    "don't ",
    "x='y'",
    "1,234.5",
    "٣٤٥",
    "½Ⅳ²",
    "http://a.b/c?d=1&e=%20",
    "👩‍👩‍👧‍👦",
    "🤦🏽‍♂️",
    "🇨🇳",
    "❤️",
    "1️⃣",
    "def f(x):\n    return x\n",
    "\tif (a) {\r\n\t}\r\n",
    "<div class='a'>",
    "你好，世界。",
    "こんにちは",
    "안녕하세요",
    "مرحبا",
    "שלום",
    "สวัสดี",
    "नमस्ते",
    "Привет",
    "𝒜𝟘",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<s>",
    "</s>",
    "<unk>",
    "<think>",
    "</think>",
    "<tool>",
    "<tool_call>",
    "<|",
    "|>",
    "<0x0A>",
    "▁",
    "\ufffd",
    "\ufffe",
    "\U0010ffff",
    "\x00",
]

plane = st.characters(exclude_categories=("Cs",))
chunk = st.one_of(
    st.text(plane, max_size=8),
    st.text(st.characters(min_codepoint=0x10000, exclude_categories=("Cs",)), max_size=4),
    st.text(st.characters(max_codepoint=0x7F), max_size=12),
    st.text(st.sampled_from(_SPACES), max_size=6),
    st.text(st.sampled_from(_BASES + _MARKS), max_size=8),
    st.sampled_from(_SNIPPETS),
    st.builds(
        lambda piece, times: piece * times,
        st.sampled_from([*"a \n!1é中", "ab", "e\u0301", " \t", "=-"]),
        st.integers(1, 260),
    ),
)
any_text = st.lists(chunk, max_size=8).map("".join)
