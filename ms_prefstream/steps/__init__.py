"""Batches by step number: planned for random access, or read in one pass."""
