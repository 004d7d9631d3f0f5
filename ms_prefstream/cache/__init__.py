"""Samples as MindRecord files: written once, read back in any order."""
