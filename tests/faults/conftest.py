"""Fixtures that all cases share."""

from made import case, original

__all__ = ["case", "original"]
