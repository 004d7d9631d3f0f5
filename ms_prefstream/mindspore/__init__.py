"""Batches as a MindSpore dataset, and what belongs to one: checkpoints, ranks, saved states."""
