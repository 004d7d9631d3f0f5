"""Fixtures of the encoding tests."""

from tests.encode.field import field

__all__ = ["field"]
