"""Fixtures of the report tests."""

from tests.encode.field import field

__all__ = ["field"]
