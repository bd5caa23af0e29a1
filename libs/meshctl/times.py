"""Times and spans on the command line: `90d`, or a time of RFC 3339."""

from __future__ import annotations

import argparse
import re
from datetime import datetime, timedelta
from typing import Final

SPAN_DAYS_MAX: Final = 36_500
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_SPAN: Final = re.compile(r"([0-9]{1,9})([smhd])")


def span(raw: str) -> timedelta:
    """A span such as `90d`. Raises `ArgumentTypeError`."""
    match = _SPAN.fullmatch(raw)
    told = timedelta(**{_UNITS[match[2]]: min(int(match[1]), SPAN_DAYS_MAX * 86_400)}) if match is not None else None
    if told is None or told > timedelta(days=SPAN_DAYS_MAX):
        raise argparse.ArgumentTypeError("must be a number and s, m, h or d, such as 90d")
    return told


def time(raw: str) -> datetime:
    """A time with its offset. Raises `ArgumentTypeError`."""
    try:
        told = datetime.fromisoformat(raw)
    except ValueError:
        told = None
    if told is None or told.tzinfo is None:
        raise argparse.ArgumentTypeError("must be a time with its offset (RFC 3339), as 2026-01-31T09:30:00Z")
    return told


def span_or_time(raw: str) -> timedelta | datetime:
    """Either of them. Raises `ArgumentTypeError`."""
    if _SPAN.fullmatch(raw) is not None:
        return span(raw)
    try:
        return time(raw)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError("must be a span such as 90d, or a time with its offset (RFC 3339)") from None
