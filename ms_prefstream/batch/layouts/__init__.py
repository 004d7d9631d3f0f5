"""Layouts: which arrays a batch of a task holds. One file a layout, registered in `registry.py`."""
