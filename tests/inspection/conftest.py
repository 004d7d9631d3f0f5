"""Fixtures of the inspection tests."""

from tests.encode.field import field

__all__ = ["field"]
