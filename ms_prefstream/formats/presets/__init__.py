"""Presets, one file a data set: a function row -> record, and the factory that registers it and binds its options."""
