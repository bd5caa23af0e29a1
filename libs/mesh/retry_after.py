"""The HTTP header `Retry-After` (RFC 9110, section 10.2.3)."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_NUMBER = re.compile(r"\d{1,12}(?:\.\d{1,9})?")


def parse_retry_after(text: str | None, now: datetime) -> float | None:
    """The seconds until then, at least 0; None if the header is missing or says neither seconds nor a date."""
    if text is None:
        return None
    text = text.strip()  # Before `float`, which passes over less white space: not over U+001F.
    if _NUMBER.fullmatch(text):
        return float(text)
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - now).total_seconds())
