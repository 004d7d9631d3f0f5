"""Tokenizer backends: one file each, all keeping the `TextEncoder` contract of `base.py`.

`tokenizers_backend` is the reference, `tiktoken_backend` the fast path for byte-level BPE, `sentencepiece_backend`
reads SentencePiece models, `bytes_backend` is the embedded tokenizer, and `object_backend` wraps tokenizers that exist
only as Python objects. To add one, write a class that keeps `TextEncoder` and add a line to
`ms_prefstream/encode/tokenizer.py`.
"""
