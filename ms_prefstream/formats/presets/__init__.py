"""One small module per data set: a function row -> record, and a factory that binds its options."""
