"""The self-check: a few hundred short texts on which two backends must agree before one may replace the other."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ms_prefstream.encode.backends.base import Place, TextEncoder

_TEXTS = (
    # scripts
    "hello",
    "Hello World",
    "naïve café",
    "Привет, мир",
    "Γειά σου Κόσμε",
    "שלום עולם",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "안녕하세요 세계",
    "こんにちは、世界・ー",
    "你好，世界。",
    "繁體中文「引號」",
    "ქართული ენა",
    "አማርኛ ቋንቋ",
    "ᏣᎳᎩ ꭰꭱ",
    "ÅÉÎÕÜ ǅ ǈ ﬁ ﬃ ſt ﬅ ẞß İıK",
    "𝒜𝓑𝔠 𝟘𝟙 ①②Ⅷ ½²³",
    "x_y __init__ a-b a.b,c;d",
    "https://example.org/a?b=c&d=%20#e",
    # contractions
    "I'm you're he'd she'll they've it's don't",
    "I'M YOU'RE HE'D SHE'LL THEY'VE IT'S DON'T",
    "'s'S'ſ'ſt'K'll'LL'Ll 'tis 'RE",
    "it’s ’s 'x ''s '' 's's",
    "a'b a'sb 1's !'s \n's",
    # numbers
    "1 12 123 1234 12345 1,234,567.89 1e-5",
    "a1b22c333 4th ٣٤٥ १२३ 一二三 ½¼ ²³ Ⅳ",
    "2024-01-31 12:34:56",
    " 7  77   777\n8\t9",
    # white space
    " \t b",
    " \n",
    "\n ",
    "a \n b",
    "a\n\n\nb",
    "a\r\nb",
    "\r\n\r\n",
    "a \n\n  b\n",
    "\u3000中\u3000",
    "\u200ba\u200c\ufeff",
    # punctuation, code and control tokens
    "!? ... a...b",
    " !! !!\n!!\r\n\n a",
    "/* c */ // d\n",
    "“quoted” ‘text’",
    "$5 €6 +7 <8>",
    "#include <a.h>\n\tint x=1;\n",
    "def f(x):\n    return {'a': [x, 1]}\n",
    "a/b\\c|d~e`f^g",
    "<|im_start|>user\n<|im_end|>",
    "<s></s><unk><pad>[INST] [/INST]",
    "—–-‐ … ‼ ⁉",
    # combining characters
    "e\u0301 a\u030a\u0323 \u0301 \u0301a",
    "a\u0323\u0307 a\u0307\u0323",
    "\u212b \u2126 \u1e9b\u0323",
    "\u1100\u1161\u11a8 \uac00\u11a8",
    "\u0915\u093c \u0958 \u09c7\u09be",
    "\u0344 \u0374 \uf900 \ufa0e",
    "q\u0307\u0323\u0307",
    # symbols
    "😀 🤦🏽‍♂️👩‍👩‍👧‍👦 🇨🇳🇺🇸",
    "❤️ ✔︎ ☎ ©®™",
    "🧿🫠🪿 →⇒∀∃∑√∞≠≤ ┌─┐│ ♪♫ ★☆",
)
_BLANKS = " \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\u0085\u00a0\u1680\u180e\u2003\u2009\u2028\u2029\u200b\u3000\ufeff"
# Control characters, private use, code points without a character, and characters that show nothing.
_STRANGE = (
    "\x00\x01\x02\x7f\x80\x9f\u00ad\u034f\ufffd\ufffe\uffff\ue000\uf8ff\U000f0000\U0010fffd\U0001fffe\U0010ffff"
    "\u0378\u0379\ufdd0\u202e\u202c\ufe0f\u20e3\U000e0061\U000e007f"
)
_RUNS = ("a", "ab", " ", "\n", "\t \t", "!", "=-", "1", "中", "é", "e\u0301")
# A letter, a mark, a digit or a sign that was new in Unicode 10, 11, ... 17: engines with other tables disagree here.
_NEW = (
    "\u0860\u1c90\u0c77\U00010d00\U0001e100\u0eba\U00010e80\U00011950\u0870\U00012f90\U0001e290\u0898"
    "\U0001f7f0\U00011f02\U0001e4d0\U00011f50\U0001fa75\U0002ebf0\u2ffc\u1c89\U00010d40\U0001cc00"
    "\U00016100\u0897\ua7cb\U00013460\ua7ce\u1acf\U00010940\U000323b0\U00011de0\u20c1\U0001fac8"
)


def corpus(contents: Iterable[str] = ()) -> list[str]:
    """Returns the texts: scripts, spaces, marks, runs, characters of each Unicode version, given tokens in context."""
    texts = ["", *_TEXTS]
    texts += [text for c in _BLANKS for text in (c, c + c, f"{c}{c}{c}a", f"a{c}", f"a{c}{c}b{c}")]
    texts += [run * 300 for run in _RUNS] + [" " * 301 + "x"]
    texts += [f"a{c}{c}1 {c}b\n{c}" for c in _STRANGE + _NEW]
    texts += [" ".join(_TEXTS), "\n".join(_TEXTS), _BLANKS, _STRANGE, _NEW]
    for content in contents:
        texts += [content, f"a {content}b", f"{content[:-1]}{content}{content[1:]} \u0338"]
    return texts


def first_difference(one: TextEncoder, other: TextEncoder, contents: Iterable[str] = ()) -> str | None:
    """Returns the first text, shortened, that two encoders encode differently at some place; None if there is none."""
    texts = corpus(contents)
    for place in Place:
        for text, left, right in zip(texts, one.encode(texts, place), other.encode(texts, place), strict=True):
            if not np.array_equal(left, right):
                return text if len(text) <= 24 else text[:24] + "…"
    return None
