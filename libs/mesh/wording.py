"""Words for people that several packages use."""

from __future__ import annotations

from collections.abc import Sequence


def first_few(texts: Sequence[str], most: int = 4, separator: str = ", ") -> str:
    """The first `most` of these, and how many more there are."""
    more = len(texts) - most
    return separator.join(texts[:most]) + (f" and {more} more" if more > 0 else "")
