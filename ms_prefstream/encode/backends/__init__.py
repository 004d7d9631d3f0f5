"""The ways from text to ids, one file each, and what proves them equal.

``hf`` is the reference (the `tokenizers` package), ``fast_bpe`` the fast way for byte-level BPE (`tiktoken`), ``spm``
SentencePiece models, ``byte_level`` the embedded tokenizer, ``objects`` tokenizers that only exist as Python objects.
To add one: a class that keeps `ms_prefstream.encode.text.TextEncoder`, and a line in `ms_prefstream.encode.tokenizer`.
"""
